"""The bounded-lag alltoallv, the baselines it is measured against, and a one-process reference."""
