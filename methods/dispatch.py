"""The table of methods, by which a main script trains or evaluates what MODEL.TYPE names."""

import contextlib
import dataclasses
from collections.abc import Sequence

import numpy as np

import checkpoint
from config import network_kind, replaced
from errors import UserError
from launch import run_directory
from methods import (
    attentive_probe,
    contrastive_tuning,
    finetune,
    image_text,
    linearprobe,
    moco,
    pretrain,
    segmentation,
    start,
    weak_labels,
)
from methods.method import Method
from pipeline import loading, sources
from pipeline.pixel_check import pixel_problems
from pipeline.sources import Source
from pipeline.transforms import Transform
from storage.clip_architecture import of_any_config
from training import loaders, memory, resolution
from training.engine import fit
from training.report import Page
from training.run import Run, start_run
from training.task import Cost, Task

# By MODEL.TYPE. config.METHODS is the other half of this table: the keys of each method, without its code.
METHODS: dict[str, Method] = {
    "PRETRAIN": pretrain.METHOD,
    "FINETUNE": finetune.METHOD,
    "LINEARPROBE": linearprobe.METHOD,
    "ATTENTIVE_PROBE": attentive_probe.METHOD,
    "CONTRASTIVE_TUNING": contrastive_tuning.METHOD,
    "MOCO": moco.METHOD,
    "SEGMENTATION": segmentation.METHOD,
    "WEAK_LABELS": weak_labels.METHOD,
    "IMAGE_TEXT": image_text.METHOD,
}


_CHECKED = 32  # images of a new run on arrays
_MOST_NAME_BYTES = 1 << 19  # in config.yaml, of which at most 1 MiB is read


def get_method(config) -> Method:
    """Return the method that a configuration asks for."""
    return METHODS[config.MODEL.TYPE]


def run_script(script: str, description: str, argv: Sequence[str] | None = None) -> dict[str, float]:
    """Do what a main script does: read the command line, train or evaluate, write the report.

    Args:
        script: "pretrain", "finetune" or "linearprobe".
        description: for the help text.
        argv: arguments; None: those of the process.

    Returns:
        The last metrics.
    """
    run = start_run(script, description, argv, lambda config: check_script(script, config), run_prefix)
    scores = train_or_evaluate(run)
    Page(run).finish()
    run.log.close()
    return scores


def run_prefix(config) -> str:
    """Return how the names of a method's run directories begin."""
    variant = get_method(config).variant(config)
    return config.MODEL.TYPE.lower() + (f"_{variant}" if variant else "")


def check_script(script: str, config) -> None:
    """Raise UserError if a configuration is for another main script, or its method cannot do what it asks for."""
    kind, method = config.MODEL.TYPE, get_method(config)
    if method.script != script:
        types = ", ".join(name for name, other in METHODS.items() if other.script == script)
        raise UserError(
            f"-cfg is for MODEL.TYPE {kind}, which main_multi_gpu_{method.script}.py runs; this script is for {types}"
        )
    if config.EVAL and not method.evaluate:
        raise UserError(f"-eval: MODEL.TYPE {kind} has no classifier to evaluate; finetune or probe the encoder")


def train_or_evaluate(run: Run) -> dict[str, float]:
    """Do what the run asks for, and return its last metrics."""
    try:
        return _train_or_evaluate(run)
    except UserError:
        if run.directory is not None and run.resume_from is None:
            run_directory.discard(run.directory)
        raise
    finally:
        run.log.close()


def _train_or_evaluate(run: Run) -> dict[str, float]:
    method = get_method(run.config)
    if run.gpus is not None:
        if run.config.MODEL.NUM_CLASSES is None:
            with contextlib.suppress(UserError):  # no data is needed for this
                follow_classes(run)
        architecture = of_any_config(run.config, network_kind(run.config))
        run.log.say(memory.describe(architecture, run.config, *reversed(run.gpus), _cost(run.config)))
        return {}
    recall_class_names(run)
    if run.config.MODEL.NUM_CLASSES is None:
        follow_classes(run)
    if method.evaluate and run.config.MODEL.NUM_CLASSES == 0:
        raise UserError("MODEL.NUM_CLASSES=0: an encoder without a head; set it to the number of classes in the data")
    names = run.config.DATA.CLASS_NAMES or []
    if method.evaluate and len(names) > run.config.MODEL.NUM_CLASSES:
        raise UserError(f"DATA.CLASS_NAMES: {len(names)} names, and MODEL.NUM_CLASSES={run.config.MODEL.NUM_CLASSES}")
    if method.evaluate and run.config.MODEL.NUM_CLASSES == 1 and not run.config.TRAIN.get("MULTI_LABEL"):
        raise UserError("MODEL.NUM_CLASSES=1: a classifier needs two classes; is the directory one level too high?")
    if run.config.EVAL:
        _write_config(run)  # as the data and the weights have made it
        return method.evaluate(run)
    train_loader = build_train_loader(run)
    record_class_names(run, train_loader.source)
    _write_config(run)
    eval_loader = _build_eval_loader(run, method)
    return fit(build_task(run), train_loader, eval_loader, run)


