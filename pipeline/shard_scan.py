"""What is in a WebDataset shard: its samples, and where their images, captions and labels are.

A shard is an uncompressed tar file. Members of the same name before the last dot are a sample: an image with a caption
(`.txt`), labels (`.cls`: integers, separated by commas) or both (`.json` with `caption` and `labels`; `.txt` and `.cls`
take precedence). img2dataset writes such shards. Where a sample `a` has an image, `a.x.png` is a further field of it,
and is left out. No member is unpacked to disk. Everything that is left out is counted by its reason.
"""

import dataclasses
import io
import os
import tarfile
import zlib
from pathlib import Path

import numpy as np

from errors import one_line, printable
from pipeline.decoding import is_image_name
from pipeline.folders import HIDDEN, describe_suffix, is_hidden
from pipeline.left_out import LeftOut
from pipeline.sample_text import parse_caption, parse_labels, parse_object
from storage.files import decode_text, open_file

PLACES = ("image", "text", "json")  # kinds of members of a sample
_KINDS = {".txt": "text", ".cls": "cls", ".json": "json"}
_MOST_TEXT_BYTES = 1 << 20  # largest caption or JSON member
_MOST_IMAGE_BYTES = 1 << 30
_MOST_HEADER_BYTES = 1 << 16  # largest extended header: a long name, or attributes
_MOST_TAIL_BYTES = 16 << 20  # behind the last member
_MOST_MEMBERS = 4_000_000


