"""Labels of images: one each, or several; all in memory, or read when they are needed."""

from collections.abc import Callable, Sequence

import numpy as np


class RaggedLists:
    """Lists of integers of any lengths, in two arrays."""

    def __init__(self, flat: np.ndarray, ends: np.ndarray):
        self.flat, self._ends = flat, ends

    @classmethod
    def of(cls, labels: "np.ndarray | RaggedLists | Sequence[Sequence[int]]") -> "RaggedLists":
        """Return labels of any form as lists; an array [N] becomes lists of one."""
        if isinstance(labels, cls):
            return labels
        if isinstance(labels, np.ndarray):
            return cls(labels, np.arange(1, len(labels) + 1))
        lists = [list(labels[index]) for index in range(len(labels))]
        flat = np.array([label for own in lists for label in own], np.int64)
        return cls(flat, np.cumsum([len(own) for own in lists], dtype=np.int64))

    @property
    def lengths(self) -> np.ndarray:
        """Length of each list."""
        return np.diff(self._ends, prepend=0)

    @property
    def owners(self) -> np.ndarray:
        """Index of the list that each number of `flat` is in."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> list[int]:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = int(self._ends[index - 1]) if index else 0
        return self.flat[first : int(self._ends[index])].tolist()

    def take(self, indices: np.ndarray) -> "RaggedLists":
        """Return the lists at these indices."""
        return RaggedLists.of([self[index] for index in indices])


class PerImage:
    """One value per image, read when it is needed.

    Args:
        count: number of images.
        read: from the index of an image to its value.
    """

    def __init__(self, count: int, read: Callable[[int], object]):
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int):
        return self._read(int(index))

    def take(self, indices: np.ndarray) -> "PerImage":
        """Return the values of the images at these indices."""
        return PerImage(len(indices), lambda index: self._read(int(indices[index])))


def stack_labels(labels: Sequence[int] | Sequence[Sequence[int]]) -> np.ndarray:
    """Return the labels of B images as an array: [B], or [B, L] padded with -1 where an image may have several."""
    if not isinstance(labels[0], (list, tuple)):
        return np.array(labels, np.int64)
    stacked = np.full((len(labels), max(1, *map(len, labels))), -1, np.int64)
    for row, own in zip(stacked, labels, strict=True):
        row[: len(own)] = own
    return stacked
