"""state.json of a checkpoint: what a resumed run needs besides tensors. Written and read here only."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path

from errors import UserError, printable
from pipeline.samplers import TrainSampler
from storage import manifest
from storage.json_files import NUMBER, is_a, read_json
from storage.run_files import STATE_FILE, list_checkpoints
from training import distributed
from training.plan import Plan
from training.task import Task

_DAMAGED = sys.maxsize


@dataclasses.dataclass(frozen=True)
class RunState:
    """The content of state.json; None for what a file of an older version does not have.

    Attributes:
        step: updates done.
        task, optimizer, num_images, seed, teacher: what a run must share with the checkpoint to continue it.
        epoch: epochs done.
        images_done: images of the epoch after these that are done, 0 at its end.
        images_per_update, ranks: of the run that saved.
        owes_evaluation: the weights should have been evaluated, but the run was asked to stop.
        best: best value of the task's best metric.
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
    owes_evaluation: bool = False
    best: float | None = None
    scaler: dict = dataclasses.field(default_factory=dict)
    save_number: int = 0
    run_number: int = 0
    teacher: str | None = None

    def write(self, checkpoint_dir: Path) -> None:
        """Write state.json into a checkpoint."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        (checkpoint_dir / STATE_FILE).write_text(text, encoding="utf-8")


_COUNTS = (
    "step",
    "num_images",
    "seed",
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
    for key in _COUNTS:
        value = values.get(key)
        if value is not None and (type(value) is not int or value < 0):
            raise UserError(f"{file}: damaged, its {key} is {printable(value, 40)}")
    is_right = is_a(values.get("best"), (*NUMBER, type(None))) and isinstance(values.get("scaler") or {}, dict)
    if not is_right or not isinstance(values.get("owes_evaluation", False), bool):
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


# ---- going on ----------------------------------------------------------------------------------


def identity(task: Task, plan: Plan, config) -> dict[str, object]:
    """Return what a run must share with a checkpoint to continue it, as fields of `RunState`."""
    return {
        "task": task.name,
        "optimizer": config.TRAIN.OPTIMIZER.NAME.removesuffix("DL"),  # AdamWDL is AdamW
        "num_images": plan.num_images,
        "seed": config.SEED,
        "teacher": task.teacher,
    }


def check_identity(state: RunState, own: dict[str, object], directory: Path) -> None:
    """Raise UserError if a checkpoint is another run's; `own` is this run's `identity`."""
    for key, value in own.items():
        if getattr(state, key) != value:
            raise UserError(
                f"-resume {directory}: that run has {key} {getattr(state, key)}, this one {value}; "
                "to start a new run from its weights, use -pretrained"
            )


def position(state: RunState, plan: Plan, sampler: TrainSampler) -> tuple[int, int | None]:
    """Return the step at which a saved run continues, and the images of that epoch that are done.

    With another number of images per update, an epoch has another number of updates: the steps are counted so that the
    epoch's last update is the last of the new count.
    """
    if state.images_done is None:  # saved before other numbers were possible
        if state.images_per_update != plan.images_per_update:
            raise UserError("-resume: a checkpoint of an older version goes on with the same images per update only")
        return state.step, None
    if not state.images_done <= plan.num_images:
        raise UserError(f"-resume: a checkpoint after {state.images_done} of {plan.num_images} images is damaged")
    if state.images_done == 0:
        return state.epoch * plan.updates_per_epoch, None
    left = sampler.updates_left(state.images_done)
    return (state.epoch + 1) * plan.updates_per_epoch - left, state.images_done if left else None


def describe_change(state: RunState, plan: Plan) -> str | None:
    """Return a warning if the run continues with other ranks or images per update, and so is not bit-identical."""
    then, now = (state.ranks, state.images_per_update), (distributed.world_size(), plan.images_per_update)
    if then[0] is None or then == now:
        return None
    return (
        f"warning: {now[0]} ranks with {now[1]} images per update go on where {then[0]} with {then[1]} ended: the "
        "epoch's other images follow, each once, but the run is no longer bit-identical to an undisturbed one"
    )
