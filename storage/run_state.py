"""state.json of a checkpoint: what a resumed run needs besides tensors. Written and read here only. No Paddle here."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

from errors import UserError, printable
from storage import manifest
from storage.files import NUMBER, is_a, read_json
from storage.run_files import STATE_FILE, checkpoint_step, list_checkpoints

_DAMAGED = sys.maxsize


@dataclasses.dataclass(frozen=True)
class RunState:
    """The content of state.json; None for what a file of an older version does not have.

    Attributes:
        step: updates done.
        task, optimizer, images, num_images, seed, external_id: what a run must share with the checkpoint to resume it.
        epoch: epochs done.
        images_done: images of the epoch after these that are done, 0 at its end.
        images_per_update, ranks: of the run that saved.
        evaluation_pending: the weights should have been evaluated, but the run was asked to stop.
        best, best_metric: best value of the score that chooses the best checkpoint, and its name.
        settings: options of pretraining that a run must share, too, as "KEY VALUE, KEY VALUE"; None: all are defaults.
        images: SHA-256 of the names of the training images, in order.
        val_seed: DATA.VAL_SEED, which a run must share, too.
        scaler: state of the loss scaler of fp16.
        save_number: counts the checkpoints of a run directory in the order of writing; 0 in old ones.
        run_number: counts the runs in a directory in the order of their beginning; 0 in old ones.
    """

    step: int
    task: str | None = None
    optimizer: str | None = None
    num_images: int | None = None
    seed: int | None = None
    epoch: int | None = None
    images_done: int | None = None
    images_per_update: int | None = None
    ranks: int | None = None
    evaluation_pending: bool = False
    best: float | None = None
    best_metric: str | None = None
    val_seed: int | None = None
    scaler: dict = dataclasses.field(default_factory=dict)
    save_number: int = 0
    run_number: int = 0
    external_id: str | None = None
    settings: str | None = None
    images: str | None = None

    def write(self, checkpoint_dir: Path) -> None:
        """Write state.json into a checkpoint."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        (checkpoint_dir / STATE_FILE).write_text(text, encoding="utf-8")


_OLD_NAMES = {"owes_evaluation": "evaluation_pending", "teacher": "external_id"}  # old names of fields
_COUNTS = (
    "step",
    "num_images",
    "seed",
    "val_seed",
    "epoch",
    "images_done",
    "images_per_update",
    "ranks",
    "save_number",
    "run_number",
)


def read_state(checkpoint_dir: Path) -> RunState:
    """Read state.json of a checkpoint.

    Raises:
        UserError: if it cannot be read, or a value is not of its type.
    """
    file = Path(checkpoint_dir) / STATE_FILE
    values = read_json(file, {"step": int}, advice="it is not a checkpoint to resume from")
    values = {_OLD_NAMES.get(key, key): value for key, value in values.items()}
    for key in _COUNTS:
        value = values.get(key)
        if value is not None and (type(value) is not int or value < 0):
            raise UserError(f"{file}: damaged, its {key} is {printable(value, 40)}")
    is_right = is_a(values.get("best"), (*NUMBER, type(None))) and isinstance(values.get("scaler") or {}, dict)
    if not is_right or not isinstance(values.get("evaluation_pending", False), bool):
        raise UserError(f"{file}: damaged, its best metric or its loss scaler is not as it was written")
    known = {field.name for field in dataclasses.fields(RunState)}
    return RunState(**{key: value for key, value in values.items() if key in known and value is not None})


def save_number(checkpoint_dir: Path) -> int:
    """Return a checkpoint's number in the order of writing; a damaged one counts as the newest, to be noticed."""
    try:
        is_damaged = manifest.find_damage(checkpoint_dir, only=STATE_FILE) is not None
        return _DAMAGED if is_damaged else read_state(checkpoint_dir).save_number
    except UserError:
        return _DAMAGED


def next_save_number(checkpoints: list[Path]) -> int:
    """Return a number above that of every checkpoint: a run that went back to an earlier step has newer ones there."""
    numbers = [save_number(path) for path in checkpoints]
    return 1 + max((number for number in numbers if number != _DAMAGED), default=0)


def run_number(run_dir: Path) -> int:
    """Return a run's number in the order of beginning, from any checkpoint that can be read; 0 for an old run."""
    for checkpoint in reversed(list_checkpoints(run_dir)):
        with contextlib.suppress(UserError):
            return read_state(checkpoint).run_number
    return 0


def next_run_number(save_dir: Path) -> int:
    """Return a number above that of every run in a directory; clocks, and the times in names, may go back."""
    try:
        return 1 + max(map(run_number, save_dir.iterdir()), default=0)
    except OSError:
        return 1


def newest_first(run_dir: Path) -> list[Path]:
    """List a run's checkpoints in the order of writing: by their own count, as a run may have gone back a few steps.

    Checkpoints of older versions have no count, and come by step, before all others. Times of files do not count: a
    copied run may have others.
    """
    checkpoints = list_checkpoints(run_dir)
    return sorted(checkpoints, key=lambda path: (save_number(path), checkpoint_step(path)), reverse=True)
