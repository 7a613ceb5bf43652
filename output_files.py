"""Results on the disk: whole or not at all, and never over what is the user's. No Paddle here."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from errors import UserError, printable

STATE_FILE, MANIFEST_FILE, LOG_FILE = "state.json", "manifest.json", "log.jsonl"
_CHECKPOINT_NAME = re.compile(r"step-(\d{8,})")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give the path of a temporary file that becomes `path` when the block ends well, and vanishes otherwise.

    Raises:
        UserError: if the disk is full or the directory cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        temporary = Path(name)
        os.close(descriptor)
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; nothing was changed") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))  # names need not be UTF-8


def sync(path: Path) -> None:
    """Make sure that a file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ---- what is the user's ------------------------------------------------------------------------


def step_of(path: Path) -> int | None:
    """Return the step in a checkpoint's name, or None for another name."""
    match = _CHECKPOINT_NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def is_checkpoint(path: Path) -> bool:
    """Return True if a path is a checkpoint itself, whole or not."""
    return any((path / name).is_file() for name in (STATE_FILE, MANIFEST_FILE))


def list_checkpoints(run_dir: Path) -> list[Path]:
    """List the checkpoints of a run that have the name that a run gives them, by step."""
    try:
        entries = list(run_dir.iterdir())
    except OSError:
        return []
    return sorted((path for path in entries if step_of(path) is not None and is_checkpoint(path)), key=step_of)


def is_run(path: Path) -> bool:
    """Return True if a directory is a run's."""
    return (path / LOG_FILE).is_file() or bool(list_checkpoints(path))


def check_target(path: str | Path, flag: str = "-out", inputs: Sequence[str | Path] = ()) -> Path:
    """Return the path of a result if it may be written there.

    Args:
        flag: that names it.
        inputs: files and directories that the result is made of.

    Raises:
        UserError: if it is one of them, or lies in a run or a checkpoint.
    """
    path = Path(path)
    try:
        resolved = path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in it, or links in a circle
        raise UserError(f"{flag} {printable(path)}: not a path that can be written ({error})") from error
    for given in inputs:
        if _is_same(resolved, Path(given)):
            raise UserError(f"{flag} {path}: is an input, which would be overwritten; choose another path")
    for folder in (resolved, *resolved.parents):
        if is_run(folder) or is_checkpoint(folder):
            what = "a run" if is_run(folder) else "a checkpoint"
            raise UserError(f"{flag} {path}: {folder} is {what}, which holds its own files only; choose another path")
    return path


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path == other.resolve() or (path.exists() and other.exists() and path.samefile(other))
    except (OSError, ValueError, RuntimeError):
        return False
