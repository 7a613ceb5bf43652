"""The index of WebDataset shards: built once, kept beside them, and read a shard at a time.

    INDEX/SHARD.npz     per sample: image, text and JSON as offset and size, labels
    INDEX/SPLIT.npz     per shard: name, size, time, numbers of samples, of captions, of labelled ones; written last

INDEX is `.shard-index/` beside the shards, or in the cache directory where that cannot be written. It holds for shards
of the same names, sizes, times and first and last headers; others are indexed again. An index may come from anyone, so
its numbers are checked when it is read.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import runtime
from errors import UserError, abridge, one_line, printable
from pipeline.decoding import takes_arrays
from pipeline.folders import HIDDEN, describe_suffix, is_hidden
from pipeline.left_out import LeftOut
from pipeline.shard_scan import PLACES, ShardIndex, checksum, scan_shard
from program import terminal
from storage import atomic
from storage.cache import cache_dir
from storage.files import locked, read_arrays

FOLDER = ".shard-index"
_VERSION, _OF_ARRAYS = 3, 100
_LARGEST_LABEL = 10**9
_NEW_ADVICE = "delete it, and it is made again"
# Words by which the name of a shard says to which split it belongs; a shard without one is of the train split.
_OTHER_SPLITS = {"val": ("val", "valid", "validation"), "test": ("test", "testing", "eval", "dev")}


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
        left_out: what is in the shards and is not used.
    """

    folder: Path
    index_folder: Path
    names: np.ndarray
    sizes: np.ndarray
    times: np.ndarray
    counts: dict[str, np.ndarray]
    largest_label: int
    damaged: list[str]
    left_out: LeftOut

    def shard(self, number: int) -> Path:
        """Return the file of a shard."""
        return self.folder / os.fsdecode(bytes(self.names[number]))

    def read(self, number: int) -> ShardIndex:
        """Read the index of a shard; raise UserError if it is damaged, or the shard is another one by now."""
        shard, file = self.shard(number), _index_file(self.index_folder, self.shard(number))
        found = read_shard_index(file, shard, int(self.sizes[number]), int(self.times[number]))
        for needs, counts in self.counts.items():
            if len(found.chosen(needs)) != counts[number]:
                raise UserError(f"{file}: damaged, or of another shard; delete {file.parent}, and it is made again")
        return found


def open_split(folder: Path, split: str, by_name: bool) -> SplitIndex:
    """Return the index of the `.tar` files of a split; what is not there yet is made, with a progress bar.

    Args:
        folder: of the shards.
        by_name: the folder is not that of the split: the names of the shards say to which one they belong.

    Raises:
        UserError: if there are no shards, or one cannot be read.
    """
    shards = _list_shards(folder, split if by_name else None)
    if not shards.names:
        raise UserError(f"{folder}: holds no .tar files of the {split} split")
    index_folder = _index_folder(folder)
    if not os.access(index_folder, os.W_OK) and _read_known(index_folder, folder, split, shards) is None:
        index_folder = _in_cache(folder)  # an index of other shards, or of an older version, on a disk to read only
    # Ranks of one machine wait for the first. A disk without locks, or to read only, has a whole index,
    # or an error follows.
    with locked(index_folder / f"{split}.lock", is_needed=False):
        file = index_folder / f"{split}.npz"
        found = _read_known(index_folder, folder, split, shards)
        if found is None:
            _make_all(folder, index_folder, shards)
            found = _summarise(folder, index_folder, shards)
            write_arrays(file, split_arrays(found))
    return found


def _read_known(index_folder: Path, folder: Path, split: str, shards: "Shards") -> SplitIndex | None:
    return read_split(index_folder / f"{split}.npz", folder, index_folder, shards)


class Shards(NamedTuple):
    """The shards of a folder in order: names, bytes, and times of the last change in nanoseconds."""

    names: list[str]
    sizes: list[int]
    times: list[int]


def shard_split(name: str) -> str:
    """Return the split that the name of a shard tells: "train", "val" or "test"."""
    words = re.split(r"[^a-z]+", name.lower().removesuffix(".tar"))
    return next((split for split, own in _OTHER_SPLITS.items() if set(words) & set(own)), "train")


