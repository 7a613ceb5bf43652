"""Images for the tools: opened as a run's configuration says, and loaded as evaluation sees them."""

import contextlib

import numpy as np

import runtime
from config import image_size_hw, replaced
from errors import UserError
from measures import classification
from methods import multi_label
from pipeline import loading, sources
from pipeline.samplers import EvalSampler
from pipeline.transforms import eval_transform
from training import loaders


def open_any_images(config, split: str) -> sources.Source:
    """Open a split with its labels, or without where it has none."""
    try:
        return open_images(config, split)
    except UserError:
        return open_images(config, split, needs="none")


def open_images(config, split: str, needs: str = "label", num_classes: int | None = None) -> sources.Source:
    """Open a split.

    Args:
        needs: what each image must have, see `datasets.open_source`; a set with several labels per image has none where
            one is needed.
        num_classes: outputs of a classifier: labels must be below it, and are found by the names of its classes.
            None: labels are the data set's own.
    """
    config = config if num_classes is not None else replaced(config, "DATA.CLASS_NAMES", None)
    source = loaders.open_source(config, split, needs)
    if needs != multi_label.TARGET:
        source.labels = source.single_labels(strict=False)
    options = {"channels": config.DATA.IMAGE_CHANNELS, "is_val": split == "val"}
    for warning in source.check(num_classes=num_classes, **options):
        print(f"warning: {warning}")
    if source.limited_by:
        print(f"{split}: {source.summary()}{source.limited_by}")
    return source


def class_names(config) -> list[str]:
    """Return the names of a classifier's classes: recorded with its weights, or those of its val split."""
    own = config.DATA.CLASS_NAMES
    if own is None:
        with contextlib.suppress(UserError):  # the data set need not be here
            own = open_images(config, "val").class_names
    return classification.class_names(own, config.MODEL.NUM_CLASSES)


def choose_balanced(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose images at random, as many of each class as possible; indices in ascending order.

    Args:
        labels: [N].
        count: of images; all are taken if there are no more.
    """
    rng = np.random.default_rng(seed)
    turns = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turns[members] = rng.permutation(len(members))  # the first of each class, then the second of each, ...
    order = np.lexsort((rng.random(len(labels)), turns))
    return np.sort(order[:count])


def open_loader(config, source: sources.Source, notes: list[str] | None = None) -> loading.Loader:
    """Return batches as evaluation sees them, in the source's order; skipped images are appended to `notes`."""
    runtime.keep_large_blocks()
    sampler = EvalSampler(len(source), config.DATA.BATCH_SIZE)
    note_bad = print if notes is None else notes.append
    return loaders.build_loader(config, source, eval_transform(config), sampler, note_bad=note_bad)


def image_format(config) -> tuple:
    """Return size, channels and normalisation of a model's images, which two models must share to be compared."""
    data = config.DATA
    numbers = (data.PIXELS, str(data.PIXEL_RANGE), data.PIXEL_SCALE, str(data.BANDS), data.NODATA)
    return (image_size_hw(config), data.IMAGE_CHANNELS, tuple(data.IMAGENET_MEAN), tuple(data.IMAGENET_STD), *numbers)
