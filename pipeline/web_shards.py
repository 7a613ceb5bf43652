"""Images with captions or labels in WebDataset shards, as many as a disk holds: memory grows with shards, not images.

Order of an epoch, a function of (seed, epoch): shards at random, and the images of each window of shards at random.
"""

import collections
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tarfile import BLOCKSIZE

import numpy as np

from errors import UserError, abridge, printable
from pipeline import shard_index
from pipeline.labels import PerImage, RaggedLists
from pipeline.sample_text import parse_object
from pipeline.shard_scan import ShardIndex, decode_caption
from pipeline.sources import SKIP_ADVICE, Source
from storage.files import read_json

WINDOW_SHARDS = (
    16  # shards whose images are shuffled together; of 10,000 images each, as img2dataset writes them: 160,000
)
_INDEXES_KEPT = 4 * WINDOW_SHARDS
_MOST_OPEN_FILES = 256
_NEAR_ATTEMPTS = 10
PACK_FILE = "packed.json"  # which `tools.pack_dataset` writes beside the folders of shards
PACK_VERSION = 2


def is_packed(root: Path) -> bool:
    """Return True if `tools.pack_dataset` made a directory."""
    return (root / PACK_FILE).is_file()


def read_pack(root: Path) -> dict:
    """Read packed.json: the settings of the packing, and `class_names` or None.

    Raises:
        UserError: if it is damaged, or of the format that was written before version 2.
    """
    file, advice = root / PACK_FILE, "pack the data set again: python -m tools.pack_dataset SRC NEW"
    info = read_json(file, {"version": int}, advice=advice)
    if info["version"] != PACK_VERSION:
        raise UserError(f"{file}: a pack of an older format, which is not read any more; {advice}")
    names = info.get("class_names")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{file}: damaged, its class_names are not a list of names; {advice}")
    return info


