"""What the masks of a split hold: classes and their share of the pixels, and what is wrong with single masks."""

import concurrent.futures
import os

import numpy as np

from pipeline.sources import Source, describe_unreadable

MOST_LOOKED_AT = 500  # masks, where not all are asked for


def check_masks(source: Source, num_classes: int, full: bool) -> tuple[np.ndarray, int, list[str]]:
    """Read masks.

    Args:
        num_classes: K.
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
            labels = source.mask(index)
            if labels.max(initial=-1) >= num_classes:
                raise ValueError(f"its mask has the label {labels.max()}; there are {num_classes} classes")
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
    lines += [f"no pixel: {', '.join(absent)}"] * bool(absent)
    return [*lines, f"{100 * of_none / max(total + of_none, 1):.2f} % of all pixels are of no class"]