def other_files(folder: Path, split: str | None) -> LeftOut:
    """Return what is beside the shards of a split in their folder.

    Args:
        split: that the names of the shards must tell; None: all shards are of the split.
    """
    left_out = LeftOut()
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_file(), entry.is_dir()) for entry in entries if entry.name != FOLDER)
    for name, is_file, is_folder in found:
        suffix = os.path.splitext(name)[1].lower()
        if is_hidden(name):
            left_out.add(f"(whole files or folders) {HIDDEN}", name)
        elif is_folder:
            left_out.add("(whole folders) are not looked into", name)
        elif not is_file:
            left_out.add("(whole files) are broken links, or not regular files", name)
        elif suffix == ".tar" and split not in (None, shard_split(name)):
            left_out.add(f"(whole shards) are of the {shard_split(name)} split", name)
        elif suffix not in (".tar", ".json", ".parquet"):  # img2dataset writes these two beside its shards
            left_out.add(f"(whole files) {describe_suffix(suffix)}", name)
    return left_out


def _list_shards(folder: Path, split: str | None) -> Shards:
    try:
        with os.scandir(folder) as entries:
            tars = [e for e in entries if e.name.lower().endswith(".tar") and not is_hidden(e.name) and e.is_file()]
            found = [(e.name, e.stat()) for e in tars if split in (None, shard_split(e.name))]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error
    found.sort(key=lambda pair: pair[0])
    return Shards(
        [name for name, _ in found], [about.st_size for _, about in found], [about.st_mtime_ns for _, about in found]
    )


def _index_folder(folder: Path) -> Path:
    beside = folder / FOLDER
    if beside.is_symlink():  # into what somebody else has
        return _in_cache(folder)
    with contextlib.suppress(OSError):
        beside.mkdir(exist_ok=True)
    if os.access(beside, os.W_OK) or (beside.is_dir() and not os.access(folder, os.W_OK) and any(beside.glob("*.npz"))):
        return beside
    return _in_cache(folder)


def _version() -> int:
    """Return the version of an index; one where arrays are images, too, names other samples."""
    return _VERSION + (_OF_ARRAYS if takes_arrays() else 0)


def _in_cache(folder: Path) -> Path:
    elsewhere = cache_dir() / "shards" / hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    elsewhere.mkdir(parents=True, exist_ok=True)
    return elsewhere


def _index_file(index_folder: Path, shard: Path) -> Path:
    return index_folder / f"{shard.name}.npz"


# ---- one shard ----------------------------------------------------------------------------------


def _make_all(folder: Path, index_folder: Path, shards: Shards) -> None:
    """Index the shards that have no index, or one of an older state, in several processes."""
    jobs = []
    for name, size, time_ns in zip(*shards, strict=True):
        index = _index_file(index_folder, folder / name)
        with contextlib.suppress(UserError):
            read_shard_index(index, folder / name, size, time_ns)
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
            "left_out": np.array(json.dumps(found.left_out)),
            "last_header": np.array(found.last_header),
            "shard": np.array([_version(), size, time_ns, checksum(Path(shard), found.last_header)]),
        },
    )


