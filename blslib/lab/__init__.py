"""Live ranks, experiments, results, diagnosis, and the commands that start them."""
