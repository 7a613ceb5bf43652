"""Whether a run may resume from a checkpoint, and where in it."""

import contextlib
from pathlib import Path

import runtime
from errors import UserError
from pipeline import name_lists
from pipeline.samplers import TrainSampler
from pipeline.sources import Source
from storage.run_files import TRAIN_IMAGES_FILE
from storage.run_state import RunState
from training.plan import Plan
from training.task import Task


def resume_fingerprint(task: Task, plan: Plan, images: str, config) -> dict[str, object]:
    """Return what a run must share with a checkpoint to continue it, as fields of `RunState`.

    Args:
        images: SHA-256 of the names of the training images, see `name_lists.digest`.
    """
    return {
        "task": task.name,
        "optimizer": config.TRAIN.OPTIMIZER.NAME.removesuffix("DL"),  # AdamWDL is AdamW
        "images": images,
        "num_images": plan.num_images,
        "seed": config.SEED,
        "val_seed": None if config.DATA.VAL_FRACTION is None else config.DATA.VAL_SEED,
        "external_id": task.external_id,
        "settings": _settings(config),
    }


def _settings(config) -> str | None:
    """Return, in words, the options that change what is learnt, and which no tensor shows; None without one."""
    model, train = config.MODEL, config.TRAIN
    values = {
        "TRAIN.RESOLUTION": train.get("RESOLUTION"),
        "MODEL.PREDICT_RATIO": model.get("PREDICT_RATIO"),
        "MODEL.DECODER.SOURCES": model.DECODER.get("SOURCES") or None,
    }
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None) or None


_LABELS = {
    "external_id": "teacher or tokenizer",
    "num_images": "training images",
    "val_seed": "DATA.VAL_SEED",
}  # in messages


def check_fingerprint(state: RunState, own: dict[str, object], directory: Path, source: Source) -> None:
    """Raise UserError if a checkpoint is another run's.

    Args:
        own: this run's `resume_fingerprint`.
        source: its training images.
    """
    for key, value in own.items():
        then = getattr(state, key)
        if then == value or (key == "images" and then is None):  # older versions counted the images only
            continue
        differs = f"that run has {_LABELS.get(key, key)} {then}, this one {value}"
        if key == "images":
            differs = f"that run trains on other images: {_describe_images(then, directory, source)}"
        raise UserError(
            f"-resume {directory}: {differs}; for a new run, give another name or place (-opts RUN NAME, -output; "
            "OUTPUT of a script), and -pretrained to start from its weights"
        )


def _describe_images(then: str, directory: Path, source: Source) -> str:
    """Return how the training images differ from those of a checkpoint, by the list in its run's directory."""
    file = directory.parent / TRAIN_IMAGES_FILE
    with contextlib.suppress(UserError):
        before = name_lists.read_names(file, "")
        if name_lists.digest_lines(before) == then:
            return f"{name_lists.describe_change(before, source)}; {file} lists them"
    return f"{len(source):,} with other names now; {file}, which listed them, is missing or not as it was written"


def position(state: RunState, plan: Plan, sampler: TrainSampler) -> tuple[int, int | None]:
    """Return the step at which a saved run continues, and the images of that epoch that are done.

    With another number of images per update, an epoch has another number of updates: the steps are counted so that the
    epoch's last update is the last of the new count.
    """
    if state.images_done is None:  # saved before other numbers were possible
        if state.images_per_update != plan.images_per_update:
            raise UserError("-resume: a checkpoint of an older version resumes with the same images per update only")
        return state.step, None
    if not state.images_done <= plan.num_images:
        raise UserError(f"-resume: a checkpoint after {state.images_done} of {plan.num_images} images is damaged")
    if state.images_done == 0:
        return state.epoch * plan.updates_per_epoch, None
    left = sampler.updates_left(state.images_done)
    return (state.epoch + 1) * plan.updates_per_epoch - left, state.images_done if left else None


def describe_change(state: RunState, plan: Plan) -> str | None:
    """Return a warning if the run continues with other ranks or images per update, and so is not bit-identical."""
    then, now = (state.ranks, state.images_per_update), (runtime.world_size(), plan.images_per_update)
    if then[0] is None or then == now:
        return None
    return (
        f"warning: {now[0]} ranks with {now[1]} images per update resume where {then[0]} with {then[1]} ended: the "
        "epoch's other images follow, each once, but the run is no longer bit-identical to an undisturbed one"
    )
