"""Lists of the names of images: which a run trains on, or is evaluated on (DATA.TRAIN_LIST, DATA.VAL_LIST)."""

import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from errors import UserError, abridge, one_name
from pipeline.sources import Source
from pipeline.wrapped_sources import Subset
from storage import atomic
from storage.files import read_lines

_COMMENT = "# "


def limit(source: Source, split: str, list_file: str | Path | None, flag: str) -> Source:
    """Return the images of a split that a list names; see `find_listed`. None: all."""
    if list_file is None:
        return source
    limited = Subset(source, find_listed(source, list_file, flag, split))
    limited.order = source.order_among(limited.indices)
    limited.limited_by = f" ({flag} {list_file}: {len(limited):,} of {len(source):,} images)"
    return limited


def describe_change(before: list[str], source: Source) -> str:
    """Return which images of a source are others than those of a list: names, and how many."""
    now = [as_line(line) for line in source.content()]
    gone, new = (sorted(set(one) - set(other)) for one, other in ((before, now), (now, before)))
    parts = [f"{len(gone):,} of {len(before):,} are not there any more ({abridge(gone, 3)})"] * bool(gone)
    parts += [f"{len(new):,} are new ({abridge(new, 3)})"] * bool(new)
    if not parts:
        place = next(i for i, (one, other) in enumerate(itertools.zip_longest(before, now)) if one != other)
        parts = [f"they are in another order, from image {place} on ({before[place]}, now {now[place]})"]
    return ", ".join(parts)


def as_line(name: str) -> str:
    """Return the name of an image as a list has it: one line, and another one for each name."""
    line = one_name(name.replace("\\", "\\\\"))
    return f"./{line}" if line.startswith("#") or line != line.lstrip() else line


def write(path: Path, lines: Iterable[str], comments: Iterable[str] = ()) -> None:
    """Write a list that `find_listed` reads: comments, then lines that `as_line` made."""
    lines = itertools.chain((f"{_COMMENT}{one_name(comment)}" for comment in comments), lines)
    atomic.write_text(path, "".join(f"{line}\n" for line in lines))


def read_names(list_file: str | Path, flag: str) -> list[str]:
    """Return the names in a list, without the comments before the first of them."""
    return list(itertools.dropwhile(lambda line: line.startswith(_COMMENT), read_lines(list_file, f"{flag} ")))


def digest(source: Source) -> str:
    """Return the SHA-256 of the names of the images, in order: which images these are."""
    return digest_lines(map(as_line, source.content()))


def digest_lines(lines: Iterable[str]) -> str:
    """Return the SHA-256 of the lines of a list."""
    found = hashlib.sha256()
    for line in lines:
        found.update(f"{line}\n".encode())
    return found.hexdigest()


def find_listed(source: Source, list_file: str | Path, flag: str, split: str = "train") -> np.ndarray:
    """Return the indices of the images that a file names, one per line, in ascending order.

    A name is the one that `Source.name` gives, as in the lists of `tools.curate` and the train_images.txt of a run;
    or that of the file; or folder/name where several files have it. So are the subsets of ImageNet published by MSN
    and SimCLR v2; labels are those of the data set. Where a split has a name several times, each line takes one image.

    Args:
        flag: that names the file, for messages.

    Raises:
        UserError: if the file cannot be read, or a line is not the name of exactly one image.
    """
    wanted = [line.removeprefix("./") for line in read_names(list_file, flag)]
    found: dict[str, list[int]] = {key: [] for line in wanted for key in _short_names(line)}
    whole: dict[str, list[int]] = {line: [] for line in wanted}
    for number, name in enumerate(source.names()):
        line = as_line(name).removeprefix("./")
        if line in whole:
            whole[line].append(number)
        path = None if "/" in name else source.path(number)
        for key in _short_names(one_name(name if path is None else path).strip()):
            if key in found:
                found[key].append(number)
    matches, problems = set(), []
    for line in wanted:
        name, folder_and_name = _short_names(line)
        match = whole[line] or found[name]
        if whole[line]:
            match = [next((number for number in match if number not in matches), match[-1])]
        elif len(match) > 1:
            match = found[folder_and_name]
        problems += [line] * (len(match) != 1)
        matches |= set(match)
    if problems or not wanted:
        what = f"not one image of the {split} split each: {abridge(problems, 5)}" if wanted else "empty"
        raise UserError(f"{flag} {list_file}: {what}")
    return np.array(sorted(matches))


def _short_names(path: str) -> tuple[str, str]:
    """Return the name of a file, and with its folder."""
    return path.rsplit("/", 1)[-1], "/".join(path.rsplit("/", 2)[-2:])
