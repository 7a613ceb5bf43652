"""Descriptors of images without a model: grey thumbnails of 16 x 16 of the whole image and of windows of it.

A thumbnail has its mean removed and length 1, so the cosine of two is their correlation.
"""

import numpy as np

from measures.curation.image_facts import GREY_PX

SIDE = 16
_SHARES = {0.85: 2, 0.7: 3}  # side of the windows by the image's: how many of them in a row
_FLAT = 1e-3  # grey levels; less is a blank image, which has no thumbnail


def resizing(size: int, to: int) -> np.ndarray:
    """Return the matrix [to, size] that resizes a line by linear interpolation, smoothed where it gets smaller."""
    centres = (np.arange(to) + 0.5) * size / to - 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(centres[:, None] - np.arange(size)) / max(1.0, size / to))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def whole(greys: np.ndarray, mirrored: bool = False) -> np.ndarray:
    """Return the thumbnail of each grey image [N, GREY_PX, GREY_PX], [N, SIDE * SIDE] float32."""
    side = GREY_PX // SIDE
    small = greys.reshape(-1, SIDE, side, SIDE, side).mean(axis=(2, 4), dtype=np.float32)
    return _unit(small[:, :, ::-1] if mirrored else small)


def windows(greys: np.ndarray) -> np.ndarray:
    """Return the thumbnails of an image's windows, the whole one first, [N, 14, SIDE * SIDE] float32."""
    found, pixels = [whole(greys)], greys.astype(np.float32)
    for share, count in _SHARES.items():
        size = round(share * GREY_PX)
        matrix = resizing(size, SIDE)
        for row in np.linspace(0, GREY_PX - size, count).round().astype(int):
            for column in np.linspace(0, GREY_PX - size, count).round().astype(int):
                part = pixels[:, row : row + size, column : column + size]
                found.append(_unit(matrix @ part @ matrix.T))
    return np.stack(found, axis=1)


def _unit(small: np.ndarray) -> np.ndarray:
    """Return images [N, SIDE, SIDE] as rows of length 1 without their means; a blank one is zeros."""
    rows = small.reshape(len(small), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(length > _FLAT * SIDE, rows / np.maximum(length, 1e-12), 0.0).astype(np.float32)
