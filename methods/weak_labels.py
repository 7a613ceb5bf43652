"""Weakly supervised pretraining (WSP): a classifier of very many noisy labels, such as hashtags (arXiv 2303.13496).

The recipe follows SWAG (arXiv 2201.08371): an image may have several labels, and the target gives each an equal share.
"""

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from layers.cross_entropy import log_total
from methods.class_balance import repeat_rare
from methods.classifier import build_classifier
from methods.method import Method
from optim import param_groups
from pipeline.loading import Batch
from pipeline.sources import Source
from pipeline.transforms import Transform, crop_and_flip, train_transform
from training.optimizers import configured_optimizer, weight_average
from training.run import Run
from training.task import Task

_CROP_SCALE = [0.08, 1.0]
_HEAD_STD = 0.01  # initialisation of a new head over loaded weights


def many_label_loss(logits: paddle.Tensor, labels: paddle.Tensor, kind: str = "softmax") -> paddle.Tensor:
    """Return the mean loss over the images, in float32, without a dense target [B, C].

    An image without labels has a loss of 0, and counts in the mean. A label that an image has twice counts once.

    Args:
        logits: [B, C].
        labels: [B, L] int64, padded with -1; or [B].
        kind: "softmax": cross-entropy with a target that gives each label of an image an equal share; "bce": mean over
            the classes of the binary cross-entropy.
    """
    with paddle.amp.auto_cast(enable=False):
        logits = logits.astype("float32")
        labels = labels.unsqueeze(1) if labels.ndim == 1 else labels
        counted = ((labels >= 0) & ~_repeated(labels)).astype("float32")  # [B, L]
        at_labels = paddle.take_along_axis(logits, labels.clip(min=0), axis=1)  # [B, L]
        if kind == "bce":
            losses = F.softplus(logits).sum(axis=1) - (at_labels * counted).sum(axis=1)
            has_label = (counted.sum(axis=1) > 0).astype("float32")
            return (losses * has_label).mean() / logits.shape[1]
        total, highest = log_total(logits)
        shares = counted / counted.sum(axis=1, keepdim=True).clip(min=1.0)
        return ((total - (at_labels - highest)) * shares).sum(axis=1).mean()


def _repeated(labels: paddle.Tensor) -> paddle.Tensor:
    """Mark the labels [B, L] that an image has had before in its row."""
    width = labels.shape[1]
    is_same = labels.unsqueeze(2) == labels.unsqueeze(1)  # [B, L, L]
    is_earlier = paddle.arange(width).unsqueeze(0) < paddle.arange(width).unsqueeze(1)
    return (is_same & is_earlier.unsqueeze(0)).any(axis=2)


def build(run: Run) -> Task:
    """Build the classifier over a pretrained encoder, and its loss."""
    config = run.config
    model = build_classifier(run, _HEAD_STD)

    def loss(model: nn.Layer, batch: Batch, rng: np.random.Generator):
        return many_label_loss(model(batch.images), batch.labels, config.WSP.LOSS), {}

    groups = param_groups(model, config.TRAIN.WEIGHT_DECAY, config.TRAIN.LAYER_DECAY)
    return Task(
        "weak_labels",
        model,
        configured_optimizer(config, groups),
        loss,
        ema=weight_average(config, model),
        can_be_traced=True,
    )


def transform(config) -> Transform:
    """Return a random crop and a flip."""
    return train_transform(config, crop_and_flip(config, _CROP_SCALE))


def balanced(config, source: Source) -> Source:
    """Return a source in which images of rare labels are listed several times, by WSP.BALANCE."""
    return repeat_rare(source, config.WSP.BALANCE, config.WSP.MOST_REPEATS, config.SEED, "WSP.BALANCE")


METHOD = Method("pretrain", build, transform, target=lambda config: "labels", prepare_source=balanced)
