"""What the masks of a split hold: classes and their share of the pixels, and what is wrong with single masks."""

import concurrent.futures
import os
from collections.abc import Sequence

import numpy as np

from errors import UserError, abridge
from pipeline.sources import BadMask, Source, describe_unreadable, read_pair

MOST_LOOKED_AT = 500  # masks, where not all are asked for


def look_at_few(source: Source, indices: Sequence[int], channels: int, upright: bool) -> list[str]:
    """Return what is wrong with some images and masks, before anything is trained on them.

    Raises:
        UserError: if none of them has a pixel with a class.
    """
    problems, found = [], set()
    for index in indices:
        try:
            found |= set(np.unique(read_pair(source, index, channels, upright)[1]).tolist())
        except Exception as error:  # damaged files raise nearly anything
            problems.append(describe_unreadable(source, index, error))
    if not problems and not any(label >= 0 for label in found):
        raise UserError(f"{source.origin}: no pixel of {len(indices)} masks has a class; is DATA.MASK_IGNORE right?")
    return problems


def check_masks(source: Source, num_classes: int, full: bool, channels: int) -> tuple[np.ndarray, int, list[str]]:
    """Read masks.

    Args:
        num_classes: K.
        channels: that a model wants.
        full: read all of them, not only MOST_LOOKED_AT of them, evenly spread.

    Returns:
        pixels: of each class, and at last of none, [K + 1].
        looked_at: masks.
        problems: a line for each mask that cannot be read, does not fit its image or holds what is of no class.
    """
    count = len(source) if full else min(len(source), MOST_LOOKED_AT)
    indices = np.linspace(0, len(source) - 1, count).astype(int).tolist()

    def look(index: int) -> np.ndarray | str:
        try:
            _, labels = read_pair(source, index, channels)
            if labels.max(initial=-1) >= num_classes:
                raise BadMask(f"its mask has the label {labels.max()}; there are {num_classes} classes")
            return np.bincount(np.where(labels < 0, num_classes, labels).ravel(), minlength=num_classes + 1)
        except Exception as error:  # damaged files raise nearly anything
            return describe_unreadable(source, index, error)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(look, indices))
    pixels = sum((counts for counts in found if not isinstance(counts, str)), np.zeros(num_classes + 1, np.int64))
    return pixels, count, [problem for problem in found if isinstance(problem, str)]


def describe_shares(pixels: np.ndarray, names: list[str] | None) -> list[str]:
    """Return a line for each class with its share of the pixels that have one, the largest first; and for the rest."""
    total, of_none = int(pixels[:-1].sum()), int(pixels[-1])
    names = names or [f"class {label}" for label in range(len(pixels) - 1)]
    order = np.argsort(-pixels[:-1], kind="stable")
    lines = [f"{100 * pixels[label] / max(total, 1):.2f} % {names[label]}" for label in order if pixels[label]]
    absent = [names[label] for label in order if not pixels[label]]
    lines += [f"no pixel: {abridge(absent, 20)}"] * bool(absent)
    return [*lines, f"{100 * of_none / max(total + of_none, 1):.2f} % of all pixels are of no class"]
