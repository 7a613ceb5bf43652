"""Which images are the train and the val split: the names that splits have, and a share that is held out."""

import os
from pathlib import Path

import numpy as np

from errors import UserError
from pipeline.image_lists import list_names
from pipeline.sources import Source, Subset

_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
_ADVICE = "choose one with -opts DATA.VAL_SPLIT NAME"


def find_split(root: Path, split: str, val_split: str | None = None) -> str:
    """Return the name that a split has in a data set of folders, lists or shards.

    Args:
        split: "train" or "val".
        val_split: DATA.VAL_SPLIT, the name of what is evaluated; None: val, valid or validation, else test.

    Raises:
        UserError: if several names are there, or not the one that was asked for.
    """
    if split == "val" and val_split is not None:
        if not _is_there(root, val_split):
            raise UserError(f"DATA.VAL_SPLIT={val_split}: {root} has no folder, list or shards of that name")
        return val_split
    found = [name for name in _NAMES[split] if _is_there(root, name)]
    if len(found) > 1:
        advice = _ADVICE if split == "val" else "rename one"
        raise UserError(f"{root}: has {' and '.join(found)}; {advice}")
    if not found and split == "val" and _is_there(root, "test"):
        return "test"
    return found[0] if found else split


def _is_there(root: Path, name: str) -> bool:
    return any(os.path.exists(root / entry) for entry in (name, *list_names(name)))


def hold_out(source: Source, split: str, share: float, seed: int) -> Subset:
    """Return one split of a source of which a share of each class, and at least one image, is held out as val.

    Args:
        split: "train" or "val".
        share: of the images, DATA.VAL_FRACTION; images without labels count as a class.

    Raises:
        UserError: if the source is read in an order of its own (shards).
    """
    if source.order is not None:
        raise UserError(f"DATA.VAL_FRACTION={share}: shards are not split image by image; put some into a folder val")
    labels = source.single_labels(strict=False)
    is_val = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        is_val[np.random.default_rng([seed, int(label) + 1]).permutation(members)[:count]] = True
    held_out = Subset(source, np.flatnonzero(is_val if split == "val" else ~is_val))
    if len(held_out) == 0:
        raise UserError(f"{source.origin}: {len(source)} images are too few for DATA.VAL_FRACTION={share}")
    return held_out