@dataclasses.dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard.

    Attributes:
        places: {"image" | "text" | "json": [n, 2] int64}, offset and size in the shard; -1 where there is none.
        labels: [m] int64, of all samples one after the other.
        label_ends: [n] int64, where those of each sample end.
        has_caption: [n] bool.
        damage: what is wrong with the shard, or empty; samples before the damage are good.
        left_out: what is not used.
        last_header: offset of the header of the last member.
    """

    places: dict[str, np.ndarray]
    labels: np.ndarray
    label_ends: np.ndarray
    has_caption: np.ndarray
    damage: str = ""
    left_out: LeftOut = dataclasses.field(default_factory=LeftOut)
    last_header: int = 0

    def __len__(self) -> int:
        return len(self.label_ends)

    @property
    def num_labels(self) -> np.ndarray:
        """Number of labels of each sample, [n]."""
        return np.diff(self.label_ends, prepend=0)

    def count_labels(self, row: int) -> int:
        """Return the number of labels of one sample."""
        return int(self.label_ends[row]) - (int(self.label_ends[row - 1]) if row else 0)

    def chosen(self, needs: str) -> np.ndarray:
        """Return the samples that have what is needed: see `datasets.open_source`."""
        if needs in ("none", "label set"):
            return np.arange(len(self))
        return np.flatnonzero(self.has_caption if needs == "caption" else self.num_labels > 0)


class _Headers(io.RawIOBase):
    """A file of which only headers are read: a header that claims more is an error, and takes no memory."""

    def __init__(self, file: io.BufferedReader):
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def scan_shard(shard: Path) -> ShardIndex:
    """Read the headers, captions and labels of a shard; damage ends it, and is named."""
    samples, damage, last_header, number = _Samples(), "", 0, 0
    try:
        with open_file(shard) as file, tarfile.open(fileobj=_Headers(file), mode="r:") as tar:
            size, position = os.fstat(file.fileno()).st_size, -1
            for member in tar:
                tar.members.clear()  # it would remember millions
                number += 1
                if tar.offset <= position or number > _MOST_MEMBERS:
                    raise tarfile.ReadError(f"its headers are damaged near {printable(member.name, 60)}")
                if member.size < 0 or member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"ends within {printable(member.name, 60)}")
                position, last_header = tar.offset, member.offset
                samples.add(member, file)
            _check_end(file, tar.offset, size)
    except (OSError, tarfile.TarError, ValueError, EOFError, RecursionError) as error:
        damage = f"{shard}: damaged ({printable(one_line(error))})"
    kept = samples.with_images()
    labels = [sample.get("labels") or sample.get("json_labels") or () for sample in kept]
    places = {
        kind: np.array([sample.get(kind, (-1, -1)) for sample in kept], np.int64).reshape(-1, 2) for kind in PLACES
    }
    return ShardIndex(
        places,
        np.array([label for own in labels for label in own], np.int64),
        np.cumsum([len(own) for own in labels], dtype=np.int64),
        np.array([bool(sample.get("caption") or sample.get("json_caption")) for sample in kept], bool),
        damage,
        samples.left_out,
        last_header,
    )


def checksum(shard: Path, last_header: int) -> int:
    """Return a sum of the first and the last header of a shard, which another shard of the same size does not have."""
    with open_file(shard) as file:
        first = os.pread(file.fileno(), tarfile.BLOCKSIZE, 0)
        return zlib.crc32(os.pread(file.fileno(), tarfile.BLOCKSIZE, last_header), zlib.crc32(first))


def _check_end(file: io.BufferedReader, offset: int, size: int) -> None:
    """Raise ReadError unless a tar ends as it should, with zeros and nothing else, which tarfile does not check."""
    if size - offset < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("its end is missing")
    file.seek(offset)
    if file.read(_MOST_TAIL_BYTES).strip(b"\0"):
        raise tarfile.ReadError(f"no file follows at byte {offset:,}, but other data")


class _Samples:
    """The samples of a shard, as its members are read.

    Attributes:
        left_out: members that are not used.
    """

    def __init__(self):
        self.left_out = LeftOut()
        self._all: list[tuple[str, dict]] = []
        self._current: dict[str, dict] = {}

    def add(self, member: tarfile.TarInfo, file: io.BufferedReader) -> None:
        """Add a member to the sample that it belongs to; one that the sample has already begins a new one."""
        parts = member.name.split("/")
        stem, suffix = os.path.splitext(parts[-1])
        kind = "image" if is_image_name(parts[-1]) else _KINDS.get(suffix.lower())
        if member.isdir():
            return
        if any(is_hidden(part) for part in parts if part.strip(".")):
            self.left_out.add(HIDDEN, member.name)
        elif not member.isreg() or member.issparse():
            self.left_out.add("are links or other special files", member.name)
        elif kind is None:
            self.left_out.add(describe_suffix(suffix), member.name)
        elif member.size > (_MOST_IMAGE_BYTES if kind == "image" else _MOST_TEXT_BYTES):
            self.left_out.add(f"are larger than {suffix.lower()} files are", member.name)
        else:
            self._put("/".join([*parts[:-1], stem]), kind, member, file)

    def _put(self, key: str, kind: str, member: tarfile.TarInfo, file: io.BufferedReader) -> None:
        sample = self._current.get(key)
        if sample is None or kind in sample:
            sample = self._current[key] = {}
            self._all.append((key, sample))
        sample[kind] = (member.offset_data, member.size)
        if kind != "image":
            try:
                sample |= _understood(kind, os.pread(file.fileno(), member.size, member.offset_data))
            except ValueError as error:
                self.left_out.add(f"({'.' + kind}) are not understood ({printable(error, 60)})", member.name)

    def with_images(self) -> list[dict]:
        """Return what is known of each sample with an image, in order."""
        images = {key for key, sample in self._all if "image" in sample}
        kept = []
        for key, sample in self._all:
            folder, slash, stem = key.rpartition("/")
            first = f"{folder}{slash}{stem.partition('.')[0]}"
            if "image" not in sample:
                self.left_out.add("have no image", key, sum(kind in sample for kind in (*PLACES, "cls")))
            elif first != key and first in images:
                self.left_out.add("are further fields of a sample that has an image", key)
            else:
                kept.append(sample)
        return kept


def _understood(kind: str, content: bytes) -> dict[str, object]:
    """Return the values in a text member; raise ValueError where it is malformed."""
    if kind == "text":
        return {"caption": decode_caption(content)}
    if kind == "cls":
        return {"labels": parse_labels(decode_text(content).strip())}
    _, caption, labels = parse_object(content)
    return {"json_caption": caption, "json_labels": labels}


def decode_caption(content: bytes) -> str:
    """Return the caption in a text member."""
    return parse_caption(content.decode("utf-8-sig", "replace"))
