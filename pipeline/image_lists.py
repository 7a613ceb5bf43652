"""Images that a text file lists with captions or labels, one per line.

    SPLIT.tsv        path<TAB>caption
    SPLIT.jsonl      {"image": path, "caption": text, "labels": [3, 14]}, one or both of the last two
    SPLIT_list.txt   path label,label,...

Paths are relative to the file. It stays on disk: in memory are the place of each line and the labels, so a list may
have more lines than fit. An image without a caption, or without labels, is left out where these are needed.
"""

import dataclasses
import json
import mmap
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from errors import UserError, abridge, one_line, printable
from pipeline.sources import EncodedImages
from storage.regular_files import read_regular_file

_MOST_BYTES = 1 << 30  # of a photo
_LONGEST_PATH = 4095  # bytes, Linux
_MOST_LABELS = 10_000  # of an image
_SHOWN = 5
_BOM = b"\xef\xbb\xbf"  # which some editors write before UTF-8


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a list: path, caption ("" without one) and labels."""

    path: str
    caption: str
    labels: tuple[int, ...]


class RaggedLists:
    """Lists of whole numbers of any lengths, in two arrays."""

    def __init__(self, flat: np.ndarray, ends: np.ndarray):
        self.flat, self._ends = flat, ends

    @property
    def lengths(self) -> np.ndarray:
        """Length of each list."""
        return np.diff(self._ends, prepend=0)

    @property
    def owners(self) -> np.ndarray:
        """Which list each number of `flat` is of."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> list[int]:
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = int(self._ends[index - 1]) if index else 0
        return self.flat[first : int(self._ends[index])].tolist()


class ListedImages(EncodedImages):
    """The images of a list file; see the module's docstring.

    Args:
        file: the list.
        needs: "label", "labels" or "caption": images without are left out; "none": all are taken.
        list_outside: it may name files outside its directory.

    Attributes:
        captions: texts, read when they are needed; None for a list without any.
        left_out: number of images without what is needed.
    """

    class_names = None

    def __init__(self, file: Path, needs: str, list_outside: bool = False):
        self.origin = file
        self._parse = _parser_of(file)
        self._list_outside = list_outside
        self._text = _map(file)
        starts, flat, ends, has_captions, self.left_out = self._scan(needs)
        self._starts = np.array(starts, np.int64)
        self.labels = RaggedLists(np.array(flat, np.int64), np.array(ends, np.int64))
        self.captions = _Captions(self) if has_captions else None

    def _scan(self, needs: str) -> tuple[list[int], list[int], list[int], bool, int]:
        """Check every line, and return where those start that are taken, with their labels."""
        starts, flat, ends, problems, left_out, num_captions = [], [], [], [], 0, 0
        for number, (start, line) in enumerate(_lines(self._text), start=1):
            try:
                entry = self._parse(line.decode("utf-8"))
                self._check_path(entry.path)
            except ValueError as error:  # UnicodeDecodeError is one
                what = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
                problems.append(f"line {number}: {what}")
                if len(problems) > 1000:
                    break
                continue
            if (needs == "caption" and not entry.caption) or (needs in ("label", "labels") and not entry.labels):
                left_out += 1
                continue
            starts.append(start)
            flat += entry.labels
            ends.append(len(flat))
            num_captions += bool(entry.caption)
        if problems:
            raise UserError(f"{self.origin}: {abridge(problems, _SHOWN, '; ')}")
        if not starts and left_out:
            what = "captions" if needs == "caption" else "labels"
            raise UserError(f"{self.origin}: none of its {left_out:,} images has {what}")
        return starts, flat, ends, num_captions > 0, left_out

    def _check_path(self, path: str) -> None:
        if not path or "\0" in path or len(path.encode("utf-8", "surrogatepass")) > _LONGEST_PATH:
            raise ValueError(f"{printable(path, 60)!r} is no path")
        if not self._list_outside and (os.path.isabs(path) or ".." in Path(path).parts):
            raise ValueError(f"{path[:80]!r} is outside; -opts DATA.LIST_OUTSIDE True allows it")

    def __len__(self) -> int:
        return len(self._starts)

    def entry(self, index: int) -> Entry:
        """Parse the line of an image."""
        start = int(self._starts[index])
        end = self._text.find(b"\n", start)
        line = self._text[start : end if end >= 0 else len(self._text)]
        return self._parse(line.decode("utf-8").removesuffix("\r"))

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.origin.parent / self.entry(index).path

    def read(self, index: int) -> bytes:
        """Read an image file."""
        return read_regular_file(self.path(index), _MOST_BYTES)

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        return str(self.path(index))


