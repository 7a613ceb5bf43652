"""The files in a run's directory and in its checkpoints: their names, and what must not be overwritten. No Paddle here.

run/config.yaml log.txt log.jsonl report.html bad_images.txt latest -> step-00000312 best -> step-00000156
step-00000312/model.pdparams ...                      see `training_state.py`
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from errors import UserError, printable
from storage import atomic
from storage.regular_files import read_regular_file

CONFIG_FILE, LOG_FILE, TEXT_LOG_FILE = "config.yaml", "log.jsonl", "log.txt"
REPORT_FILE, BAD_IMAGES_FILE, LAUNCH_LOGS = "report.html", "bad_images.txt", "launch-logs"
LATEST, BEST = "latest", "best"
_OWN_TITLE = "# Files here that tools of mae_paddle have made, and replace when they run again:"
OWN_FILES = "files-of-mae_paddle.txt"  # in a directory of results: a name per line
STATE_FILE, MANIFEST_FILE = "state.json", "manifest.json"
MODEL_FILE, EMA_FILE, EXTRA_FILE, OPTIMIZER_FILE = "model.pdparams", "ema.pdparams", "extra.pdparams", "optimizer.pdopt"
_CHECKPOINT_NAME = re.compile(r"step-(\d{8,})")


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint after so many updates."""
    return f"step-{step:08d}"


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
            title, *lines = read_regular_file(note, 1 << 20).decode("utf-8").splitlines() or [""]
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
