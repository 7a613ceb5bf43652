"""Image files by path: millions of paths in little memory, and a listing of what is missing."""

import contextlib
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from errors import abridge, one_name, printable
from pipeline.sources import Source
from storage.files import read_file


class FileImages(Source):
    """Image files with labels.

    Args:
        paths: of the images.
        labels: [N] int64; -1 where there is none.
        origin: what lists them, for messages.
        class_names: of the folders, in label order, if the labels come from folders.
        notes: on what was left out.
    """

    is_encoded = True

    def __init__(
        self,
        paths: Iterable[str | Path],
        labels: np.ndarray,
        origin: Path,
        class_names: list[str] | None = None,
        notes: Sequence[str] = (),
    ):
        self.paths = paths if isinstance(paths, PathList) else PathList(map(str, paths))
        self.labels, self.origin, self.class_names = labels, origin, class_names
        self.notes = [*notes, *self.paths.oddities(labels, origin)]

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.paths[index]

    def name(self, index: int) -> str:
        """Return the path of an image below what lists them."""
        text, origin = self.paths.text(index), str(self.origin).rstrip("/")
        is_below = text.startswith(f"{origin}/")
        return text.removeprefix(f"{origin if is_below else os.path.dirname(origin)}/")

    def read(self, index: int) -> bytes:
        """Read an image file."""
        return read_file(self.paths[index])

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        return one_name(self.paths[index])

    def missing(self) -> list[int]:
        """Return the images whose paths are not files."""
        return self.paths.missing()


class PathList(Sequence):
    """Paths in one block of bytes: a list of a million `Path` objects takes 400 MiB, and this some 60."""

    def __init__(self, paths: Iterable[str]):
        block, ends, keys = bytearray(), array("q"), array("q")
        for path in paths:
            block += os.fsencode(path)
            ends.append(len(block))
            keys.append(hash(path))
        self._block, self._ends, self._keys = bytes(block), np.array(ends, np.int64), np.array(keys, np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Path:
        return Path(self.text(range(len(self))[index]))

    def text(self, index: int) -> str:
        """Return a path as a text."""
        return os.fsdecode(self._block[int(self._ends[index - 1]) if index else 0 : int(self._ends[index])])

    def missing(self) -> list[int]:
        """Return the indices of paths that are not files: absent, or pipes and devices."""
        folders: dict[str, int] = {}
        paths = map(self.text, range(len(self)))
        ids = [folders.setdefault(os.path.dirname(path), len(folders)) for path in paths]
        return find_missing(self._keys, np.array(ids, np.int64), list(folders), "")

    def oddities(self, labels: np.ndarray, origin: Path) -> list[str]:
        """Return notes on paths that are listed twice, and on names that are not UTF-8."""
        notes = describe_repeats(self._keys, labels, self.text, origin)
        if not self._block.isascii():
            names = (self.text(index) for index in range(len(self)))
            odd = [printable(name) for name in names if any("\ud800" <= char <= "\udfff" for char in name)]
            if odd:
                what = f"{len(odd)} names are not UTF-8, and are shown with escapes: {abridge(odd, 3)}"
                notes.append(f"{origin}: {what}")
        return notes


def describe_repeats(
    keys: np.ndarray, labels: np.ndarray, name_of: Callable[[int], str], origin: str | Path
) -> list[str]:
    """Return a note on images that are listed more than once, and those that have two labels.

    Args:
        keys: [N], equal for equal paths.
        labels: [N], or N lists.
    """
    if not (np.diff(np.sort(keys)) == 0).any():
        return []
    _, firsts, places = np.unique(keys, return_index=True, return_inverse=True)
    again = np.flatnonzero(firsts[places] != np.arange(len(keys)))
    pairs = [(int(firsts[places[index]]), int(index)) for index in again]
    differing = [(one, two) for one, two in pairs if _plain(labels[one]) != _plain(labels[two])]
    named = [f"{printable(name_of(one))} as {_plain(labels[one])} and {_plain(labels[two])}" for one, two in differing]
    with_labels = f", {len(differing)} of them with two labels: {abridge(named, 3)}" if differing else ""
    return [f"{origin}: {len(again)} images are listed more than once{with_labels}"]


def _plain(label: object) -> int | tuple[int, ...]:
    return tuple(label) if isinstance(label, (list, tuple)) else int(label)


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False


def find_missing(keys: np.ndarray, folder_ids: np.ndarray, folders: Sequence[str], root: str) -> list[int]:
    """Return the indices of paths that are not files, with one listing of each folder.

    Args:
        keys: [N], `hash` of each path below `root`.
        folder_ids: [N], places in `folders`.
        folders: the part of the paths before the name, below `root`.
    """
    missing, order = [], np.argsort(folder_ids, kind="stable")
    bounds = np.flatnonzero(np.diff(folder_ids[order], prepend=-1))
    for members in np.split(order, bounds[1:]) if len(order) else ():
        folder, present = folders[folder_ids[members[0]]], []
        # No directory, or not even a possible name of one.
        with contextlib.suppress(OSError, ValueError), os.scandir(os.path.join(root, folder) or ".") as entries:
            present = [hash(os.path.join(folder, entry.name)) for entry in entries if _is_file(entry)]
        missing += members[~np.isin(keys[members], np.array(present, np.int64))].tolist()
    return sorted(missing)
