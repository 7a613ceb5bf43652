"""Images that a text file lists with captions or labels, one per line.

    SPLIT.tsv        path<TAB>caption
    SPLIT.jsonl      {"image": path, "caption": text, "labels": [3, 14]}, one or both of the last two
    SPLIT_list.txt   path label,label,...

Lists of several labels may also have a zero or a one for each class, as PaddleClas's have: a one at place K is label K.
Paths are relative to the file. Only the offset of each line and the labels are in memory; the rest is read from the
file, so a list may be larger than the memory.
"""

import dataclasses
import os
import re
import weakref
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from errors import UserError, abridge, one_name, printable
from pipeline.decoding import is_image_name
from pipeline.file_images import describe_repeats, find_missing
from pipeline.labels import PerImage, RaggedLists
from pipeline.sample_text import parse_caption, parse_labels, parse_object
from pipeline.sources import Source
from storage.files import decode_text, iterate_lines, open_file, read_file, reading

_LONGEST_LINE = 1 << 20  # bytes
_LONGEST_PATH = 4095  # bytes, Linux
_MOST_PROBLEMS, _SHOWN = 1000, 5
_LINE_END = re.compile(rb"[\r\n]")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a list: path, caption ("" without one), labels."""

    path: str
    caption: str
    labels: tuple[int, ...]


class ListedImages(Source):
    """The images of a list file; see the module's docstring.

    Args:
        file: the list.
        needs: "label", "labels" or "caption"; "label set", "none": all images are taken.
        list_outside: it may name files outside its directory.
        strict: every line must have exactly one label. False: an image without what is needed is left out, and counted
            in `notes`.

    Attributes:
        labels: [N] int64 where `strict`, or where one is needed and no image has several; else N lists.
        captions: texts, read when they are needed; None for a list without any.
        left_out: number of images without what is needed.
    """

    is_encoded = True

    def __init__(self, file: Path, needs: str, list_outside: bool = False, strict: bool = False):
        self.origin, self._needs, self._strict = file, needs, strict
        self._parse, self._list_outside = _PARSERS[file.suffix.lower()], list_outside
        self.left_out, self._num_captions, self._problems = 0, 0, []
        self._folders: dict[str, int] = {}
        # Of each image that is taken: offset of its line, number of its folder, hash of its path.
        self._starts, self._folder_ids, self._keys = array("q"), array("q"), array("q")
        self._flat, self._ends = array("q"), array("q")
        with reading(file, "a list"), open_file(file) as opened:
            self._descriptor = os.dup(opened.fileno())
            weakref.finalize(self, os.close, self._descriptor)
            self._state = self._state_now()
            self._scan(opened)
        if self._problems:
            raise UserError(f"{file}: {abridge(self._problems, _SHOWN, '; ')}")
        if self.left_out and not self._starts:
            what = "captions" if needs == "caption" else "labels"
            raise UserError(f"{file}: none of its {self.left_out:,} images has {what}")
        self._starts, self._columns = np.array(self._starts, np.int64), 0
        self.labels = self._collect_labels()
        has_captions = self._num_captions > 0
        self.captions = PerImage(len(self._starts), lambda index: self.entry(index).caption) if has_captions else None
        left_out = (
            f"{file}: {self.left_out:,} images without {'a caption' if needs == 'caption' else 'labels'} are left out"
        )
        zeros_and_ones = f"{file}: each image has {self._columns} zeros and ones, which are read as its labels' places"
        left_out = [left_out] * bool(self.left_out) + [zeros_and_ones] * bool(self._columns)
        self._keys = np.array(self._keys, np.int64)
        repeats = describe_repeats(self._keys, self.labels, lambda i: str(self.path(i)), file)
        self.notes = [*left_out, *repeats]
        del self._flat, self._ends

    def _state_now(self) -> tuple[int, int]:
        about = os.fstat(self._descriptor)
        return about.st_size, about.st_mtime_ns

    def _scan(self, file: BinaryIO) -> None:
        """Check every line, and keep the offset and the labels of those that are taken."""
        is_plain = self.origin.suffix.lower() == ".txt"
        for number, start, line in iterate_lines(file, _LONGEST_LINE):
            # Nearly all lines of a list with labels; the checks below say the same more slowly.
            name, _, label = line.rpartition(b" ")
            is_good = is_plain and label.isdigit() and len(label) < 10 and name[:1] not in (b"/", b"", b" ", b"\t")
            is_good = is_good and name[-1:] not in (b",", b";")
            if is_good and len(line) < _LONGEST_PATH and line.isascii() and b".." not in name:
                path = name.decode("ascii")
                if path.isprintable():
                    self._take(start, path.rstrip(), (int(label),), "")
                    continue
            try:
                if len(line) > _LONGEST_LINE:
                    raise ValueError(f"has more than {_LONGEST_LINE:,} bytes")
                text = decode_text(line)
                if text.strip():
                    entry = self._parse(text)
                    self._check_path(entry.path)
                    self._take(start, entry.path, entry.labels, entry.caption)
            except ValueError as error:  # UnicodeDecodeError is one
                what = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
                self._problems.append(f"line {number}: {what}")
                if len(self._problems) > _MOST_PROBLEMS:
                    return

    def _take(self, start: int, path: str, labels: tuple[int, ...], caption: str) -> None:
        if self._strict and len(labels) != 1:
            raise ValueError(f"expected 'path label', found {len(labels)} labels behind {printable(path, 80)!r}")
        if (self._needs == "caption" and not caption) or (self._needs in ("label", "labels") and not labels):
            self.left_out += 1
            return
        if "//" in path or "./" in path:
            path = str(Path(path))  # one spelling for one file
        self._starts.append(start)
        self._folder_ids.append(self._folders.setdefault(os.path.dirname(path), len(self._folders)))
        self._keys.append(hash(path))
        self._flat.extend(labels)
        self._ends.append(len(self._flat))
        self._num_captions += bool(caption)

    def _check_path(self, path: str) -> None:
        if not path or "\0" in path or len(path.encode("utf-8", "surrogatepass")) > _LONGEST_PATH:
            raise ValueError(f"{printable(path, 60)!r} is not a path")
        if not self._list_outside and (os.path.isabs(path) or ".." in Path(path).parts):
            raise ValueError(f"{path[:80]!r} is outside; -opts DATA.LIST_OUTSIDE True allows it")

    def _collect_labels(self) -> np.ndarray | RaggedLists:
        flat, ends = np.array(self._flat, np.int64), np.array(self._ends, np.int64)
        lengths = np.diff(ends, prepend=0)
        if (self._needs != "label" and not self._strict) or (len(lengths) and lengths.max() > 1):
            self._columns = self._count_columns(RaggedLists(flat, ends))
            if not self._columns:
                return RaggedLists(flat, ends)
            rows, columns = np.nonzero(flat.reshape(-1, self._columns))
            return RaggedLists(columns, np.cumsum(np.bincount(rows, minlength=len(ends))))
        labels = np.full(len(ends), -1, np.int64)
        labels[lengths == 1] = flat
        return labels

    def _count_columns(self, lists: RaggedLists) -> int:
        """Return how many zeros and ones every image has; 0 if these are labels.

        They are labels where there is a larger number, or no image has one twice, unless every image has both.
        """
        flat, lengths = lists.flat, lists.lengths
        pairs = lists.owners * 2 + flat
        if not len(flat) or flat.max() > 1 or (len(np.unique(pairs)) == len(flat) and (lengths != 2).any()):
            return 0
        width = int(np.bincount(lengths).argmax())
        odd = np.flatnonzero(lengths != width)
        if len(odd):
            named = [f"{self.path(index)} has {lengths[index]}" for index in odd[:_SHOWN]]
            others = abridge(named, _SHOWN, total=len(odd))
            raise UserError(f"{self.origin}: its labels are {width} zeros and ones per image, but {others}")
        return width

    def count_classes(self) -> int:
        """Return the number of classes: that of the zeros and ones, or one more than the largest label."""
        return self._columns or super().count_classes()

    def __len__(self) -> int:
        return len(self._starts)

    def entry(self, index: int) -> Entry:
        """Parse the line of an image.

        Raises:
            OSError: if the file was changed since it was opened.
        """
        if self._state_now() != self._state:
            raise OSError(f"{self.origin} was changed while it is in use; start again")
        line, start, size = b"", int(self._starts[index]), 512
        while True:
            part = os.pread(self._descriptor, size, start + len(line))
            end = _LINE_END.search(part)
            line += part[: end.start()] if end else part
            if end or not part:
                return self._parse(decode_text(line))
            size *= 8

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.origin.parent / self.entry(index).path

    def name(self, index: int) -> str:
        """Return the path of an image as the list has it."""
        return self.entry(index).path

    def names(self, indices: np.ndarray | None = None) -> Iterator[str]:
        """Yield the names of images; of all of them, with one reading of the list."""
        if indices is not None:
            yield from super().names(indices)
            return
        with open_file(self.origin) as file:
            starts = iter([*self._starts.tolist(), -1])
            wanted = next(starts)
            for _, start, line in iterate_lines(file, _LONGEST_LINE):
                if start == wanted:
                    yield self._parse(decode_text(line)).path
                    wanted = next(starts)

    def missing(self) -> list[int]:
        """Return the images whose paths are not files."""
        places = np.array(self._folder_ids, np.int64)
        return find_missing(self._keys, places, list(self._folders), str(self.origin.parent))

    def read(self, index: int) -> bytes:
        """Read an image file."""
        return read_file(self.path(index))

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        try:
            return one_name(self.path(index))
        except OSError:  # the list was changed; the message is about that
            return super().describe(index)


def list_names(split: str) -> list[str]:
    """Return the names that the list file of a split may have."""
    return [f"{split}.tsv", f"{split}.jsonl", f"{split}_list.txt"]


def find_list(root: Path, split: str) -> Path:
    """Return the list file of a split; raise UserError if there is none, or more than one."""
    names = list_names(split)
    found = [root / name for name in names if (root / name).is_file()]
    if len(found) != 1:
        what = f"has {' and '.join(file.name for file in found)}" if found else "has no list"
        raise UserError(f"{root}: {what}; exactly one of {', '.join(names)} is needed there")
    return found[0]


def _parse_tsv(line: str) -> Entry:
    path, tab, caption = line.partition("\t")
    if not tab:
        raise ValueError(f"expected 'path<TAB>caption', found {printable(line, 60)!r} without a tab")
    return Entry(path.strip(), parse_caption(caption), ())


def _parse_labels(line: str) -> Entry:
    line = line.strip()
    found = re.fullmatch(r"(.*[^\s,;])[\s,;]+([0-9]+)", line)  # a path may hold spaces and commas
    if not (found and is_image_name(found[1])):
        found = re.fullmatch(r"(.*\S)\s+([0-9,]+)", line)
    if found:
        return Entry(found[1], "", parse_labels(found[2]))
    if len(line.split()) == 1 or is_image_name(line):
        return Entry(line, "", ())
    raise ValueError(f"expected 'path label' or 'path label,label', found {printable(line, 80)!r}")


def _parse_json(line: str) -> Entry:
    values, caption, labels = parse_object(line)
    path = values.get("image")
    if not isinstance(path, str):
        raise ValueError('expected {"image": path, "caption": text, "labels": [...]}')
    return Entry(path, caption, labels)


_PARSERS = {".tsv": _parse_tsv, ".jsonl": _parse_json, ".txt": _parse_labels}
LIST_SUFFIXES = tuple(_PARSERS)
