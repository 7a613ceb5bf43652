"""Linear probing (Table 10): batch norm without affine parameters and a linear layer on the frozen encoder."""

from collections.abc import Sequence

import numpy as np
from paddle import nn

from methods import classifier
from methods.class_balance import balance, class_weights, label_loss
from methods.classifier import build_classifier
from methods.method import Method
from methods.multi_label import binary_cross_entropy
from methods.probe_sweep import build_sweep, variant
from optim import param_groups
from pipeline import augment
from pipeline.loading import Batch
from pipeline.mixup import smooth_one_hot
from pipeline.transforms import Transform, crop_and_flip, train_transform
from training.optimizers import configured_optimizer
from training.run import Run
from training.task import Task
from transformer import VisionTransformer

HEAD_STD = 0.01  # official code, over loaded weights
_CROP_SCALE = [0.08, 1.0]


def build(run: Run) -> Task:
    """Build the classifier with a frozen encoder."""
    model = build_classifier(run, HEAD_STD)
    return build_frozen(run, "linearprobe", model, [model.head])


def build_frozen(run: Run, name: str, model: VisionTransformer, trained: Sequence[nn.Layer]) -> Task:
    """Return the task of a classifier of which only some layers train, or of several such with TRAIN.LR_SWEEP.

    Args:
        name: of the method.
        trained: layers of the model.
    """
    config = run.config
    for parameter in model.parameters():
        parameter.stop_gradient = True
    for parameter in (parameter for layer in trained for parameter in layer.parameters()):
        parameter.stop_gradient = False

    weights, num_classes = class_weights(run), config.MODEL.NUM_CLASSES

    def loss(model: nn.Layer, batch: Batch, rng: np.random.Generator):
        logits = model(batch.images).astype("float32")
        if config.TRAIN.MULTI_LABEL:
            return binary_cross_entropy(logits, smooth_one_hot(batch.labels, num_classes, 0.0), weights), {}
        return label_loss(logits, batch.labels, weights), {}

    task = Task(
        name,
        model,
        configured_optimizer(config, param_groups(model, config.TRAIN.WEIGHT_DECAY, config.TRAIN.LAYER_DECAY)),
        loss,
        evaluation=classifier.evaluation(run),
        smallest_batch=2,
        can_be_traced=True,
    )
    return build_sweep(run, task, HEAD_STD, weights) if config.TRAIN.LR_SWEEP else task


def transform(config) -> Transform:
    """Return TensorFlow's kind of random crop, as the official probe has it, and a flip."""
    return train_transform(config, crop_and_flip(config, _CROP_SCALE, augment.random_resized_crop_tf))


METHOD = Method(
    "linearprobe",
    build,
    transform,
    target=classifier.target,
    evaluate=classifier.evaluate_only,
    prepare_source=balance,
    variant=variant,
)
