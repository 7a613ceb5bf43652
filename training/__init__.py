"""The training loop and everything around a run. Nothing here depends on a method."""
