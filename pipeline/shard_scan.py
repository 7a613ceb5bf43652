"""What is in a WebDataset shard: its samples, and where their images, captions and labels are.

A shard is an uncompressed tar file, whose members with a common name before the first dot are a sample: an image
(`.jpg .jpeg .png .webp`) with a caption (`.txt`), labels (`.cls`: whole numbers with commas) or both (`.json` with
`caption` and `labels`; `.txt` and `.cls` go first). img2dataset writes such shards. No member is unpacked to disk.
"""

import dataclasses
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np

from errors import one_line, printable
from pipeline.image_lists import labels_of_json, parse_labels

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PLACES = ("image", "text", "json")  # of a sample's members
_KINDS = {".txt": "text", ".cls": "cls", ".json": "json"}
_MOST_TEXT_BYTES = 1 << 20  # of a caption or its JSON


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


def scan_shard(shard: Path) -> ShardIndex:
    """Read the headers, captions and labels of a shard; damage ends it, and is told."""
    samples, damage = _Samples(), ""
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            size = os.fstat(file.fileno()).st_size
            for member in tar:
                if not member.isreg() or member.issparse():
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"ends within {printable(member.name, 60)}")
                samples.add(member, file)
            _check_end(file, tar.offset, size)
    except (OSError, tarfile.TarError, ValueError, EOFError) as error:
        damage = f"{shard}: damaged ({one_line(error)})"
    kept = [sample for sample in samples.all if "image" in sample]
    labels = [_labels(sample) for sample in kept]
    places = {
        kind: np.array([sample.get(kind, (-1, -1)) for sample in kept], np.int64).reshape(-1, 2) for kind in PLACES
    }
    return ShardIndex(
        places,
        np.array([label for own in labels for label in own], np.int64),
        np.cumsum([len(own) for own in labels], dtype=np.int64),
        np.array([bool(sample.get("caption") or sample.get("json_caption")) for sample in kept], bool),
        damage,
    )


def _check_end(file: io.BufferedReader, offset: int, size: int) -> None:
    """Raise ReadError unless a tar ends as it should, with zeros and nothing else, which tarfile does not check."""
    if size - offset < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing")
    file.seek(offset)
    while chunk := file.read(1 << 20):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError(f"no file follows at byte {offset:,}, but other data")


def _labels(sample: dict) -> tuple[int, ...]:
    return sample.get("labels") or sample.get("json_labels") or ()


class _Samples:
    """The samples of a shard, as its members are read.

    Attributes:
        all: what is known of each, in order.
    """

    def __init__(self):
        self.all: list[dict] = []
        self._current: dict[str, dict] = {}

    def add(self, member: tarfile.TarInfo, file: io.BufferedReader) -> None:
        """Add a member to the sample that it belongs to; one that the sample has already begins a new one.

        A text that cannot be understood counts as none.
        """
        folder, _, name = member.name.rpartition("/")
        key, dot, rest = name.partition(".")
        suffix, place = f"{dot}{rest}".lower(), (member.offset_data, member.size)
        kind = "image" if suffix in IMAGE_SUFFIXES else _KINDS.get(suffix)
        if kind is None:
            return
        sample = self._current.get(f"{folder}/{key}")
        if sample is None or kind in sample:
            sample = self._current[f"{folder}/{key}"] = {}
            self.all.append(sample)
        sample[kind] = place
        if kind != "image" and member.size <= _MOST_TEXT_BYTES:
            text = os.pread(file.fileno(), member.size, member.offset_data).decode("utf-8", "replace")
            sample |= _understood(kind, text)


def _understood(kind: str, text: str) -> dict[str, object]:
    """Return what a text member says."""
    if kind == "text":
        return {"caption": text.strip()}
    if kind == "json":
        caption, labels = parse_json(text)
        return {"json_caption": caption, "json_labels": labels}
    try:
        return {"labels": parse_labels(text)}
    except ValueError:
        return {}


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
