"""Look-up services: a main process with the dense parts of a model, and sparse shards, each a process of its own."""
