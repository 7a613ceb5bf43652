"""Nearest neighbours in feature space."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import paddle

from errors import UserError

_QUERIES, _BANK, _ROWS = 256, 65536, 4096  # rows at a time: of queries, of the bank, of either that are scaled
_BLOCK = 64  # columns


class Scaler(NamedTuple):
    """Standardises features.

    Attributes:
        mean: [D], subtracted.
        scale: [D], multiplied with afterwards.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, bank: np.ndarray, ddof: int = 0, eps: float = 0.0) -> "Scaler":
        """Return the one that takes out the mean and the deviation of a bank [N, D]; a constant feature stays 0."""
        deviation = bank.std(axis=0, ddof=ddof, dtype=np.float64).astype(np.float32) + eps
        mean = bank.mean(axis=0, dtype=np.float64).astype(np.float32)
        return cls(mean, 1.0 / np.where(deviation > 0, deviation, np.float32(1.0)))


def search(
    bank: np.ndarray, queries: np.ndarray, count: int, scaler: Scaler | None = None, distance: str = "cosine"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the nearest rows of a bank for blocks of queries, in the queries' order.

    Args:
        bank: [N, D].
        queries: [M, D].
        count: k, at most N.
        scaler: of both, before all else.
        distance: "cosine" or "l2".

    Yields:
        places: [Q, k] int64 in the bank, the nearest first.
        likeness: [Q, k]; cosines, or negative halves of squared distances but for a term of the query alone.
    """
    is_cosine = distance == "cosine"
    starts = range(0, len(bank), _BANK)
    parts = [paddle.to_tensor(prepare(bank[start : start + _BANK], scaler, is_cosine)) for start in starts]
    for first in range(0, len(queries), _QUERIES):
        rows = paddle.to_tensor(prepare(queries[first : first + _QUERIES], scaler, is_cosine))
        places, likeness = np.empty((len(rows), 0), np.int64), np.empty((len(rows), 0), np.float32)
        for number, part in enumerate(parts):
            found = paddle.matmul(rows, part, transpose_y=True)
            own, values = _best(found if is_cosine else found - 0.5 * part.square().sum(axis=1), count)
            places = np.concatenate([places, own + number * _BANK], axis=1)
            likeness = np.concatenate([likeness, values], axis=1)
        order = np.argsort(-likeness, axis=1, kind="stable")[:, :count]
        yield tuple(np.take_along_axis(array, order, axis=1) for array in (places, likeness))


def _best(likeness: paddle.Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return places and values [Q, k] of the largest values of each row [Q, N], in any order."""
    count = min(count, likeness.shape[1])
    if not likeness.place.is_cpu_place():
        values, places = paddle.topk(likeness, count, axis=1)
        return places.numpy(), values.numpy()
    values = likeness.numpy()
    places = _largest(values, count)
    return places, np.take_along_axis(values, places, axis=1)


def prepare(features: np.ndarray, scaler: Scaler | None, is_cosine: bool) -> np.ndarray:
    """Return features [N, D] scaled, and for the cosine each row of length 1, in float32 and one copy."""
    if scaler is None and not is_cosine:
        return np.asarray(features, np.float32)
    prepared = np.empty(features.shape, np.float32)
    for first in range(0, len(prepared), _ROWS):
        part = np.asarray(features[first : first + _ROWS], np.float32)
        part = part if scaler is None else (part - scaler.mean) * scaler.scale
        length = np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) if is_cosine else 1.0
        prepared[first : first + _ROWS] = part / length
    return prepared


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
    scaler, num_classes = Scaler.of(bank, ddof=1, eps=1e-5) if standardise else None, int(bank_labels.max()) + 1
    predicted = {k: [] for k in ks}
    for places, found in search(bank, queries, max(ks), scaler):
        for k in ks:
            votes = np.zeros((len(places), num_classes))
            weights = np.exp((found[:, :k] - found[:, :1]) / temperature)
            np.add.at(votes, (np.arange(len(places))[:, None], bank_labels[places[:, :k]]), weights)
            predicted[k].append(votes.argmax(axis=1))
    return {k: np.concatenate(parts) for k, parts in predicted.items()}


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


def nearest(features: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """Return the indices [Q, count] of the most similar other rows of features [N, D], by the cosine."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    similarity = unit[queries] @ unit.T
    similarity[np.arange(len(queries)), queries] = -np.inf
    return np.argsort(-similarity, axis=1, kind="stable")[:, :count]
