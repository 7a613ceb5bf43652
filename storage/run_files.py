"""The files in a run's directory and in its checkpoints: their names, and what must not be overwritten. No Paddle here.

run/config.yaml log.txt log.jsonl report.html bad_images.txt train_images.txt
run/latest -> step-00000312 best -> step-00000156
step-00000312/model.pdparams ...                      see `training/checkpoints.py`
"""

import re
from pathlib import Path

from errors import UserError, abridge

CONFIG_FILE, LOG_FILE, TEXT_LOG_FILE = "config.yaml", "log.jsonl", "log.txt"
REPORT_FILE, BAD_IMAGES_FILE, LAUNCH_LOGS = "report.html", "bad_images.txt", "launch-logs"
TRAIN_IMAGES_FILE = "train_images.txt"  # their names, as a DATA.TRAIN_LIST has them; of shards, what each one holds
LATEST, BEST = "latest", "best"
STATE_FILE, MANIFEST_FILE = "state.json", "manifest.json"
MODEL_FILE, EMA_FILE, EXTRA_FILE, OPTIMIZER_FILE = "model.pdparams", "ema.pdparams", "extra.pdparams", "optimizer.pdopt"
_PART = re.compile(r"optimizer-(\d{5})-of-(\d{5})\.pdopt")
_CHECKPOINT_NAME = re.compile(r"step-(\d{8,})")


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint after a number of updates."""
    return f"step-{step:08d}"


def checkpoint_step(path: Path) -> int | None:
    """Return the step in a checkpoint's name, or None for another name."""
    match = _CHECKPOINT_NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def is_checkpoint(path: Path) -> bool:
    """Return True if a path is a checkpoint itself, whole or not."""
    return any((path / name).is_file() for name in (STATE_FILE, MANIFEST_FILE))


def optimizer_part(rank: int, num_ranks: int) -> str:
    """Return the name of the file in which a rank keeps its part of a sharded optimizer's state."""
    return f"optimizer-{rank:05d}-of-{num_ranks:05d}.pdopt"


def own_optimizer_files(checkpoint_dir: Path) -> list[Path]:
    """List what is there under the names that a run gives to the optimizer's state."""
    paths = (path for path in checkpoint_dir.iterdir() if path.name == OPTIMIZER_FILE or _PART.fullmatch(path.name))
    return sorted(path for path in paths if path.is_file())


def optimizer_files(checkpoint_dir: Path) -> list[Path]:
    """List the files of a checkpoint that hold the optimizer's state: one, or one of each rank that wrote it.

    Raises:
        UserError: if a part is missing.
    """
    found = [path.name for path in own_optimizer_files(checkpoint_dir)]
    part = next(filter(None, map(_PART.fullmatch, found)), None)
    if part is None:
        return [checkpoint_dir / OPTIMIZER_FILE]
    wanted = [optimizer_part(rank, int(part[2])) for rank in range(int(part[2]))]
    if found != wanted:
        odd = sorted(set(found) ^ set(wanted))
        raise UserError(f"{checkpoint_dir}: parts of the optimizer's state are missing or too many: {abridge(odd)}")
    return [checkpoint_dir / name for name in wanted]


def list_checkpoints(run_dir: Path) -> list[Path]:
    """List the checkpoints of a run that have the name that a run gives them, by step."""
    try:
        entries = list(run_dir.iterdir())
    except OSError:
        return []
    return sorted(
        (path for path in entries if checkpoint_step(path) is not None and is_checkpoint(path)), key=checkpoint_step
    )


def is_run(path: Path) -> bool:
    """Return True if a directory is a run's."""
    return (path / LOG_FILE).is_file() or bool(list_checkpoints(path))
