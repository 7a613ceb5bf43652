"""The index of WebDataset shards: built once, kept beside them, and read a shard at a time.

    INDEX/SHARD.npz     per sample: image, text and JSON as offset and size, labels
    INDEX/SPLIT.npz     per shard: name, size, time, numbers of samples, of captions, of labelled ones; written last

INDEX is `.shard-index/` beside the shards, or in the cache directory where that cannot be written. It holds for shards
of the same names, sizes and times; others are indexed anew.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import runtime
from errors import UserError, abridge, one_line
from pipeline.shard_scan import PLACES, ShardIndex, scan_shard
from program import terminal
from storage import atomic
from storage.array_files import read_arrays
from storage.cache import cache_dir

FOLDER = ".shard-index"
_VERSION = 2
_MOST_INDEX_BYTES = 4 << 30


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """The shards of one split, S of them, a few bytes each.

    Attributes:
        folder: of the shards.
        index_folder: of their indexes.
        names: [S] bytes, names of the shards, in order.
        sizes: [S] int64, bytes.
        times: [S] int64, when they were last changed, in nanoseconds.
        counts: {"none" | "caption" | "labels": [S] int64}, samples, and those with a caption or labels.
        largest_label: of all samples; -1 without any.
        damaged: messages on damaged shards.
    """

    folder: Path
    index_folder: Path
    names: np.ndarray
    sizes: np.ndarray
    times: np.ndarray
    counts: dict[str, np.ndarray]
    largest_label: int
    damaged: list[str]

    def shard(self, number: int) -> Path:
        """Return the file of a shard."""
        return self.folder / os.fsdecode(bytes(self.names[number]))

    def read(self, number: int) -> ShardIndex:
        """Read the index of a shard; raise UserError if it is damaged."""
        shard = self.shard(number)
        return read_shard_index(_index_of(self.index_folder, shard), int(self.sizes[number]), int(self.times[number]))


def open_split(folder: Path, split: str) -> SplitIndex:
    """Return the index of all `.tar` files of a folder; what is not there yet is made, with a progress bar.

    Raises:
        UserError: if there are no shards, or one cannot be read.
    """
    shards = _list_shards(folder)
    if not shards.names:
        raise UserError(f"{folder}: holds no .tar files")
    index_folder = _index_folder(folder)
    with _locked(index_folder / f"{split}.lock"):  # ranks of one machine wait for the first
        file = index_folder / f"{split}.npz"
        found = read_split(file, folder, index_folder, shards)
        if found is None:
            _make_all(folder, index_folder, shards)
            found = _summarise(folder, index_folder, shards)
            write_arrays(file, split_arrays(found))
    return found


class Shards(NamedTuple):
    """The shards of a folder in order: names, bytes, and times of the last change in nanoseconds."""

    names: list[str]
    sizes: list[int]
    times: list[int]


def _list_shards(folder: Path) -> Shards:
    try:
        with os.scandir(folder) as entries:
            found = [(e.name, e.stat()) for e in entries if e.name.endswith(".tar") and e.is_file()]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error
    found.sort(key=lambda pair: pair[0])
    return Shards(
        [name for name, _ in found], [about.st_size for _, about in found], [about.st_mtime_ns for _, about in found]
    )


def _index_folder(folder: Path) -> Path:
    beside = folder / FOLDER
    with contextlib.suppress(OSError):
        beside.mkdir(exist_ok=True)
    if os.access(beside, os.W_OK) or (beside.is_dir() and not os.access(folder, os.W_OK) and any(beside.glob("*.npz"))):
        return beside
    elsewhere = cache_dir() / "shards" / hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    elsewhere.mkdir(parents=True, exist_ok=True)
    return elsewhere


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        lock = open(path, "w", encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError:  # a disk that cannot be written has a whole index, or an error follows
        yield
        return
    with lock:
        with contextlib.suppress(OSError):  # not every network disk can lock; files are written whole anyway
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _index_of(index_folder: Path, shard: Path) -> Path:
    return index_folder / f"{shard.name}.npz"


# ---- one shard ----------------------------------------------------------------------------------


def _make_all(folder: Path, index_folder: Path, shards: Shards) -> None:
    """Index the shards that have no index, or one of an older state, in several processes."""
    jobs = []
    for name, size, time_ns in zip(*shards, strict=True):
        index = _index_of(index_folder, folder / name)
        with contextlib.suppress(UserError):
            read_shard_index(index, size, time_ns)
            continue
        jobs.append((str(folder / name), str(index), size, time_ns))
    if not jobs:
        return
    bar = tqdm(total=len(jobs), desc="indexing shards", disable=None, file=terminal(sys.stderr))
    with bar, ProcessPoolExecutor(runtime.num_cores(), get_context("fork")) as pool:
        for _ in pool.map(_make_index, jobs, chunksize=max(1, min(64, len(jobs) // 64))):
            bar.update()


def _make_index(job: tuple[str, str, int, int]) -> None:
    shard, index, size, time_ns = job
    found = scan_shard(Path(shard))
    write_arrays(
        Path(index),
        {
            **found.places,
            "labels": found.labels,
            "label_ends": found.label_ends,
            "has_caption": found.has_caption,
            "damage": np.array(found.damage),
            "shard": np.array([_VERSION, size, time_ns]),
        },
    )


def read_shard_index(file: Path, shard_size: int, shard_time: int) -> ShardIndex:
    """Read the index of a shard, and check that its places are inside.

    Raises:
        UserError: if it is missing, damaged, or of another state of the shard.
    """
    arrays = read_arrays(file, _MOST_INDEX_BYTES, "delete it, and it is made anew")
    try:
        places = {kind: arrays[kind] for kind in PLACES}
        labels, ends = arrays["labels"], arrays["label_ends"]
        is_good = arrays["shard"].tolist() == [_VERSION, shard_size, shard_time]
        count = len(ends)
        is_good &= all(place.shape == (count, 2) and place.dtype == np.int64 for place in places.values())
        is_good &= arrays["has_caption"].shape == (count,) and (count == 0 or ends[-1] == len(labels))
        is_good &= all(((p[:, 0] < 0) | (p[:, 0] + p[:, 1] <= shard_size)).all() for p in places.values())
        is_good &= bool((places["image"] >= 0).all())
        found = ShardIndex(places, labels, ends, arrays["has_caption"].astype(bool), str(arrays["damage"]))
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"{file}: damaged ({one_line(error)}); delete it, and it is made anew") from error
    if not is_good:
        raise UserError(f"{file}: damaged, or of another shard; delete {file.parent}, and it is made anew")
    return found


# ---- all shards of a split ----------------------------------------------------------------------


def _summarise(folder: Path, index_folder: Path, shards: Shards) -> SplitIndex:
    counts, largest, damaged = {"none": [], "caption": [], "labels": []}, -1, []
    for name, size, time_ns in zip(*shards, strict=True):
        index = read_shard_index(_index_of(index_folder, folder / name), size, time_ns)
        for needs, of_shards in counts.items():
            of_shards.append(len(index.chosen(needs)))
        largest = max(largest, int(index.labels.max(initial=-1)))
        damaged += [index.damage] if index.damage else []
    arrays = {needs: np.array(of_shards, np.int64) for needs, of_shards in counts.items()}
    sizes, times = np.array(shards.sizes, np.int64), np.array(shards.times, np.int64)
    return SplitIndex(folder, index_folder, _as_bytes(shards.names), sizes, times, arrays, largest, damaged)


def _as_bytes(names: list[str]) -> np.ndarray:
    return np.array([os.fsencode(name) for name in names])


def split_arrays(split: SplitIndex) -> dict[str, np.ndarray]:
    """Return what SPLIT.npz holds."""
    counts = {f"count_{needs}": array for needs, array in split.counts.items()}
    about = {"largest_label": np.array(split.largest_label), "damaged": np.array(split.damaged, str)}
    about |= {"sizes": split.sizes, "times": split.times, "version": np.array(_VERSION)}
    return {"names": split.names, **counts, **about}


def read_split(file: Path, folder: Path, index_folder: Path, shards: Shards) -> SplitIndex | None:
    """Return the index of these shards; None if there is none, or it is of others, or of an older state of them."""
    if not file.is_file():
        return None
    try:
        arrays = read_arrays(file, _MOST_INDEX_BYTES, "delete it, and it is made anew")
        counts = {needs: arrays[f"count_{needs}"] for needs in ("none", "caption", "labels")}
        largest, damaged = int(arrays["largest_label"]), arrays["damaged"].tolist()
        found = SplitIndex(
            folder, index_folder, arrays["names"], arrays["sizes"], arrays["times"], counts, largest, damaged
        )
        is_same = int(arrays["version"]) == _VERSION and np.array_equal(found.names, _as_bytes(shards.names))
        is_same &= np.array_equal(found.sizes, shards.sizes) and np.array_equal(found.times, shards.times)
    except (UserError, KeyError, ValueError, TypeError):
        return None
    return found if is_same and all(len(array) == len(shards.names) for array in counts.values()) else None


def write_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a `.npz` file, whole or not at all."""
    try:
        with atomic.replacing(file) as temporary, open(temporary, "wb") as opened:
            np.savez(opened, **arrays)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from error


def describe_damage(split: SplitIndex) -> str:
    """Return a message on damaged shards; empty if there are none."""
    return abridge(split.damaged, 3, "; ") if split.damaged else ""
