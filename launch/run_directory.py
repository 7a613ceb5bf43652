"""Open a run's directory for a new run, or find it to resume."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import runtime
from arguments import user_path
from errors import UserError, abridge, printable
from launch.run_lock import LOCK_FILE, RunLock
from layers import across_ranks
from storage import atomic, manifest, run_state
from storage.run_files import (
    CONFIG_FILE,
    LAUNCH_LOGS,
    STATE_FILE,
    TEXT_LOG_FILE,
    checkpoint_name,
    is_checkpoint,
    is_run,
    list_checkpoints,
)
from storage.run_state import newest_first

_STARTUP_FILES = {
    LOCK_FILE,
    CONFIG_FILE,
    TEXT_LOG_FILE,
    LAUNCH_LOGS,
}  # all that a run leaves that ended before its first record


def write_config(directory: Path, config) -> None:
    """Write the configuration into a run's directory."""
    atomic.write_text(directory / CONFIG_FILE, config.dump())


def find(path: str | Path, warn: Callable[[str], None] = print, only: str | None = None) -> Path:
    """Return a checkpoint directory, given itself or its run's directory.

    Of a run directory, the newest checkpoint that is whole is taken; `warn` gets a line for each damaged one.

    Args:
        only: the one file of the checkpoint that is needed, and checked; None: all of them.

    Raises:
        UserError: if there is none, or the checkpoint that was named is damaged.
    """
    path = Path(path)
    if is_checkpoint(path):
        damage = manifest.find_damage(path, only)
        if damage is not None:
            raise UserError(f"-resume {path}: {damage}; name the run's directory to resume from the newest intact one")
        return path.resolve()
    damaged = 0
    for candidate in newest_first(path):
        damage = manifest.find_damage(candidate, only)
        if damage is None and (candidate / STATE_FILE).is_file():
            return candidate.resolve()
        warn(f"warning: {damage or f'{candidate / STATE_FILE} is missing'}; the checkpoint before it is used")
        damaged += 1
    if damaged:
        raise UserError(f"-resume {path}: none of its {damaged} checkpoints is whole")
    if path.is_file():
        raise UserError(
            f"-resume {path}: a file, and a run's directory is needed; another program's optimizer cannot be "
            "continued, but its weights can be a start: -pretrained, after python -m port_weights for a torch file"
        )
    raise UserError(
        f"-resume {path}: neither a checkpoint nor a run directory with one "
        "(to start from weights alone, use -pretrained)"
    )


def enter(config, prefix: str, dry_run: bool) -> tuple[Path | None, Path | None, RunLock | None]:
    """Find the checkpoint to resume, and open and lock the run's directory.

    Args:
        prefix: how the names of run directories of this kind begin.

    Returns:
        The checkpoint directory, or None; directory and lock on the first rank, else None.
    """
    resume_from = find_resume(config, prefix)
    if not runtime.is_main() or dry_run:
        return resume_from, None, None
    directory = open_directory(config, "eval" if config.EVAL else prefix, resume_from)
    lock = RunLock(directory, print)
    if resume_from is None or config.EVAL:  # a resumed run keeps its own until it is known to fit
        write_config(directory, config)
    return resume_from, directory, lock


def find_resume(config, prefix: str) -> Path | None:
    """Return the checkpoint directory of MODEL.RESUME, if it is set."""
    wanted = config.MODEL.RESUME
    if wanted is None:
        return None
    if wanted != "auto":
        return find_on_main(Path(wanted))
    save = user_path(config.SAVE, "-output")
    runs = [save / config.RUN] if config.RUN else list(save.glob(f"{prefix}-*"))
    runs = [path for path in runs if list_checkpoints(path)]
    runs.sort(key=lambda path: (run_state.run_number(path), path.name))
    return find_on_main(runs[-1]) if runs else None


def find_on_main(path: Path) -> Path:
    """Let the first rank find the newest whole checkpoint; the others take the same one."""
    found = find(path) if runtime.is_main() else None
    own_step = run_state.read_state(found).step if found else 0
    step = int(across_ranks.sum_across_ranks(np.array([own_step], np.float64))[0])
    if found is None:
        found = path if is_checkpoint(path) else path / checkpoint_name(step)
    return found


def open_directory(config, prefix: str, resume_from: Path | None) -> Path:
    """Return the directory of a run: that of the checkpoint from which it continues, or a new one below SAVE.

    Raises:
        UserError: if it cannot be made, or holds something else.
    """
    if resume_from is not None and not config.EVAL:
        return resume_from.parent
    save, suffix = user_path(config.SAVE, "-output"), ""
    is_evaluated = config.EVAL and config.RUN and list_checkpoints(save / config.RUN)
    named = "" if is_evaluated else config.RUN  # a run's own configuration has its name
    name = named or f"{prefix}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        while True:
            directory = save / f"{name}{suffix}"
            try:
                directory.mkdir(parents=True)
                return directory
            except FileExistsError:
                if named or not directory.is_dir():
                    break
            suffix = f"-{int(suffix[1:] or 1) + 1}"
        _check_reuse(directory)
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"-output {printable(config.SAVE)}: cannot create {printable(directory)}: {reason}") from error
    return directory


def discard(directory: Path) -> None:
    """Delete the directory of a run that failed to start, if it holds start-up files only."""
    try:
        names = {path.name for path in directory.iterdir()}
        if names <= _STARTUP_FILES - {LAUNCH_LOGS}:
            for name in names:
                (directory / name).unlink()
            directory.rmdir()
    except OSError:  # somebody put something there meanwhile
        return


def _check_reuse(directory: Path) -> None:
    """Raise UserError unless an existing directory may become a run's, which overwrites files."""
    if list_checkpoints(directory):
        raise UserError(f"{directory} holds a run already: continue it with -resume auto, or choose another RUN")
    if not directory.is_dir():
        raise UserError(f"{directory}: a file; choose another RUN")
    names = {path.name for path in directory.iterdir()}
    if not names <= _STARTUP_FILES and not is_run(directory):
        others = abridge(sorted(names - _STARTUP_FILES), 3)
        raise UserError(f"{directory}: holds something else than a run ({printable(others)}); choose another RUN")
