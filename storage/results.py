"""The rule for writing results: never over an input, into a run, or over a file that is not from here. No Paddle."""

import os
from collections.abc import Sequence
from pathlib import Path

from errors import UserError, printable
from storage import atomic, weight_files
from storage.files import read_file, read_json
from storage.run_files import is_checkpoint, is_run

_OWN_TITLE = "# Files here that tools of mae_paddle have made, and replace when they run again:"
OWN_FILES = "files-of-mae_paddle.txt"  # in a directory of results: a name per line


def check_target(path: str | Path, flag: str = "-out", inputs: Sequence[str | Path] = ()) -> Path:
    """Return the path of a result if it may be written there.

    Args:
        flag: that names it.
        inputs: files and directories that the result is made of.

    Raises:
        UserError: if it is one of them or a file that is in one, or lies in a run or a checkpoint.
    """
    path = Path(path)
    try:
        resolved = path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in it, or links in a circle
        raise UserError(f"{flag} {printable(path)}: not a path that can be written ({error})") from error
    for given in inputs:
        if _is_same(resolved, Path(given)) or (resolved.is_file() and _is_below(resolved, Path(given))):
            raise UserError(f"{flag} {path}: is an input, which would be overwritten; choose another path")
    for folder in (resolved, *resolved.parents):
        if is_run(folder) or is_checkpoint(folder):
            what = "a run" if is_run(folder) else "a checkpoint"
            raise UserError(f"{flag} {path}: {folder} is {what}, which holds its own files only; choose another path")
    return path


def claim(directory: Path, names: Sequence[str], flag: str = "-out", only_check: bool = False) -> None:
    """Note that files of these names in a directory are this project's, before any of them is written.

    A directory may hold other files. Which ones are from here is in `OWN_FILES` in it.

    Args:
        only_check: write no note yet.

    Raises:
        UserError: if there is one of these names already that is not from here.
    """
    note, own = directory / OWN_FILES, set()
    if os.path.lexists(note):
        try:
            title, *lines = read_file(note).decode("utf-8").splitlines() or [""]
        except (OSError, ValueError):
            title, lines = "", []
        if title != _OWN_TITLE:
            raise UserError(f"{flag} {directory}: holds {OWN_FILES}, which is not from here; choose another directory")
        own = set(lines)
    foreign = [name for name in names if name not in own and os.path.lexists(directory / name)]
    if foreign:
        raise UserError(
            f"{flag} {directory}: holds {printable(foreign[0])}, which is not from here (or from an older version) "
            "and would be replaced; choose another directory, or delete it"
        )
    if not only_check and not own >= set(names):
        atomic.write_text(note, "".join(f"{line}\n" for line in (_OWN_TITLE, *sorted(own | set(names)))))


def _is_below(path: Path, folder: Path) -> bool:
    try:
        return folder.is_dir() and folder.resolve() in path.parents
    except (OSError, ValueError, RuntimeError):
        return False


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path == other.resolve() or (path.exists() and other.exists() and path.samefile(other))
    except (OSError, ValueError, RuntimeError):
        return False


def new_directory(
    path: str | Path, inputs: Sequence[str | Path] = (), flag: str = "-out", writes: Sequence[str] = ()
) -> Path:
    """Make a directory for a tool's results, if it is not there.

    Args:
        inputs: runs and weight files that the results are made of; the directory may hold no such file.
        writes: names of the files that the tool may write there, after `claim`.

    Raises:
        UserError: if it cannot be made, is a run or a checkpoint, or holds an input, or a file of these names that is
            not from here.
    """
    path = check_target(path, flag)
    for given in inputs:
        if weight_files.resolve(given).resolve().parent == path.resolve():
            raise UserError(f"{flag} {path}: the weights {given} are in it; choose another directory")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be made a directory ({error.strerror})") from error
    claim(path, writes, flag, only_check=True)
    return path


def new_file(
    path: str | Path, *suffixes: str, flag: str = "-out", inputs: Sequence[str | Path] = (), check: bool = True
) -> Path:
    """Check that a result can be written to a file of one of these suffixes.

    Args:
        inputs: files that the result is made of; it may be none of them.
        check: False where the file is a run's own.
    """
    path = check_target(path, flag, inputs) if check else Path(path)
    if path.suffix.lower() not in suffixes or not path.parent.is_dir() or path.is_dir():
        raise UserError(f"{flag} {path}: must be a {' or '.join(suffixes)} file in a directory that exists")
    if path.suffix.lower() == ".json" and path.exists() and not _is_report(path):
        raise UserError(f"{flag} {path}: exists, and is not a report from here; choose another name")
    return path


def _is_report(path: Path) -> bool:
    """Return True if a file is a report of a tool: figures by name, or what `tools.check_dataset` writes."""
    try:
        values = read_json(path)
    except UserError:
        return False
    return "ok" in values or not any(isinstance(value, (dict, list)) for value in values.values())
