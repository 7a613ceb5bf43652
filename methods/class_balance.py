"""Rare classes: their images come more often, and their losses weigh more."""

import numpy as np
import paddle

from errors import UserError
from layers.cross_entropy import cross_entropy, mean_cross_entropy
from methods import multi_label
from pipeline.sources import Source
from pipeline.wrapped_sources import Subset
from training.loaders import open_once
from training.run import Run

_MOST_REPEATS = 20  # as WSP.MOST_REPEATS


def balance(config, source: Source) -> Source:
    """Return the source that is trained on, by TRAIN.CLASS_BALANCE; see `repeat_rare`."""
    return repeat_rare(source, config.TRAIN.CLASS_BALANCE, _MOST_REPEATS, config.SEED, "TRAIN.CLASS_BALANCE")


def repeat_rare(source: Source, power: float, most_repeats: int, seed: int, key: str) -> Source:
    """Return a source in which images of rare labels are listed several times.

    An image is listed max over its labels of (n / n_label) ** power times, at least once, where n is the mean number of
    images per label (arXiv 1805.00932 has the square root); fractions are drawn once per run.

    Args:
        most_repeats: of an image.
        key: of the configuration, for messages.

    Raises:
        UserError: if the labels of the data set are not all in memory.
    """
    if power == 0:
        return source
    if not source.has_labels_in_memory:
        raise UserError(f"{key}={power}: needs all labels at once, which shards do not have; set it to 0")
    labels = source.label_lists()
    lists = [labels[index] for index in range(len(labels))]
    flat = np.array([label for own in lists for label in set(own) if label >= 0], np.int64)
    if len(flat) == 0:
        return source
    counts = np.bincount(flat)
    factors = np.ones(len(counts))
    np.divide(counts[counts > 0].mean(), counts, out=factors, where=counts > 0)
    factors = factors**power
    wanted = [max((factors[label] for label in own if label >= 0), default=1.0) for own in lists]
    wanted = np.clip(wanted, 1.0, most_repeats)
    drawn = np.random.default_rng([seed, len(source)]).random(len(wanted))
    return Subset(source, np.repeat(np.arange(len(wanted)), np.floor(wanted + drawn).astype(int)))


# ---- losses


def class_weights(run: Run) -> paddle.Tensor | None:
    """Return the weights of the classes' losses [K] by TRAIN.CLASS_WEIGHTS; None where all are 1.

    "balanced": (images / classes) / images of the class, of the train split before TRAIN.CLASS_BALANCE, so that their
    mean over the images is 1 (scikit-learn's rule). A class without images gets 0. With TRAIN.MULTI_LABEL: images
    without the class / images with it, so that both parts of its loss weigh the same; 1 for a class of all or none.

    Raises:
        UserError: if there are not as many numbers as classes, or one is negative.
    """
    given, num_classes = run.config.TRAIN.CLASS_WEIGHTS, run.config.MODEL.NUM_CLASSES
    if given is None:
        return None
    if given == "balanced":
        given = _balanced_weights(run)
    is_list = not isinstance(given, str) and all(isinstance(value, (int, float)) for value in given)
    values = np.asarray(given if is_list else [], np.float32)
    if values.shape != (num_classes,) or not np.isfinite(values).all() or values.min() < 0 or values.max() == 0:
        raise UserError(f"TRAIN.CLASS_WEIGHTS={given}: must be balanced, or {num_classes} numbers from 0, not all 0")
    return paddle.to_tensor(values)


def _balanced_weights(run: Run) -> np.ndarray:
    num_classes = run.config.MODEL.NUM_CLASSES
    if run.config.TRAIN.MULTI_LABEL:
        lists = open_once(run, "train", multi_label.TARGET).label_lists()
        pairs = np.unique(lists.owners * num_classes + lists.flat)  # a label that an image has twice counts once
        counts, weights = np.bincount(pairs % num_classes, minlength=num_classes), np.ones(num_classes)
        return np.divide(len(lists) - counts, counts, out=weights, where=(counts > 0) & (counts < len(lists)))
    labels = open_once(run, "train", "label").single_labels()
    counts, weights = np.bincount(labels, minlength=num_classes), np.zeros(num_classes)
    return np.divide(len(labels) / (counts > 0).sum(), counts, out=weights, where=counts > 0)


def label_loss(logits: paddle.Tensor, labels: paddle.Tensor, weights: paddle.Tensor | None) -> paddle.Tensor:
    """Return the mean over the batch of the weighted cross-entropy of logits [B, K] at labels [B].

    torch divides by the sum of the weights instead, so there an image's share depends on its batch.
    """
    if weights is None:
        return mean_cross_entropy(logits, labels)
    return (cross_entropy(logits, labels).reshape([-1]) * paddle.gather(weights, labels)).mean()
