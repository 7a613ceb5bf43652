"""Faults that are done to real processes: python -m tests.faults."""
