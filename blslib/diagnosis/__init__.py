"""Telling from a recorded run what would help it: readers of traces, and the verdict."""
