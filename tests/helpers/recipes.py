"""The recipes of configs/ by their file name, whichever folder they are in."""

from pathlib import Path

from runtime import ROOT

RECIPES = {
    path.stem: path
    for folder in ("", "arrays", "mae_ct", "mae_lite", "maws", "transfer")
    for path in sorted((ROOT / "configs" / folder).glob("*.yaml"))
    if path.stem != "defaults"
}


def recipe(name: str) -> Path:
    """Return the file of a recipe."""
    return RECIPES[name]
