"""Programs around the training: `python -m tools.NAME`, from the root of the repository."""
