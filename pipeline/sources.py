"""Sources of images: one split of a data set, in files, in memory, or some images of another source."""

import contextlib
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from errors import abridge, one_line, one_name, printable
from pipeline.decoding import as_mode, decode
from storage.regular_files import read_regular_file

_MOST_BYTES = 1 << 30  # of a photo
SKIP_ADVICE = "; -opts DATA.BAD_IMAGES skip goes on without it"


class Source:
    """The images of one split, with what is known of each.

    Attributes:
        labels: [N] int64, -1 where there is none; or N lists of labels.
        origin: what lists the images, for messages.
        class_names: in label order; None for a set without.
        captions: N texts; None for a set without.
        notes: lines on what is there and is not used, and why.
        is_encoded: `read` returns the file of an image.
        order: (seed, epoch) -> order of an epoch's images, see `samplers.TrainSampler`; None: all at random.
    """

    labels: np.ndarray | Sequence[Sequence[int]]
    origin: str | Path
    class_names: list[str] | None = None
    captions: Sequence[str] | None = None
    notes: Sequence[str] = ()
    is_encoded = False
    order: Callable | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        return f"{self.origin} image {index}"

    def image(self, index: int) -> Image.Image:
        """Return a decoded image, of any mode."""
        raise NotImplementedError

    def read(self, index: int) -> bytes:
        """Return the file of an image, where `is_encoded`."""
        raise NotImplementedError

    def missing(self) -> list[int]:
        """Return the images that are not there, where that can be seen without reading them."""
        return []

    def alternative(self, index: int, attempt: int) -> int:
        """Return the image to take in the place of one that cannot be read, at an attempt from 1 on."""
        return (index + attempt) % len(self)


class EncodedImages(Source):
    """Images that are encoded until they are needed."""

    is_encoded = True

    def image(self, index: int) -> Image.Image:
        """Decode an image."""
        return decode(self.read(index))


class FileImages(EncodedImages):
    """Image files with labels.

    Args:
        paths: of the images.
        labels: [N] int64; -1 where there is none.
        origin: what lists them, for messages.
        class_names: of the folders, in label order, if the labels come from folders.
        notes: on what was left out.
    """

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

    def read(self, index: int) -> bytes:
        """Read an image file."""
        return read_regular_file(self.paths[index], _MOST_BYTES)

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        return one_name(self.paths[index])

    def missing(self) -> list[int]:
        """Return the images whose paths are no files."""
        return self.paths.missing()


class ArrayImages(Source):
    """Images in memory: uint8 [N, H, W] or [N, H, W, C], with labels [N] int64."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, origin: str, class_names: list[str] | None = None):
        self.images, self.labels, self.origin, self.class_names = images, labels, origin, class_names

    def image(self, index: int) -> Image.Image:
        """Return an image."""
        return Image.fromarray(self.images[index])


class Wrapper(Source):
    """Another source, all of it; subclasses change a part.

    Args:
        source: everything that a subclass does not change is taken from it.
    """

    def __init__(self, source: Source):
        self._source = source
        self.labels, self.captions, self.order = source.labels, source.captions, source.order
        self.origin, self.class_names, self.notes = source.origin, source.class_names, source.notes
        self.is_encoded = source.is_encoded

    def __len__(self) -> int:
        return len(self._source)

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        return self._source.describe(index)

    def image(self, index: int) -> Image.Image:
        """Return a decoded image."""
        return self._source.image(index)

    def read(self, index: int) -> bytes:
        """Return the file of an image."""
        return self._source.read(index)

    def missing(self) -> list[int]:
        """Return the images that are not there."""
        return self._source.missing()

    def alternative(self, index: int, attempt: int) -> int:
        """Return the image to take in the place of one that cannot be read."""
        return self._source.alternative(index, attempt)


class Subset(Wrapper):
    """Some images of a source, in any order; one may be there several times.

    Args:
        indices: of the images in the source, [N].
    """

    def __init__(self, source: Source, indices: np.ndarray):
        super().__init__(source)
        self.indices, self.order = np.asarray(indices), None
        labels, captions = source.labels, source.captions
        is_array = isinstance(labels, np.ndarray)
        self.labels = labels[self.indices] if is_array else [labels[index] for index in self.indices]
        self.captions = None if captions is None else _Chosen(captions, self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        return super().describe(self.indices[index])

    def image(self, index: int) -> Image.Image:
        """Return a decoded image."""
        return super().image(self.indices[index])

    def read(self, index: int) -> bytes:
        """Return the file of an image."""
        return super().read(self.indices[index])

    def missing(self) -> list[int]:
        """Return the images that are not there."""
        return np.flatnonzero(np.isin(self.indices, super().missing())).tolist()

    def alternative(self, index: int, attempt: int) -> int:
        """Return the image to take in the place of one that cannot be read."""
        return (index + attempt) % len(self)


class _Chosen:
    """Some items of a sequence, read when they are needed."""

    def __init__(self, items: Sequence, indices: np.ndarray):
        self._items, self._indices = items, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int):
        return self._items[int(self._indices[index])]


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
        """Return the indices of paths that are no files: absent, or pipes and devices."""
        folders: dict[str, int] = {}
        paths = map(self.text, range(len(self)))
        ids = [folders.setdefault(os.path.dirname(path), len(folders)) for path in paths]
        return find_missing(self._keys, np.array(ids, np.int64), list(folders), "")

    def oddities(self, labels: np.ndarray, origin: Path) -> list[str]:
        """Return notes on paths that are there twice, and on names that are not UTF-8."""
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


def find_missing(keys: np.ndarray, folder_ids: np.ndarray, folders: Sequence[str], root: str) -> list[int]:
    """Return the indices of paths that are no files, with one listing of each folder.

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
            present = [hash(os.path.join(folder, entry.name)) for entry in entries if entry.is_file()]
        missing += members[~np.isin(keys[members], np.array(present, np.int64))].tolist()
    return sorted(missing)


# ---- decoding -----------------------------------------------------------------------------------


def read_image(source: Source, index: int, channels: int, upright: bool = True) -> Image.Image:
    """Decode an image of a source as 8-bit grey (1 channel), RGB (3) or RGBA (4).

    Args:
        upright: turn it upright by its EXIF orientation (DATA.EXIF_TRANSPOSE).
    """
    return as_mode(source.image(index), channels, upright)


def why_unreadable(source: Source, index: int, channels: int) -> str | None:
    """Return why an image cannot be decoded; None if it can."""
    try:
        read_image(source, index, channels)
        return None
    except Exception as error:  # damaged files raise nearly anything
        return describe_unreadable(source, index, error)


def describe_unreadable(source: Source, index: int, error: Exception) -> str:
    """Return a message that names an image which cannot be decoded, and the reason."""
    return f"{source.describe(index)}: cannot be read as an image ({one_line(error)})"
