"""Data sets packed into few large files: tar shards with an index, as `tools.pack_dataset` writes them.

    packed.json          version, and per split: shards with their sizes and SHA-256 sums, class names
    train-index.npz      shard, offset, size and label of every image
    train-00000.tar      the images; any tar program reads them

Thousands of images a file instead of one are read several times faster from network and object stores. An image is one
read at a known place; no tar library is needed for it.
"""

import os
from pathlib import Path

import numpy as np

from errors import UserError, printable
from pipeline.sources import EncodedImages
from storage.array_files import read_arrays
from storage.json_files import is_a, read_json

INFO_FILE = "packed.json"
VERSION = 1
_MOST_OPEN_FILES = 256
_MOST_INDEX_BYTES = 8 << 30  # of 250 million images
_ADVICE = "pack the data set again"
_INDEX_FIELDS = ("shard", "offset", "size", "label")
TAR_BLOCK_BYTES = 512  # a header, whose first 100 bytes are the name, goes before each file


def is_packed(root: Path) -> bool:
    """Return True if a directory holds a packed data set."""
    return (root / INFO_FILE).is_file()


def index_file(root: Path, split: str) -> Path:
    """Return where the index of a split is."""
    return root / f"{split}-index.npz"


def read_info(root: Path) -> dict:
    """Read and check packed.json; see the module's docstring."""
    file = root / INFO_FILE
    info = read_json(file, {"version": int, "splits": dict}, advice=_ADVICE)
    if info["version"] != VERSION:
        raise UserError(f"{file}: of version {info['version']}, and {VERSION} is known here; {_ADVICE}")
    for split, about in info["splits"].items():
        names = about.get("class_names") if isinstance(about, dict) else ()
        is_right = isinstance(about, dict) and isinstance(about.get("shards"), list) and "class_names" in about
        is_right = is_right and (names is None or (isinstance(names, list) and all(type(n) is str for n in names)))
        if not is_right or not all(map(_is_shard, about["shards"])):
            raise UserError(f"{file}: damaged, its {printable(split, 40)} split is not as it was written; {_ADVICE}")
    return info


def _is_shard(entry: object) -> bool:
    if not isinstance(entry, dict) or not is_a(entry.get("size"), int) or not isinstance(entry.get("sha256"), str):
        return False
    name = entry.get("file")
    return isinstance(name, str) and Path(name).name == name and 0 <= entry["size"] < 2**63


def _read_index(file: Path, shard_sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Read shard, offset, size and label of every image; each must lie inside its shard."""
    arrays = read_arrays(file, _MOST_INDEX_BYTES, _ADVICE)
    if not set(_INDEX_FIELDS) <= set(arrays):
        raise UserError(f"{file}: damaged, it lacks some of {', '.join(_INDEX_FIELDS)}; {_ADVICE}")
    index = {key: arrays[key] for key in _INDEX_FIELDS}
    if any(array.dtype != np.int64 or array.shape != index["label"].shape for array in index.values()):
        raise UserError(f"{file}: damaged, its arrays are not as they were written; {_ADVICE}")
    shard, offset, size = index["shard"], index["offset"], index["size"]
    is_inside = (shard >= 0) & (shard < len(shard_sizes)) & (offset >= TAR_BLOCK_BYTES) & (size >= 0)
    is_inside[is_inside] &= size[is_inside] <= shard_sizes[shard[is_inside]] - offset[is_inside]
    if index["label"].ndim != 1 or not is_inside.all():
        raise UserError(f"{file}: damaged, it names places outside of the shards; {_ADVICE}")
    return index


class PackedImages(EncodedImages):
    """One split of a packed data set.

    Raises:
        UserError: if the split is not there, or a shard is missing or cut.
    """

    def __init__(self, root: Path, split: str):
        self.origin = root / INFO_FILE
        splits = read_info(root)["splits"]
        if split not in splits:
            raise UserError(f"{self.origin}: holds {printable(', '.join(splits))} only, no {split} split")
        about = splits[split]
        self.class_names = about["class_names"]
        self._shards = [root / shard["file"] for shard in about["shards"]]
        sizes = np.array([shard["size"] for shard in about["shards"]], np.int64)
        index = _read_index(index_file(root, split), sizes)
        self._shard, self._offset, self._size, self.labels = (index[key] for key in _INDEX_FIELDS)
        for shard, size in zip(self._shards, sizes, strict=True):
            if not shard.is_file() or shard.stat().st_size != size:
                raise UserError(f"{shard}: missing or cut, {size:,} bytes expected; {_ADVICE}")
        self._files: dict[int, int] = {}  # open ones, by shard

    def read(self, index: int) -> bytes:
        """Read an encoded image."""
        return self._read_at(index, int(self._offset[index]), int(self._size[index]))

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        try:
            header = self._read_at(index, int(self._offset[index]) - TAR_BLOCK_BYTES, TAR_BLOCK_BYTES)
            name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
        except OSError:  # it is what a message is about
            name = f"image {index}"
        return f"{self._shards[self._shard[index]]}:{name}"

    def _read_at(self, index: int, offset: int, size: int) -> bytes:
        shard = int(self._shard[index])
        if shard not in self._files:
            if len(self._files) >= _MOST_OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(self._shards[shard], os.O_RDONLY)
        data = os.pread(self._files[shard], size, offset)  # at a place of its own, so processes may share the file
        if len(data) < size:
            raise OSError(f"{self._shards[shard]} ends too early")
        return data
