"""Live MPI ranks: starting them, lending them to notebooks, and never leaving one behind."""