class WebShards(Source):
    """One split of a data set of shards.

    Args:
        root: directory with `SPLIT/*.tar`; or with `*.tar` itself, where names with val, test or the like are of these
            splits.
        split: "train" or "val".
        needs: what a sample must have to be taken, see `datasets.open_source`.
        bad: "error", or "skip": samples before the damage of a shard are used.

    Attributes:
        labels: of one label per image, an array; else read by index when they are needed, as are captions.
        num_images: N.
        left_out: number of samples without what is needed.
        index: of all shards.
    """

    is_encoded = True

    def __init__(self, root: Path, split: str, needs: str, bad: str = "error"):
        self.class_names = read_pack(root).get("class_names") if is_packed(root) else None
        folder = root / split if (root / split).is_dir() else root
        self.origin, self._needs = folder, needs
        by_name = folder == root
        self.index = shard_index.open_split(folder, split, by_name)
        damage = shard_index.describe_damage(self.index)
        if damage and bad == "error":
            raise UserError(f"{damage}{SKIP_ADVICE}")
        self.counts = self.index.counts[{"label": "labels", "label set": "none"}.get(needs, needs)]
        self._ends = np.cumsum(self.counts)
        self.num_images = int(self._ends[-1])
        self.left_out = int(self.index.counts["none"].sum()) - self.num_images
        self.notes = self._describe_left_out(damage, root, folder, split if by_name else None)
        if self.num_images == 0:
            what = "images" if needs == "none" else f"images with {'captions' if needs == 'caption' else 'labels'}"
            why = abridge(self.notes, 3, "; ")
            raise UserError(f"{folder}: its {len(self.counts):,} shards hold no {what}" + (f"; {why}" if why else ""))
        self._indexes: collections.OrderedDict[int, tuple[ShardIndex, np.ndarray]] = collections.OrderedDict()
        self._files: dict[int, int] = {}
        self.has_labels_in_memory = False
        self.labels = self.single_labels() if needs == "label" else PerImage(self.num_images, self._labels_at)
        self.has_labels_in_memory = needs == "label"
        has_captions = bool(self.index.counts["caption"].any())
        self.captions = PerImage(self.num_images, self._caption_at) if has_captions else None

    def _describe_left_out(self, damage: str, root: Path, folder: Path, split: str | None) -> list[str]:
        notes = [f"damaged shards, used up to the damage: {damage}"] * bool(damage)
        notes += shard_index.other_files(folder, split).notes(folder) + self.index.left_out.notes(folder)
        if folder != root:
            loose = sorted(path.name for path in root.glob("*.tar"))
            what = f"shards are beside the folder {folder.name}, and are left out"
            notes += [f"{root}: {len(loose):,} {what}: {abridge([printable(name) for name in loose], 3)}"] * bool(loose)
        what = "a caption" if self._needs == "caption" else "labels"
        return notes + [f"{folder}: {self.left_out:,} images without {what} are left out"] * bool(self.left_out)

    def __len__(self) -> int:
        return self.num_images

    @property
    def largest_label(self) -> int:
        """The largest label of all samples, from the index."""
        return self.index.largest_label

    def label_lists(self) -> RaggedLists:
        """Return the labels of all images as lists; where they are not in memory, the index of every shard is read."""
        if self.has_labels_in_memory:
            return super().label_lists()
        labels, lengths = [], []
        for index in map(self.index.read, range(len(self.counts))):
            is_taken = np.isin(np.arange(len(index)), index.chosen(self._needs))
            labels.append(index.labels[np.repeat(is_taken, index.num_labels)])
            lengths.append(index.num_labels[is_taken])
        return RaggedLists(np.concatenate(labels), np.cumsum(np.concatenate(lengths)))

    def summary(self) -> str:
        """Return a line with the numbers of images and shards."""
        what = super().summary() if self.has_labels_in_memory else f"{len(self):,} images"
        captions = "" if self.captions is None or self.has_labels_in_memory else " with captions"
        return f"{what}{captions} in {len(self.counts):,} shards"

    def _check_labels(self, num_classes: int, is_val: bool) -> tuple[list[str], list[str]]:
        """Check the largest label only, where labels are not in memory."""
        if self.has_labels_in_memory:
            return super()._check_labels(num_classes, is_val)
        largest, limit = self.largest_label, num_classes - 1
        problem = f"has the label {largest:,}, and labels go from 0 to {limit} (MODEL.NUM_CLASSES={num_classes})"
        return [problem] * (largest >= num_classes), []

    def alternative(self, index: int, attempt: int) -> int:
        """Return the image to take in the place of one that cannot be read: a near one, then those of other shards."""
        if attempt <= _NEAR_ATTEMPTS:
            return (index + attempt) % len(self)
        shard = (self._locate(index)[0] + attempt - _NEAR_ATTEMPTS) % len(self.counts)
        return int(self._ends[shard] - self.counts[shard]) % len(self)

    def order(self, seed: int, epoch: int) -> "WindowOrder":
        """Return the order of the images in an epoch."""
        return WindowOrder(self.counts, seed, epoch)

    def read(self, index: int) -> bytes:
        """Read an encoded image."""
        return self._member(index, "image")

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        shard, number = self._locate(index)
        with contextlib.suppress(OSError, UserError):  # then the message is about the shard
            name = self._member_name(*self._sample(index))
            return f"{self.index.shard(shard)}: image {number}, {printable(name, 100)}"
        return f"{self.index.shard(shard)}: image {number}"

    def name(self, index: int) -> str:
        """Return shard, place and name of an image; the place is the same whatever is needed of a sample."""
        shard, found, row = self._sample(index)
        return f"{self.index.shard(shard).name}/{row}/{self._member_name(shard, found, row)}"

    def content(self) -> Iterator[str]:
        """Yield a line for each shard."""
        for shard, count in enumerate(self.counts.tolist()):
            path = self.index.shard(shard)
            yield f"{path.name}: {count} images, {path.stat().st_size} bytes"

    def order_among(self, indices: np.ndarray) -> Callable:
        """Return the order of some of the images in an epoch, shard by shard, too."""
        counts = np.bincount(np.searchsorted(self._ends, indices, side="right"))
        return functools.partial(WindowOrder, counts[counts > 0])

    # ---- reading

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the shard of an image, and its number among those of the shard that are taken."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, int(index) - int(self._ends[shard] - self.counts[shard])

    def _sample(self, index: int) -> tuple[int, ShardIndex, int]:
        """Return the shard of an image, its index, and the row of the image there."""
        shard, number = self._locate(index)
        if shard not in self._indexes:
            if len(self._indexes) >= _INDEXES_KEPT:
                self._indexes.popitem(last=False)
            found = self.index.read(shard)
            self._indexes[shard] = (found, found.chosen(self._needs))
        found, chosen = self._indexes[shard]
        return shard, found, int(chosen[number])

    def _member_name(self, shard: int, found: ShardIndex, row: int) -> str:
        """Return the name of an image in its shard, up to 100 characters."""
        header = self._read_at(shard, int(found.places["image"][row][0]) - BLOCKSIZE, BLOCKSIZE)
        return header[:100].rstrip(b"\0").decode("utf-8", "replace")  # tar's headers begin with it

    def _member(self, index: int, kind: str) -> bytes:
        """Read a member of a sample; empty if it has none."""
        shard, found, row = self._sample(index)
        offset, size = found.places[kind][row].tolist()
        if offset < 0:
            return b""
        return self._read_at(shard, offset, size)

    def _read_at(self, shard: int, offset: int, size: int) -> bytes:
        if shard not in self._files:
            if len(self._files) >= _MOST_OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(self.index.shard(shard), os.O_RDONLY)
        data = os.pread(self._files[shard], size, offset)  # without a shared position, as processes share the file
        if len(data) < size:
            raise OSError(f"{self.index.shard(shard)} ends too early")
        return data

    def _labels_at(self, index: int) -> list[int]:
        _, found, row = self._sample(index)
        end = int(found.label_ends[row])
        return found.labels[end - int(found.count_labels(row)) : end].tolist()

    def _caption_at(self, index: int) -> str:
        with contextlib.suppress(ValueError):  # the index counts malformed JSON
            return decode_caption(self._member(index, "text")) or parse_object(self._member(index, "json"))[1]
        return ""


