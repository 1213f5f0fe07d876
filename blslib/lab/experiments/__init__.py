"""What is measured: scenarios, and experiments that take a configuration and return rows."""

# Here and not in ``scenarios``, since a command line that lists the names need not load torch for it.
MADE = ("balanced", "rotating", "wandering", "static", "unequal-tables")
SCENARIOS = (*MADE, "criteo", "aliccp-onehot", "aliccp-multihot")
