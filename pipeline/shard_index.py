"""Where the images, captions and labels are in WebDataset shards: built once, kept beside them, read a shard at a time.

A shard is an uncompressed tar file, whose members with a common name before the first dot are a sample: an image
(`.jpg .jpeg .png .webp`) with a caption (`.txt`), labels (`.cls`: whole numbers with commas) or both (`.json` with
`caption` and `labels`; `.txt` and `.cls` go first). img2dataset writes such shards. No member is unpacked to disk.

    INDEX/SHARD.npz     per sample: image, text and JSON as offset and size, labels
    INDEX/SPLIT.npz     per shard: name, size, numbers of samples, of captions, of labelled ones; written last

INDEX is `.shard-index/` beside the shards, or in the cache directory where that cannot be written.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

import runtime
from errors import UserError, abridge, one_line, printable
from pipeline.image_lists import labels_of_json, parse_labels
from program import terminal
from storage import atomic
from storage.cache import cache_dir
from storage.regular_files import read_regular_file

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
FOLDER = ".shard-index"
_VERSION = 1
_MOST_TEXT_BYTES = 1 << 20  # of a caption or its JSON
_MOST_INDEX_BYTES = 4 << 30
_PLACES = ("image", "text", "json")  # of a sample's members


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard.

    Attributes:
        places: {"image" | "text" | "json": [n, 2] int64}, offset and size in the shard; -1 where there is none.
        labels: [m] int64, of all samples one after the other.
        label_ends: [n] int64, where those of each sample end.
        has_caption: [n] bool.
        damage: what is wrong with the shard, or empty; samples before the damage are good.
    """

    places: dict[str, np.ndarray]
    labels: np.ndarray
    label_ends: np.ndarray
    has_caption: np.ndarray
    damage: str = ""

    def __len__(self) -> int:
        return len(self.label_ends)

    @property
    def num_labels(self) -> np.ndarray:
        """Number of labels of each sample, [n]."""
        return np.diff(self.label_ends, prepend=0)

    def num_labels_of(self, row: int) -> int:
        """Return the number of labels of one sample."""
        return int(self.label_ends[row]) - (int(self.label_ends[row - 1]) if row else 0)

    def chosen(self, needs: str) -> np.ndarray:
        """Return the samples that have what is needed: "none", "label", "labels" or "caption"."""
        if needs == "none":
            return np.arange(len(self))
        return np.flatnonzero(self.has_caption if needs == "caption" else self.num_labels > 0)


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """The shards of one split, S of them, a few bytes each.

    Attributes:
        folder: of the shards.
        index_folder: of their indexes.
        names: [S] bytes, names of the shards, in order.
        sizes: [S] int64, bytes.
        counts: {"none" | "caption" | "labels": [S] int64}, samples, and those with a caption or labels.
        largest_label: of all samples; -1 without any.
        damaged: messages on damaged shards.
    """

    folder: Path
    index_folder: Path
    names: np.ndarray
    sizes: np.ndarray
    counts: dict[str, np.ndarray]
    largest_label: int
    damaged: list[str]

    def shard(self, number: int) -> Path:
        """Return the file of a shard."""
        return self.folder / os.fsdecode(bytes(self.names[number]))

    def read(self, number: int) -> ShardIndex:
        """Read the index of a shard; raise UserError if it is damaged."""
        shard = self.shard(number)
        return read_shard_index(_index_of(self.index_folder, shard), int(self.sizes[number]))


def open_split(folder: Path, split: str) -> SplitIndex:
    """Return the index of all `.tar` files of a folder; what is not there yet is made, with a progress bar.

    Raises:
        UserError: if there are no shards, or one cannot be read.
    """
    names = _list_shards(folder)
    if not names:
        raise UserError(f"{folder}: holds no .tar files")
    index_folder = _index_folder(folder)
    with _locked(index_folder / f"{split}.lock"):  # ranks of one machine wait for the first
        file = index_folder / f"{split}.npz"
        found = _read_split(file, folder, index_folder, names)
        if found is None:
            _make_all(folder, index_folder, names)
            found = _summarise(folder, index_folder, names)
            _write_arrays(file, _split_arrays(found))
    return found