class WindowOrder:
    """The order of an epoch: `order[places]` gives the images at these places.

    Only the windows that are asked for are in memory.

    Args:
        counts: [S] images per shard.
        seed, epoch: the order is a function of these.
    """

    def __init__(self, counts: np.ndarray, seed: int, epoch: int):
        self._counts, self._seed, self._epoch = counts, seed, epoch
        self._firsts = np.cumsum(counts) - counts  # the first image of each shard
        self._shards = np.random.default_rng([seed, epoch]).permutation(len(counts))
        sizes = counts[self._shards]
        self._ends = np.add.reduceat(sizes, np.arange(0, len(sizes), WINDOW_SHARDS)).cumsum()
        self._kept: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        places = np.asarray(places, np.int64)
        windows = np.searchsorted(self._ends, places, side="right")
        images = np.empty(places.shape, np.int64)
        for window in np.unique(windows):
            first = int(self._ends[window - 1]) if window else 0
            is_here = windows == window
            images[is_here] = self._window(int(window))[places[is_here] - first]
        return images

    def _window(self, window: int) -> np.ndarray:
        """Return the images of a window in their order."""
        if window not in self._kept:
            shards = self._shards[window * WINDOW_SHARDS : (window + 1) * WINDOW_SHARDS]
            images = np.concatenate([self._firsts[s] + np.arange(self._counts[s]) for s in shards])
            if len(self._kept) >= 2:
                self._kept.popitem(last=False)
            self._kept[window] = np.random.default_rng([self._seed, self._epoch, window]).permutation(images)
        return self._kept[window]
