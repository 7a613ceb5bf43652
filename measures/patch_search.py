"""Segmentation without training: patches of a bank vote for the pixels of the patches that are like them.

After CAPI (arXiv 2502.08769) and Hummingbird (arXiv 2306.01667).
"""

import numpy as np
import paddle
import paddle.nn.functional as F

_QUERIES, _ROWS = 256, 16384  # at a time


class Scaler:
    """Subtracts the mean of the bank's patches, and divides by their deviation, per channel.

    Args:
        bank: [n, D].
    """

    def __init__(self, bank: np.ndarray):
        self._mean = bank.mean(axis=0, dtype=np.float64).astype(np.float32)
        deviation = bank.std(axis=0, dtype=np.float64).astype(np.float32)
        self._scale = 1.0 / np.where(deviation > 0, deviation, 1.0)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Return features [m, D] to scale."""
        return (np.asarray(features, np.float32) - self._mean) * self._scale


def nearest(bank: np.ndarray, queries: np.ndarray, k: int, distance: str) -> tuple[np.ndarray, np.ndarray]:
    """Find the k patches of a bank that are nearest to each query, the nearest first.

    Args:
        bank: [n, D].
        queries: [m, D].
        distance: "cosine" or "l2".

    Returns:
        places: [m, k] int64 in the bank.
        likeness: [m, k]; cosines, or negative halves of squared distances but for a term of the query alone.
    """
    prepare = _unit if distance == "cosine" else np.asarray
    places = np.empty((len(queries), k), np.int64)
    likeness = np.empty((len(queries), k), np.float32)
    for first in range(0, len(queries), _QUERIES):
        asked = paddle.to_tensor(prepare(queries[first : first + _QUERIES]))
        best = indices = None
        for row in range(0, len(bank), _ROWS):
            block = paddle.to_tensor(prepare(bank[row : row + _ROWS]))
            found = paddle.matmul(asked, block, transpose_y=True)
            found = found if distance == "cosine" else found - 0.5 * block.square().sum(axis=1)
            values, own = paddle.topk(found, min(k, found.shape[1]), axis=1)
            own = own + row
            if best is not None:
                values, own = paddle.concat([best, values], axis=1), paddle.concat([indices, own], axis=1)
                values, order = paddle.topk(values, min(k, values.shape[1]), axis=1)
                own = paddle.take_along_axis(own, order, axis=1)
            best, indices = values, own
        places[first : first + len(asked)] = indices.numpy()
        likeness[first : first + len(asked)] = best.numpy()
    return places, likeness


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def vote(labels: np.ndarray) -> np.ndarray:
    """Return the most frequent label of each pixel, [m, P] of [m, k, P]; of equally frequent ones the smallest."""
    ordered = np.sort(labels, axis=1)
    counts = np.ones(ordered.shape, np.int32)  # how many equal labels there were up to here
    for place in range(1, ordered.shape[1]):
        same = ordered[:, place] == ordered[:, place - 1]
        counts[:, place] = np.where(same, counts[:, place - 1] + 1, 1)
    return np.take_along_axis(ordered, counts.argmax(axis=1)[:, None], axis=1)[:, 0]


def patch_labels(masks: np.ndarray, patch_px: int) -> np.ndarray:
    """Cut masks [B, H, W] into the labels of each patch's pixels, [B * N, P * P], row by row."""
    count, height, width = masks.shape
    rows, columns = height // patch_px, width // patch_px
    cut = masks.reshape(count, rows, patch_px, columns, patch_px).transpose(0, 1, 3, 2, 4)
    return cut.reshape(count * rows * columns, patch_px**2)


def join_patches(labels: np.ndarray, grid_hw: tuple[int, int], patch_px: int) -> np.ndarray:
    """Do the reverse of `patch_labels`."""
    rows, columns = grid_hw
    cut = labels.reshape(-1, rows, columns, patch_px, patch_px).transpose(0, 1, 3, 2, 4)
    return cut.reshape(-1, rows * patch_px, columns * patch_px)


def class_shares(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the share of each class among the pixels of patches [n, P] that have one, [n, K]; 0 if none has."""
    counts = np.stack([(labels == label).sum(axis=1) for label in range(num_classes)], axis=1).astype(np.float32)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)


def blend(shares: np.ndarray, likeness: np.ndarray, temperature: float) -> np.ndarray:
    """Return the mean of neighbours' class shares [m, k, K], weighted by softmax(likeness / temperature), [m, K]."""
    weights = np.exp((likeness - likeness.max(axis=1, keepdims=True)) / temperature)
    return (weights[..., None] * shares).sum(axis=1) / weights.sum(axis=1)[:, None]


def enlarge(scores: np.ndarray, grid_hw: tuple[int, int], size_hw: tuple[int, int]) -> np.ndarray:
    """Return labels [B, H, W] of scores [B * N, K] of patches, enlarged bilinearly."""
    maps = paddle.to_tensor(scores.reshape(-1, *grid_hw, scores.shape[1])).transpose([0, 3, 1, 2])
    return F.interpolate(maps, size=list(size_hw), mode="bilinear", align_corners=False).argmax(axis=1).numpy()
