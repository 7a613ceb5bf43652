"""Nearest neighbours in feature space, by the cosine."""

from collections.abc import Sequence

import numpy as np
import paddle

from errors import UserError

_QUERIES, _ROWS = 256, 4096  # at a time
_BLOCK = 64  # columns


def classify(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    ks: Sequence[int],
    temperature: float = 0.07,
    standardise: bool = False,
) -> dict[int, np.ndarray]:
    """Predict the classes of queries by weighted votes of their nearest neighbours.

    Args:
        bank: [N, D] features with `bank_labels` [N], 0 or more.
        queries: [M, D].
        ks: numbers of neighbours.
        temperature: of the weights exp(cosine / temperature).
        standardise: subtract the bank's mean, and divide by its standard deviation, per feature, before all else.

    Returns:
        {k: classes [M]}; of equal votes the smaller class wins.
    """
    if max(ks) > len(bank) or min(ks) < 1:
        raise UserError(f"k={list(ks)}: must be from 1 to the number of training images, {len(bank)}")
    mean = scale = None
    if standardise:
        mean = bank.mean(axis=0, dtype=np.float64).astype(np.float32)
        scale = 1.0 / (bank.std(axis=0, ddof=1, dtype=np.float64).astype(np.float32) + 1e-5)
    columns = paddle.to_tensor(_unit(bank, mean, scale))  # [N, D]
    num_classes, most = int(bank_labels.max()) + 1, max(ks)
    predicted = {k: np.empty(len(queries), np.int64) for k in ks}
    for first in range(0, len(queries), _QUERIES):
        rows = _unit(queries[first : first + _QUERIES], mean, scale)
        similarity = paddle.matmul(paddle.to_tensor(rows), columns, transpose_y=True).numpy()  # [Q, N]
        nearest = _largest(similarity, most)
        found = np.take_along_axis(similarity, nearest, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        nearest, found = (np.take_along_axis(array, order, axis=1) for array in (nearest, found))
        for k in ks:
            votes = np.zeros((len(rows), num_classes))
            weights = np.exp((found[:, :k] - found[:, :1]) / temperature)
            np.add.at(votes, (np.arange(len(rows))[:, None], bank_labels[nearest[:, :k]]), weights)
            predicted[k][first : first + len(rows)] = votes.argmax(axis=1)
    return predicted


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the `count` largest values of each row [Q, N], in any order.

    They lie in the `count` blocks whose own largest values are the largest, so most of a row is looked at only once.
    """
    num_rows, num_columns = values.shape
    end = num_columns - num_columns % _BLOCK
    if end // _BLOCK <= 2 * count:
        return np.argpartition(values, num_columns - count, axis=1)[:, num_columns - count :]
    blocks = values[:, :end].reshape(num_rows, -1, _BLOCK).max(axis=2)
    best = np.argpartition(blocks, -count, axis=1)[:, -count:]
    places = (best[:, :, None] * _BLOCK + np.arange(_BLOCK)).reshape(num_rows, -1)
    rest = np.broadcast_to(np.arange(end, num_columns), (num_rows, num_columns - end))
    places = np.concatenate([places, rest], axis=1)
    chosen = np.argpartition(np.take_along_axis(values, places, axis=1), -count, axis=1)[:, -count:]
    return np.take_along_axis(places, chosen, axis=1)


def _unit(features: np.ndarray, mean: np.ndarray | None, scale: np.ndarray | None) -> np.ndarray:
    """Standardise rows, where a mean is given, and scale each to length 1, in float32 and one copy."""
    unit = np.empty(features.shape, np.float32)
    for first in range(0, len(unit), _ROWS):
        part = np.asarray(features[first : first + _ROWS], np.float32)
        part = part if mean is None else (part - mean) * scale
        unit[first : first + _ROWS] = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
    return unit


def nearest(features: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """Return the indices [Q, count] of the most similar other rows of features [N, D], by the cosine."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    similarity = unit[queries] @ unit.T
    similarity[np.arange(len(queries)), queries] = -np.inf
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]
