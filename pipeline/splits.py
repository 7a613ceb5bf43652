"""Which images are the train and the val split: the names that splits have, and a share that is held out."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from errors import UserError
from pipeline.image_lists import list_names
from pipeline.sources import Source
from pipeline.wrapped_sources import Subset

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
        if val_split in _NAMES["train"] or Path(val_split).name != val_split:
            raise UserError(f"DATA.VAL_SPLIT={val_split}: must be the name of a split beside the train split")
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

    Of each class, the images with the lowest hashes of their names are held out: the choice follows neither the numbers
    of labels nor the order of images, and hardly the other images, so pretraining, finetuning and tools hold out the
    same ones, also after photos were added. The only image of a class is trained on.

    Args:
        split: "train" or "val".
        share: of the images, DATA.VAL_FRACTION.
        seed: DATA.VAL_SEED.

    Raises:
        UserError: if the source is read in an order of its own (shards), or has too few images.
    """
    if source.order is not None:
        raise UserError(f"DATA.VAL_FRACTION={share}: shards are not split image by image; put some into a folder val")
    members: dict[str, list[tuple[bytes, int]]] = {}
    for index, (group, name) in enumerate(_groups_and_names(source)):
        digest = hashlib.blake2b(f"{seed} {group} {name}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        members.setdefault(group, []).append((digest, index))
    held_out = []
    for group in members.values():
        count = min(max(1, round(share * len(group))), len(group) - 1)
        held_out += [index for _, index in sorted(group)[:count]]
    is_val = np.zeros(len(source), bool)
    is_val[held_out] = True
    chosen = np.flatnonzero(is_val if split == "val" else ~is_val)
    if len(chosen) == 0:
        raise UserError(f"{source.origin}: {len(source)} images are too few for DATA.VAL_FRACTION={share}")
    return Subset(source, chosen)


def _groups_and_names(source: Source) -> Iterator[tuple[str, str]]:
    """Yield the class and the name of each image, which are the same whatever a method needs of the labels.

    In folders, the class is the first folder of the path; in lists and arrays, it is the first label.
    """
    lists, root = source.label_lists(), str(source.origin).rstrip("/") + "/"
    for index in range(len(source)):
        path, name = source.path(index), source.name(index)
        if path is not None and str(path).startswith(root):
            yield name.rpartition("/")[0].partition("/")[0], name
        else:
            own = lists[index]
            yield str(own[0]) if len(own) else "", name
