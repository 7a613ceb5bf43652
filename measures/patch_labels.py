"""Patches and the classes of their pixels: labels of patches, votes of neighbours, and maps that are put together."""

import numpy as np
import paddle
import paddle.nn.functional as F


def vote(labels: np.ndarray) -> np.ndarray:
    """Return the most frequent label of each pixel, [m, P] of [m, k, P]; of equally frequent ones the smallest."""
    ordered = np.sort(labels, axis=1)
    counts = np.ones(ordered.shape, np.int32)  # how many equal labels there were up to here
    for place in range(1, ordered.shape[1]):
        same = ordered[:, place] == ordered[:, place - 1]
        counts[:, place] = np.where(same, counts[:, place - 1] + 1, 1)
    return np.take_along_axis(ordered, counts.argmax(axis=1)[:, None], axis=1)[:, 0]


def cut(masks: np.ndarray, patch_px: int) -> np.ndarray:
    """Cut masks [B, H, W] into the labels of each patch's pixels, [B * N, P * P], row by row."""
    count, height, width = masks.shape
    rows, columns = height // patch_px, width // patch_px
    cut = masks.reshape(count, rows, patch_px, columns, patch_px).transpose(0, 1, 3, 2, 4)
    return cut.reshape(count * rows * columns, patch_px**2)


def join(labels: np.ndarray, grid_hw: tuple[int, int], patch_px: int) -> np.ndarray:
    """Do the reverse of `cut`."""
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
