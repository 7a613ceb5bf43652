"""Benchmarks that any user can run: `python -m benchmarks.model`, `.loader` and `.train`."""
