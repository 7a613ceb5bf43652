"""The directory for what can be made again: downloads, and indexes of data on disks that cannot be written."""

import os
from pathlib import Path

from arguments import user_path

CACHE_VARIABLE = "MAE_CACHE"


def cache_dir() -> Path:
    """Return the cache directory: $MAE_CACHE, else mae_paddle in the user's cache directory."""
    if os.environ.get(CACHE_VARIABLE):
        return user_path(os.environ[CACHE_VARIABLE], CACHE_VARIABLE)
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "mae_paddle"
