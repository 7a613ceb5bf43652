"""Counts of the numbers of images, channel by channel: exact, and the same in any order and with any number of workers.

Integers of up to 16 bits are counted value by value, so that every statistic follows exactly. Fractions and larger
integers, as float32, are counted by their sign, exponent and 7 bits of their mantissa: a bin is at most 0.8 % wide.
"""

import dataclasses
import math

import numpy as np

_BINS = 1 << 16


@dataclasses.dataclass
class Counts:
    """Of the images of one set; C channels.

    Attributes:
        dtype: of the files, "float32" for what is counted as such.
        counts: [C, 65536] int64, in ascending order of the values.
        missing: [C] int64, pixels without a number.
        lowest, highest: [C] float64, exactly.
    """

    dtype: str
    counts: np.ndarray
    missing: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray

    @classmethod
    def of_image(cls, array: np.ndarray, missing: np.ndarray) -> "Counts":
        """Count an image [H, W, C]; `missing` are its pixels without a number, bool."""
        channels, is_exact = array.shape[2], array.dtype.kind in "bui" and array.dtype.itemsize <= 2
        if not is_exact:
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
        missing = missing | ~np.isfinite(array)
        counts = np.zeros((channels, _BINS), np.int64)
        ends = np.full((2, channels), np.nan)
        for channel in range(channels):
            values = array[:, :, channel][~missing[:, :, channel]]
            counts[channel] = np.bincount(_bins(values), minlength=_BINS)
            if values.size:
                ends[:, channel] = values.min(), values.max()
        return cls(str(array.dtype), counts, missing.sum(axis=(0, 1)), *ends)

    def __iadd__(self, other: "Counts") -> "Counts":
        self.counts += other.counts
        self.missing += other.missing
        self.lowest, self.highest = np.fmin(self.lowest, other.lowest), np.fmax(self.highest, other.highest)
        return self

    @property
    def is_exact(self) -> bool:
        """True if each bin is one value."""
        return self.dtype != "float32"

    @property
    def values(self) -> np.ndarray:
        """The value of each bin, float64 [65536], ascending; of fractions its middle, NaN where no number is."""
        if self.is_exact:
            first = np.iinfo(self.dtype).min if self.dtype.startswith("int") else 0
            return np.arange(_BINS, dtype=np.float64) + first
        keys = (np.arange(_BINS, dtype=np.uint32) << 16) | 0x8000
        bits = np.where(keys & 0x80000000, keys & 0x7FFFFFFF, ~keys)
        with np.errstate(invalid="ignore"):
            return bits.astype(np.uint32).view(np.float32).astype(np.float64)

    def percentile(self, channel: int, percent: float) -> float:
        """Return the smallest value that at least a share of the numbers does not exceed; NaN without any."""
        counts = self.counts[channel]
        rank = max(1, math.ceil(int(counts.sum()) * percent / 100 - 1e-9))
        if not counts.any():
            return math.nan
        value = self.values[int(np.searchsorted(np.cumsum(counts), rank))]
        return float(np.clip(value, self.lowest[channel], self.highest[channel]))

    def mean_and_std(self, channel: int, low: float, high: float) -> tuple[float, float]:
        """Return mean and deviation of the pixels from 0 to 1 that a range makes, and cuts."""
        used = np.flatnonzero(self.counts[channel])
        counts, values = self.counts[channel][used], self.values[used]
        pixels = (np.clip(values, low, high) - low) / (high - low)
        total = int(counts.sum())
        mean = math.fsum((counts * pixels).tolist()) / total
        return mean, math.sqrt(math.fsum((counts * (pixels - mean) ** 2).tolist()) / total)

    def cut_share(self, channel: int, low: float, high: float) -> float:
        """Return the share of the numbers that lie outside a range."""
        outside = (self.values < low) | (self.values > high)
        return int(self.counts[channel][outside].sum()) / max(1, int(self.counts[channel].sum()))

    def commonest(self, channel: int) -> tuple[float, float]:
        """Return the value of the fullest bin, and its share of all pixels."""
        bin_, total = int(self.counts[channel].argmax()), int(self.counts[channel].sum())
        return float(self.values[bin_]), int(self.counts[channel][bin_]) / max(1, total)


def _bins(values: np.ndarray) -> np.ndarray:
    """Return the bin of each number, ascending with it."""
    if values.dtype.kind in "bu":
        return values.astype(np.int64)
    if values.dtype.kind == "i":
        return values.astype(np.int64) - np.iinfo(values.dtype).min
    bits = (values + np.float32(0)).view(np.uint32)  # -0 becomes 0
    return (np.where(bits >> 31, ~bits, bits | 0x80000000) >> 16).astype(np.int64)
