"""Which tables are hot when."""

MADE = ("balanced", "rotating", "wandering", "static", "unequal-tables")
SCENARIOS = (*MADE, "criteo", "aliccp-onehot", "aliccp-multihot")
