"""Image files below a folder, and what is left out there: files of other kinds, and those of operating systems."""

import os
from collections.abc import Iterator
from pathlib import Path

from errors import UserError, printable
from pipeline.decoding import ARRAY_SUFFIXES, AS_ARRAYS, is_image_name, takes_arrays
from pipeline.left_out import LeftOut

# Of macOS's archives and Windows's folders; what begins with a dot is hidden, too (.DS_Store, .ipynb_checkpoints).
_SYSTEM_NAMES = ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
HIDDEN = "are hidden, or of an operating system"


def is_hidden(name: str) -> bool:
    """Return True if a name is that of a hidden file or folder, or of one that an operating system makes."""
    return name.startswith(".") or name in _SYSTEM_NAMES


def describe_suffix(suffix: str) -> str:
    """Return the reason why a file that is not an image is left out."""
    hint = f" ({AS_ARRAYS})" if suffix.lower() in ARRAY_SUFFIXES else ""
    if takes_arrays() and not suffix.strip(".0123456789"):  # names of hospitals' archives: IM000001, 1.2.840.113619
        hint = " (DICOM files are read if their names end in .dcm)"
    return f"have the suffix {printable(suffix.lower(), 20) or '(none)'}{hint}"


def find_images(folder: str | Path, left_out: LeftOut | None = None, below: str | Path | None = None) -> Iterator[str]:
    """Yield the paths of the image files below a folder in order; linked folders count, too.

    A folder that is reached in several ways, by links, is listed once. The order is that of the parts of the paths.

    Args:
        left_out: counts what is not an image.
        below: a folder above this one, to which the names of what is left out are relative.

    Raises:
        UserError: if a folder cannot be read.
    """
    left_out = LeftOut() if left_out is None else left_out
    root = str(Path(below or folder))
    seen: set[tuple[int, int]] = set()
    waiting: list[Iterator[tuple[str, bool]]] = [iter([(str(Path(folder)), True)])]
    while waiting:  # no recursion: folders may be deeper than Python's stack
        path, is_folder = next(waiting[-1], ("", False))
        if not path:
            waiting.pop()
        elif is_folder:
            waiting.append(iter(_entries(path, root, seen, left_out)))
        else:
            yield path


def _entries(path: str, root: str, seen: set[tuple[int, int]], left_out: LeftOut) -> list[tuple[str, bool]]:
    """Return (path, is a folder) of the folders and images in a folder, by name."""
    try:
        about = os.stat(path)
        if (about.st_dev, about.st_ino) in seen:
            return []
        seen.add((about.st_dev, about.st_ino))
        with os.scandir(path) as listed:
            entries = sorted((entry.name, _is_folder(entry)) for entry in listed)
    except FileNotFoundError:  # a class without images
        return []
    except OSError as error:
        raise UserError(f"{printable(path)}: cannot be listed: {error.strerror}") from error
    found = []
    for name, is_folder in entries:
        inner = f"{path.rstrip('/')}/{name}"
        if not is_hidden(name) and (is_folder or is_image_name(name)):
            found.append((inner, is_folder))
        else:
            reason = HIDDEN if is_hidden(name) else describe_suffix(os.path.splitext(name)[1])
            left_out.add(reason, inner[len(root) :].lstrip("/"))
    return found


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, which cannot be read as an image either
        return False


def images_in(folder: Path, left_out: LeftOut) -> list[str]:
    """Return the paths of the images in a folder itself, without those in its folders."""
    entries = _entries(str(folder), str(folder), set(), left_out)
    return [path for path, is_folder in entries if not is_folder]


def class_folders(folder: Path, left_out: LeftOut | None = None) -> list[str]:
    """Return the names of the folders in a folder, in order, without hidden ones and those of operating systems."""
    with os.scandir(folder) as listed:
        names = sorted(entry.name for entry in listed if _is_folder(entry))
    for name in filter(is_hidden, names if left_out is not None else ()):
        left_out.add(HIDDEN, name)
    return [name for name in names if not is_hidden(name)]