def read_shard_index(file: Path, shard: Path, shard_size: int, shard_time: int) -> ShardIndex:
    """Read the index of a shard, and check its numbers, and that it is of this shard.

    Raises:
        UserError: if it is missing, damaged, or of another state of the shard.
    """
    arrays = read_arrays(file, _NEW_ADVICE)
    try:
        places = {kind: arrays[kind] for kind in PLACES}
        labels, ends, last_header = arrays["labels"], arrays["label_ends"], int(arrays["last_header"])
        found = ShardIndex(
            places,
            labels,
            ends,
            arrays["has_caption"].astype(bool),
            printable(arrays["damage"].item()),
            _parse_left_out(str(arrays["left_out"])),
            last_header,
        )
        is_good = _are_sane(found, shard_size) and 0 <= last_header < max(1, shard_size)
        is_good = is_good and arrays["shard"].tolist()[:3] == [_version(), shard_size, shard_time]
        is_good = is_good and arrays["shard"].tolist()[3:] == [checksum(shard, last_header)]
    except (KeyError, ValueError, TypeError, IndexError, OSError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({printable(one_line(error))}); {_NEW_ADVICE}") from error
    if not is_good:
        raise UserError(f"{file}: damaged, or {shard} was replaced; delete {file.parent}, and it is made again")
    return found


def _are_sane(index: ShardIndex, shard_size: int) -> bool:
    """Return True if places are inside of the shard, and labels and their numbers as they are written."""
    count, labels, ends = len(index.label_ends), index.labels, index.label_ends
    if any(place.shape != (count, 2) or place.dtype != np.int64 for place in index.places.values()):
        return False
    if labels.ndim != 1 or ends.ndim != 1 or labels.dtype != np.int64 or ends.dtype != np.int64:
        return False
    is_good = index.has_caption.shape == (count,) and (ends[-1] if count else 0) == len(labels)
    is_good &= bool((np.diff(ends, prepend=0) >= 0).all() and ((labels >= 0) & (labels < _LARGEST_LABEL)).all())
    is_good &= bool((index.places["image"] >= 0).all())
    for place in index.places.values():
        absent = (place == -1).all(axis=1)
        inside = (place >= 0).all(axis=1) & (place[:, 0] <= shard_size) & (place[:, 1] <= shard_size - place[:, 0])
        is_good &= bool((absent | inside).all())
    return is_good


def _parse_left_out(text: str) -> LeftOut:
    """Read what `json.dumps` wrote of a `LeftOut`; raise ValueError for anything else."""
    left_out, values = LeftOut(), json.loads(text)
    for reason, (count, name) in dict(values).items():
        if type(count) is not int or count < 1 or not isinstance(name, str):
            raise ValueError("what was left out is not as it was written")
        left_out.add(printable(reason, 120), name, count)
    return left_out


# ---- all shards of a split ----------------------------------------------------------------------


def _summarise(folder: Path, index_folder: Path, shards: Shards) -> SplitIndex:
    counts, largest, damaged = {"none": [], "caption": [], "labels": []}, -1, []
    left_out = LeftOut()
    for name, size, time_ns in zip(*shards, strict=True):
        index = read_shard_index(_index_file(index_folder, folder / name), folder / name, size, time_ns)
        for needs, of_shards in counts.items():
            of_shards.append(len(index.chosen(needs)))
        largest = max(largest, int(index.labels.max(initial=-1)))
        damaged += [index.damage] if index.damage else []
        left_out.merge(index.left_out)
    arrays = {needs: np.array(of_shards, np.int64) for needs, of_shards in counts.items()}
    sizes, times = np.array(shards.sizes, np.int64), np.array(shards.times, np.int64)
    return SplitIndex(folder, index_folder, _as_bytes(shards.names), sizes, times, arrays, largest, damaged, left_out)


def _as_bytes(names: list[str]) -> np.ndarray:
    return np.array([os.fsencode(name) for name in names])


def split_arrays(split: SplitIndex) -> dict[str, np.ndarray]:
    """Return what SPLIT.npz holds."""
    counts = {f"count_{needs}": array for needs, array in split.counts.items()}
    about = {"largest_label": np.array(split.largest_label), "damaged": np.array(split.damaged, str)}
    about["left_out"] = np.array(json.dumps(split.left_out))
    about |= {"sizes": split.sizes, "times": split.times, "version": np.array(_version())}
    return {"names": split.names, **counts, **about}


def read_split(file: Path, folder: Path, index_folder: Path, shards: Shards) -> SplitIndex | None:
    """Return the index of these shards; None if there is none, or it is of others, or of an older state of them."""
    if not file.is_file():
        return None
    try:
        arrays = read_arrays(file, _NEW_ADVICE)
        counts = {needs: arrays[f"count_{needs}"] for needs in ("none", "caption", "labels")}
        largest, damaged = int(arrays["largest_label"]), [printable(text) for text in arrays["damaged"].tolist()]
        left_out = _parse_left_out(str(arrays["left_out"]))
        found = SplitIndex(
            folder, index_folder, arrays["names"], arrays["sizes"], arrays["times"], counts, largest, damaged, left_out
        )
        is_same = int(arrays["version"]) == _version() and np.array_equal(found.names, _as_bytes(shards.names))
        is_same &= np.array_equal(found.sizes, shards.sizes) and np.array_equal(found.times, shards.times)
    except (UserError, KeyError, ValueError, TypeError, RecursionError):
        return None
    is_same &= all(array.dtype == np.int64 and array.shape == (len(shards.names),) for array in counts.values())
    is_same = is_same and all((array >= 0).all() and (array <= counts["none"]).all() for array in counts.values())
    is_same = is_same and (counts["none"] <= found.sizes // BLOCKSIZE).all()  # a header for each image
    return found if is_same and -1 <= largest < _LARGEST_LABEL else None


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