class _Captions:
    """The captions of a list, by index."""

    def __init__(self, images: ListedImages):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> str:
        return self._images.entry(index).caption


def find_list(root: Path, split: str) -> Path:
    """Return the list file of a split; raise UserError if there is none, or more than one."""
    names = [f"{split}.tsv", f"{split}.jsonl", f"{split}_list.txt"]
    found = [root / name for name in names if (root / name).is_file()]
    if len(found) != 1:
        what = f"has {' and '.join(file.name for file in found)}" if found else "has no list"
        raise UserError(f"{root}: {what}; exactly one of {', '.join(names)} is needed there")
    return found[0]


def parse_labels(text: str) -> tuple[int, ...]:
    """Read whole numbers that are separated by commas; raise ValueError for anything else."""
    if not text.strip():
        return ()
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > _MOST_LABELS or not all(re.fullmatch(r"\d{1,9}", part) for part in parts):
        raise ValueError(f"{printable(text, 60)!r} are no labels, which are whole numbers separated by commas")
    return tuple(map(int, parts))


def labels_of_json(value: object) -> tuple[int, ...]:
    """Return the labels of a JSON value: a number, a list of them, or null."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    if len(values) > _MOST_LABELS or not all(type(label) is int and 0 <= label < 10**9 for label in values):
        raise ValueError(f"labels must be whole numbers, not {printable(json.dumps(value), 60)}")
    return tuple(values)


def _parser_of(file: Path) -> Callable[[str], Entry]:
    return {".tsv": _parse_tsv, ".jsonl": _parse_json, ".txt": _parse_labels}[file.suffix]


def _parse_tsv(line: str) -> Entry:
    path, tab, caption = line.partition("\t")
    if not tab:
        raise ValueError(f"expected 'path<TAB>caption', found {printable(line, 60)!r} without a tab")
    return Entry(path.strip(), " ".join(caption.split()), ())


def _parse_labels(line: str) -> Entry:
    if len(line.split()) == 1:
        return Entry(line.strip(), "", ())
    found = re.fullmatch(r"(.*\S)\s+([\d,]+)", line.strip())  # a path may hold spaces
    if not found:
        raise ValueError(f"expected 'path label,label', found {printable(line, 60)!r}")
    return Entry(found[1], "", parse_labels(found[2]))


def _parse_json(line: str) -> Entry:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({one_line(error)})") from error
    path = values.get("image") if isinstance(values, dict) else None
    if not isinstance(path, str):
        raise ValueError('expected {"image": path, "caption": text, "labels": [...]}')
    caption = values.get("caption") or ""
    if not isinstance(caption, str):
        raise ValueError(f"its caption is {printable(json.dumps(caption), 40)}, which is no text")
    caption = caption.encode("utf-8", "replace").decode("utf-8")  # JSON can hold halves of surrogate pairs
    return Entry(path, " ".join(caption.split()), labels_of_json(values.get("labels", values.get("label"))))


def _map(file: Path) -> mmap.mmap | bytes:
    """Map a text file into memory; pages that are not read do not count."""
    try:
        with open(file, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({one_line(error)})") from error


def _lines(text: mmap.mmap | bytes) -> Iterator[tuple[int, bytes]]:
    """Yield where each line starts that is not empty, and the line."""
    start = len(_BOM) if text[: len(_BOM)] == _BOM else 0
    while start < len(text):
        end = text.find(b"\n", start)
        end = len(text) if end < 0 else end
        line = text[start:end].removesuffix(b"\r")
        if line.strip():
            yield start, line
        start = end + 1
