"""Whether two images show the same pixels: one is laid over the other, at any place and scale.

The smaller one, at scales of 0.5 to 1 of the larger one's sides, is a template whose normalised cross-correlation
with every window of the larger one is computed by FFT. Both lose what is smoother than some pixels first, and what is
left is divided by its local contrast: the skies, horizons and frames of different photos correlate, their details do
not.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter1d

from measures.curation.image_facts import GREY_PX
from measures.curation.thumbnails import resizing

_SCALES = np.arange(20, 9, -1) / 20  # 1, 0.95, ..., 0.5
_COARSE_PX, _COARSE_SCALES = GREY_PX // 2, _SCALES[::2]
_COARSE_SAME = 0.4  # pairs below it at half the size are not looked at again
_OTHER_SHAPE = 1.03  # ratio of the shapes from which on a crop is laid at its own shape, too
_SMOOTH = 2.0 / 64  # deviation of the Gaussian that is subtracted, in sides of the image
_NEARBY = 4.0 / 64  # deviation of the Gaussian that the contrast is averaged by, in sides of the image
_FAINT = 2.0  # grey levels; contrast far below it is not raised
_PARTS, _PARTS_QUANTILE, _PARTS_MARGIN = 4, 0.2, 0.3  # in a row and column; all copies of 300 photos have 0.56 or more
_PART_DEVIATION = 0.4  # in units of the detail; a part with less in both images says nothing
_LEAST_DEVIATION = 0.1  # in units of the detail; a window with less matches nothing
SAME = 0.64  # 99 % of crops of photos to 0.3 of the area have 0.74 or more, and 1,500 pairs of other photos below 0.5


class Match(NamedTuple):
    """How one image lies in another.

    Attributes:
        correlation: of the grey levels, -1 to 1.
        scale: area of the smaller one by the larger one's; 1: both show the whole.
        is_second_smaller: the second image is a part of the first.
    """

    correlation: float
    scale: float
    is_second_smaller: bool


def align(first: np.ndarray, second: np.ndarray, shapes: tuple[float, float]) -> Match:
    """Lay each of two images over the other, and return the best match.

    Args:
        first, second: grey, [GREY_PX, GREY_PX]; the whole images, squeezed into squares.
        shapes: width by height of each image.
    """
    first, second, shape = first.astype(np.float32), second.astype(np.float32), shapes[0] / shapes[1]
    coarse = _match(*(_halved(image) for image in (first, second)), shape, _COARSE_SCALES)
    return coarse if coarse.correlation < _COARSE_SAME else _match(first, second, shape, _SCALES)


def _match(first: np.ndarray, second: np.ndarray, shape: float, scales: np.ndarray) -> Match:
    one, scale_one = _best(first, second, shape, scales)
    two, scale_two = _best(second, first, 1.0 / shape, scales)
    return Match(two, scale_two, True) if two > one else Match(one, scale_one, False)


def _halved(image: np.ndarray) -> np.ndarray:
    return image.reshape(_COARSE_PX, 2, _COARSE_PX, 2).mean(axis=(1, 3))


def _best(template: np.ndarray, image: np.ndarray, shape: float, scales: np.ndarray) -> tuple[float, float]:
    """Return the largest correlation of a template with a window of an image, and the window's share of the area."""
    side = len(image)
    sizes = list(_sizes(shape, side, scales))
    small = np.zeros((len(sizes), side, side), np.float32)
    counts = np.array([rows * columns for rows, columns in sizes], np.float32)
    image = _detail(image, side, side)
    for number, (rows, columns) in enumerate(sizes):
        detail = _detail(template, rows, columns)
        small[number, :rows, :columns] = detail - detail.mean()
    lengths = np.sqrt(np.einsum("nij,nij->n", small, small))
    products = fft.irfft2(fft.rfft2(image)[None] * fft.rfft2(small).conj(), s=image.shape)
    sums = [_integral(image), _integral(image**2)]
    best, share, where = -1.0, 1.0, None
    for number, (rows, columns) in enumerate(sizes):
        if lengths[number] < _LEAST_DEVIATION * np.sqrt(counts[number]):
            continue
        mean, square = (_window_sums(values, rows, columns) / counts[number] for values in sums)
        deviation = np.sqrt(np.maximum(square - mean**2, _LEAST_DEVIATION**2) * counts[number])
        found = products[number, : side - rows + 1, : side - columns + 1] / deviation
        value = float(found.max()) / float(lengths[number])
        if value > best:
            best, share = value, float(counts[number]) / side**2
            row, column = np.unravel_index(int(found.argmax()), found.shape)
            where = small[number, :rows, :columns], image[row : row + rows, column : column + columns]
    return (best, share) if where is None else (min(best, _worst_part(*where) + _PARTS_MARGIN), share)


def _worst_part(one: np.ndarray, other: np.ndarray) -> float:
    """Return a low quantile of the correlations of 4 x 4 parts with detail: a common frame is in some of them only."""
    found = []
    for rows in np.array_split(np.arange(len(one)), _PARTS):
        for columns in np.array_split(np.arange(one.shape[1]), _PARTS):
            first, second = (image[np.ix_(rows, columns)] for image in (one, other))
            first, second = first - first.mean(), second - second.mean()
            lengths = np.linalg.norm(first), np.linalg.norm(second)
            if max(lengths) > _PART_DEVIATION * np.sqrt(first.size):
                found.append(float((first * second).sum() / max(1e-9, lengths[0] * lengths[1])))
    return float(np.quantile(found, _PARTS_QUANTILE)) if found else -1.0


def _sizes(shape: float, side: int, scales: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield rows and columns of the template: squeezed as the image is; and as a part of the image's own shape."""
    for scale in scales:
        size = round(scale * side)
        yield size, size
        if max(shape, 1 / shape) > _OTHER_SHAPE:
            narrow = round(size * min(shape, 1 / shape))
            if narrow >= side // 4:
                yield (size, narrow) if shape < 1 else (narrow, size)


def _detail(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Resize a square image to [rows, columns], subtract what is smooth there, and even out the contrast."""
    side = len(image)
    (down, smooth_down, near_down), (across, smooth_across, near_across) = (_matrices(side, n) for n in (rows, columns))
    detail = down @ image @ across.T - smooth_down @ image @ smooth_across.T
    return detail / (np.sqrt(near_down @ detail**2 @ near_across.T) + _FAINT)


@functools.lru_cache(maxsize=2 * GREY_PX)
def _matrices(side: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what resizes a line [side] to a size, the same smoothed, and what averages a line [size] locally."""
    matrix = resizing(side, size)
    near = gaussian_filter1d(np.eye(size, dtype=np.float32), _NEARBY * side, axis=0)
    return matrix, gaussian_filter1d(matrix, _SMOOTH * side, axis=0), near


def _integral(image: np.ndarray) -> np.ndarray:
    """Return the sums over all above and left of each place, [H + 1, W + 1]."""
    return np.pad(image.astype(np.float64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)


def _window_sums(integral: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return the sums over all windows of a size."""
    return (
        integral[rows:, columns:]
        - integral[:-rows, columns:]
        - integral[rows:, :-columns]
        + integral[:-rows, :-columns]
    )
