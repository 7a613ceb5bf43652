"""The checks of `python -m tools.doctor`: a module for each section, run by `sections.py`."""
