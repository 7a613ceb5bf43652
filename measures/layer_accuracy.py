"""What the features of each block are worth: k nearest neighbours, and a linear classifier."""

from collections.abc import Iterator

import numpy as np

from measures.linear_probe import probe_accuracy
from measures.neighbours import classify

POOLS = {"cls": "class token", "mean": "mean of the patches"}
_LAST = 4
Row = dict[str, object]


def features_of(split: dict[str, np.ndarray], layers: list[int], pool: str) -> np.ndarray:
    """Return the features [N, D] of one layer, or of several side by side."""
    return np.concatenate([split[f"layer_{layer}"][:, list(POOLS).index(pool)] for layer in layers], axis=1)


def measure_layers(train: dict[str, np.ndarray], val: dict[str, np.ndarray], k: int) -> Iterator[Row]:
    """Yield a row for each block, and one for the last four: "layer", and an accuracy per measure and pool.

    Args:
        train, val: `layer_L` [N, 2, D] for each block, and `labels` [N].
        k: neighbours.
    """
    depth = len(train) - 1
    readings = {str(layer): [layer] for layer in range(1, depth + 1)}
    if depth > _LAST:
        readings[f"last {_LAST}"] = list(range(depth - _LAST + 1, depth + 1))
    for name, layers in readings.items():
        row: Row = {"layer": name}
        for pool, words in POOLS.items():
            bank, asked = features_of(train, layers, pool), features_of(val, layers, pool)
            found = classify(bank, train["labels"], asked, [k])[k]
            row[f"k-NN, {words}"] = 100 * float(np.mean(found == val["labels"]))
            row[f"linear, {words}"] = probe_accuracy((bank, train["labels"]), (asked, val["labels"]))
        yield row
