"""The record by which the rest of the project uses a method."""

import dataclasses
from collections.abc import Callable

from pipeline.sources import Source
from pipeline.transforms import Transform
from training.run import Run
from training.task import Task


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of training; MODEL.TYPE names it, and configs/methods/NAME.yaml has its keys.

    Attributes:
        script: the main script that runs it: "pretrain", "finetune" or "linearprobe".
        build: makes the `Task` of a run.
        transform: makes the `Transform` for training from a configuration; one view or several.
        target: returns what each training image must have, given the configuration: "none", "label", "labels" (one or
            more), "label set" (any number of labels) or "caption". Batches carry any other fields of the data set, too,
            see `loading.Batch`.
        variant: besides MODEL.TYPE, the kind of a run, where one kind cannot be resumed as another; part of the run
            directory's name, by which `-resume auto` finds a run.
        evaluate: evaluates the weights of -pretrained for -eval, given the run; such a method also evaluates on the
            val split while it trains. None: it does neither.
        build_eval_loader: opens the val split for that, given the run; None: as a classifier's, with labels.
        validation_config: for a method that does not: returns the configuration of a data set, on the val split of
            which a run is evaluated while it trains, or None.
        prepare_source: returns the source that is trained on, given the configuration and the data set's own.
        trained_blocks: upper blocks of the encoder through which gradients go, given the configuration; None: all.
        whole_batch: the loss is over all images of an update together, so a smaller batch would be another loss.
    """

    script: str
    build: Callable[[Run], Task]
    transform: Callable[[object], Transform]
    target: Callable[[object], str] = lambda config: "none"
    evaluate: Callable[[Run], dict[str, float]] | None = None
    build_eval_loader: Callable[[Run], object] | None = None
    variant: Callable[[object], str] = lambda config: ""
    validation_config: Callable[[object], object | None] = lambda config: None
    prepare_source: Callable[[object, Source], Source] = lambda config, source: source
    trained_blocks: Callable[[object], int | None] = lambda config: None
    whole_batch: bool = False