def _list_shards(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.name.endswith(".tar"))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error


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


def _make_all(folder: Path, index_folder: Path, names: list[str]) -> None:
    """Index the shards that have no index, or an older one, in several processes."""
    waiting = [name for name in names if not _is_fresh(folder / name, _index_of(index_folder, folder / name))]
    if not waiting:
        return
    jobs = [(str(folder / name), str(_index_of(index_folder, folder / name))) for name in waiting]
    bar = tqdm(total=len(jobs), desc="indexing shards", disable=None, file=terminal(sys.stderr))
    with bar, ProcessPoolExecutor(runtime.num_cores(), get_context("fork")) as pool:
        for _ in pool.map(_make_index, jobs, chunksize=max(1, min(64, len(jobs) // 64))):
            bar.update()


def _is_fresh(shard: Path, index: Path) -> bool:
    try:
        return index.stat().st_mtime_ns >= shard.stat().st_mtime_ns
    except OSError:
        return False


def _make_index(job: tuple[str, str]) -> None:
    shard, index = map(Path, job)
    found = scan_shard(shard)
    _write_arrays(
        index,
        {
            **found.places,
            "labels": found.labels,
            "label_ends": found.label_ends,
            "has_caption": found.has_caption,
            "damage": np.array(found.damage),
            "shard_size": np.array(shard.stat().st_size),
            "version": np.array(_VERSION),
        },
    )


def scan_shard(shard: Path) -> ShardIndex:
    """Read the headers, captions and labels of a shard; damage ends it, and is told."""
    samples, damage = {}, ""
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            size = os.fstat(file.fileno()).st_size
            for member in tar:
                if not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"ends within {printable(member.name, 60)}")
                _add_member(samples, member, file)
    except (OSError, tarfile.TarError, ValueError, EOFError) as error:
        damage = f"{shard}: damaged ({one_line(error)})"
    kept = [sample for sample in samples.values() if "image" in sample]
    labels = [_labels(sample) for sample in kept]
    places = {
        kind: np.array([sample.get(kind, (-1, -1)) for sample in kept], np.int64).reshape(-1, 2) for kind in _PLACES
    }
    return ShardIndex(
        places,
        np.array([label for own in labels for label in own], np.int64),
        np.cumsum([len(own) for own in labels], dtype=np.int64),
        np.array([bool(sample.get("caption") or sample.get("json_caption")) for sample in kept], bool),
        damage,
    )


def _labels(sample: dict) -> tuple[int, ...]:
    return sample.get("labels") or sample.get("json_labels") or ()


def _add_member(samples: dict, member: tarfile.TarInfo, file: io.BufferedReader) -> None:
    """Add a member to the sample that it belongs to; a text that cannot be understood counts as none."""
    folder, _, name = member.name.rpartition("/")
    key, dot, rest = name.partition(".")
    suffix, place = f"{dot}{rest}".lower(), (member.offset_data, member.size)
    sample = samples.setdefault(f"{folder}/{key}", {})
    if suffix in IMAGE_SUFFIXES:
        sample.setdefault("image", place)
    elif suffix in (".txt", ".cls", ".json") and member.size <= _MOST_TEXT_BYTES:
        text = os.pread(file.fileno(), member.size, member.offset_data).decode("utf-8", "replace")
        if suffix == ".txt":
            sample |= {"text": place, "caption": text.strip()}
        elif suffix == ".cls":
            with contextlib.suppress(ValueError):
                sample["labels"] = parse_labels(text)
        else:
            caption, labels = parse_json(text)
            sample |= {"json": place, "json_caption": caption, "json_labels": labels}


def parse_json(text: str) -> tuple[str, tuple[int, ...]]:
    """Return caption and labels of a sample's JSON; what it does not have, or not as it should be, is empty."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return "", ()
    if not isinstance(values, dict):
        return "", ()
    caption = values.get("caption")
    try:
        labels = labels_of_json(values.get("labels", values.get("label", values.get("cls"))))
    except ValueError:
        labels = ()
    return (" ".join(caption.split()) if isinstance(caption, str) else ""), labels


def read_shard_index(file: Path, shard_size: int) -> ShardIndex:
    """Read the index of a shard, and check that its places are inside.

    Raises:
        UserError: if it is missing, damaged, or of another shard.
    """
    arrays = _read_arrays(file)
    try:
        places = {kind: arrays[kind] for kind in _PLACES}
        labels, ends = arrays["labels"], arrays["label_ends"]
        is_good = int(arrays["version"]) == _VERSION and int(arrays["shard_size"]) == shard_size
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


def _summarise(folder: Path, index_folder: Path, names: list[str]) -> SplitIndex:
    sizes, counts, largest, damaged = [], {"none": [], "caption": [], "labels": []}, -1, []
    for name in names:
        size = (folder / name).stat().st_size
        index = read_shard_index(_index_of(index_folder, folder / name), size)
        sizes.append(size)
        for needs, of_shards in counts.items():
            of_shards.append(len(index.chosen(needs)))
        largest = max(largest, int(index.labels.max(initial=-1)))
        damaged += [index.damage] if index.damage else []
    arrays = {needs: np.array(of_shards, np.int64) for needs, of_shards in counts.items()}
    return SplitIndex(folder, index_folder, _as_bytes(names), np.array(sizes, np.int64), arrays, largest, damaged)


def _as_bytes(names: list[str]) -> np.ndarray:
    return np.array([os.fsencode(name) for name in names])


def _split_arrays(split: SplitIndex) -> dict[str, np.ndarray]:
    counts = {f"count_{needs}": array for needs, array in split.counts.items()}
    about = {"largest_label": np.array(split.largest_label), "damaged": np.array(split.damaged, str)}
    return {"names": split.names, "sizes": split.sizes, "version": np.array(_VERSION), **counts, **about}


def _read_split(file: Path, folder: Path, index_folder: Path, names: list[str]) -> SplitIndex | None:
    """Return the index of these shards; None if there is none, or it is of others."""
    if not file.is_file():
        return None
    try:
        arrays = _read_arrays(file)
        counts = {needs: arrays[f"count_{needs}"] for needs in ("none", "caption", "labels")}
        found = SplitIndex(
            folder,
            index_folder,
            arrays["names"],
            arrays["sizes"],
            counts,
            int(arrays["largest_label"]),
            arrays["damaged"].tolist(),
        )
        is_same = int(arrays["version"]) == _VERSION and np.array_equal(found.names, _as_bytes(names))
    except (UserError, KeyError, ValueError, TypeError):
        return None
    if not is_same or any(len(array) != len(names) for array in (found.sizes, *counts.values())):
        return None
    newest = file.stat().st_mtime_ns  # a folder's time is that of the last shard that came, went or was replaced
    is_newer = folder.stat().st_mtime_ns > newest and _has_changed(found)
    return None if is_newer else found


def _has_changed(split: SplitIndex) -> bool:
    """Return True if a shard has another size than when it was indexed."""
    return any(split.shard(number).stat().st_size != size for number, size in enumerate(split.sizes.tolist()))


def _write_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        with atomic.replacing(file) as temporary, open(temporary, "wb") as opened:
            np.savez(opened, **arrays)
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror})") from error


def _read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Read a `.npz` file of plain arrays."""
    try:
        content = io.BytesIO(read_regular_file(file, _MOST_INDEX_BYTES))
        with zipfile.ZipFile(content) as archive:  # np.load would take what a header claims
            if sum(member.file_size for member in archive.infolist()) > content.getbuffer().nbytes:
                raise ValueError("compressed, or its sizes are wrong")
        with np.load(content, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file}: damaged ({printable(one_line(error))}); delete it, and it is made anew") from error


def describe_damage(split: SplitIndex) -> str:
    """Return a message on damaged shards; empty if there are none."""
    return abridge(split.damaged, 3, "; ") if split.damaged else ""
