"""Data sets packed into few large files: tar shards with an index, as `tools.pack_dataset` writes them.

    packed.json          version, and per split: shards with their sizes and SHA-256 sums, class names
    train-index.npz      shard, offset, size and label of every image
    train-00000.tar      the images; any tar program reads them

Thousands of images a file instead of one are read several times faster from network and object stores. An image is one
read at a known place; no tar library is needed for it.
"""

import json
import os
from pathlib import Path

import numpy as np

from encoded_images import EncodedImages
from errors import UserError

INFO_FILE = "packed.json"
VERSION = 1
_MOST_OPEN_FILES = 256
TAR_BLOCK_BYTES = 512  # a header, whose first 100 bytes are the name, goes before each file


def is_packed(root: Path) -> bool:
    """Tell whether a directory holds a packed data set."""
    return (root / INFO_FILE).is_file()


def index_file(root: Path, split: str) -> Path:
    """Return where the index of a split is."""
    return root / f"{split}-index.npz"


class PackedImages(EncodedImages):
    """One split of a packed data set.

    Raises:
        UserError: if the split is not there, or a shard is missing or cut.
    """

    def __init__(self, root: Path, split: str):
        self.origin = root / INFO_FILE
        try:
            info = json.loads(self.origin.read_text(encoding="utf-8"))
            about = info["splits"].get(split)
            if info["version"] != VERSION or about is None:
                raise UserError(f"{self.origin}: holds {', '.join(info['splits'])} of version {info['version']}")
            self.class_names = about["class_names"]
            self._shards = [root / shard["file"] for shard in about["shards"]]
            sizes = [shard["size"] for shard in about["shards"]]
            with np.load(index_file(root, split), allow_pickle=False) as index:
                self._shard, self._offset, self._size = index["shard"], index["offset"], index["size"]
                self.labels = index["label"]
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.origin}: damaged, or its index is: {error!r}; pack the data set again") from error
        for shard, size in zip(self._shards, sizes, strict=True):
            if not shard.is_file() or shard.stat().st_size != size:
                raise UserError(f"{shard}: missing or cut, {size:,} bytes expected; pack the data set again")
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
