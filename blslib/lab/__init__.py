"""Scenarios, experiments, engines, records, charts, claims and the command line."""