def _build_eval_loader(run: Run, method: Method):
    """Open the split on which a run is evaluated while it trains; None if it is not."""
    if method.build_eval_loader is not None:
        return method.build_eval_loader(run)
    config = run.config if method.evaluate else method.validation_config(run.config)
    if config is None:
        return None
    needs = method.target(run.config) if method.evaluate else "label"
    return loaders.build_eval_loader(run, config, needs)


def build_task(run: Run) -> Task:
    """Build what the run trains."""
    method = get_method(run.config)
    if method.whole_batch:
        start.check_whole_batch(run.config)
    if run.config.TRAIN.OPTIMIZER.NAME == "Muon" and run.config.MODEL.PRETRAINED:
        run.log.say(
            "warning: TRAIN.OPTIMIZER.NAME=Muon: for weights that AdamW has pretrained, AdamW is the safe choice"
        )
    if run.config.MODEL.PRETRAINED and run.resume_from is None:
        for line in start.pixel_differences(run.config):
            run.log.say(f"warning: {line}")
    return dataclasses.replace(method.build(run), accumulates=not method.whole_batch)


def _cost(config) -> Cost:
    """Return what a training step keeps for one image, without building the method's networks."""
    views = 1 if config.EVAL else len(train_transform(config).views) * config.TRAIN.get("MASKS", 1)
    return Cost(views, get_method(config).trained_blocks(config))


def train_transform(config) -> Transform:
    """Return the transform for training of a configuration's method."""
    return get_method(config).transform(config)


def build_train_loader(run: Run) -> loading.Loader:
    """Open and check the train split as the run's method needs it."""
    method = get_method(run.config)
    stages = [(stage.first_epoch, train_transform(stage.config)) for stage in resolution.stages(run.config)]
    target, transform = method.target(run.config), stages[-1][1]
    if run.config.DATA.PIXELS == "array" and run.resume_from is None:
        _check_pixels(run, loaders.open_once(run, "train", target))
    return loaders.build_train_loader(run, transform, target, method.prepare_source, method.whole_batch, stages)


def _check_pixels(run: Run, source: Source) -> None:
    """Warn of numbers that are not as the configuration says, by some images of the train split."""
    chosen = np.linspace(0, len(source) - 1, min(len(source), _CHECKED), dtype=np.int64)
    for line in pixel_problems(run.config, source, chosen):
        run.log.say(f"warning: {line}")


def follow_classes(run: Run) -> None:
    """Set MODEL.NUM_CLASSES, which is None, to the number of classes in the data; 0 where a run needs none."""
    config, num_classes, target = run.config, 0, get_method(run.config).target(run.config)
    if _has_labels(config):
        num_classes = loaders.open_once(run, "val" if config.EVAL else "train", target).count_classes()
        run.log.say(f"MODEL.NUM_CLASSES: {num_classes}, as the data has")
    run.config = replaced(config, "MODEL.NUM_CLASSES", num_classes)


def _has_labels(config) -> bool:
    return get_method(config).target(config) in (*sources.LABELLED, "mask")


def recall_class_names(run: Run) -> None:
    """Take DATA.CLASS_NAMES from the weights that are evaluated, or from the resumed run."""
    config = run.config
    weights = run.resume_from or (config.MODEL.PRETRAINED if config.EVAL else None)
    if weights is not None and config.DATA.CLASS_NAMES is None and _has_labels(config):
        run.config = replaced(config, "DATA.CLASS_NAMES", checkpoint.recorded_class_names(weights))


def record_class_names(run: Run, source: Source) -> None:
    """Set DATA.CLASS_NAMES to the names of the data set's classes, so that they travel with the weights.

    Where the run starts from a classifier of the same classes in another order, that order is taken.
    """
    config = run.config
    own, kept = source.class_names, config.MODEL.PRETRAINED and checkpoint.recorded_class_names(config.MODEL.PRETRAINED)
    if own is None or config.DATA.CLASS_NAMES is not None or not _has_labels(config):
        return
    if kept and set(kept) == set(own):
        source.use_class_names(kept)
    if sum(map(len, own)) + 8 * len(own) > _MOST_NAME_BYTES:
        run.log.say(f"the names of {len(own):,} classes are not recorded with the run: they are too long for its YAML")
        return
    run.config = replaced(config, "DATA.CLASS_NAMES", list(source.class_names))


def _write_config(run: Run) -> None:
    if run.directory is not None and (run.resume_from is None or run.config.EVAL):
        run_directory.write_config(run.directory, run.config)
