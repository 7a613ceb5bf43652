"""End-to-end finetuning (Table 9): soft targets from mixup or label smoothing, layer-wise learning rates."""

import numpy as np
from paddle import nn
from PIL import Image

from config import image_size_hw
from errors import UserError
from methods.classifier import BEST, METRICS, build_classifier, evaluate_batch, soft_cross_entropy
from methods.method import Method
from optim import param_groups
from pipeline import augment
from pipeline.fast_jpeg import LazyJpeg
from pipeline.loading import Batch
from pipeline.mixup import Mixup, random_erase, smooth_one_hot
from pipeline.transforms import Transform, train_transform
from training.optimizers import ema_of, optimizer_of
from training.task import Run, Task

_HEAD_STD = 2e-5  # official code, over loaded weights
_CROP_SCALE = [0.08, 1.0]


def build(run: Run) -> Task:
    """Build the classifier, and the loss on mixed images."""
    config, train = run.config, run.config.TRAIN
    model = build_classifier(run, _HEAD_STD)
    mixup = Mixup(
        config.MODEL.NUM_CLASSES,
        train.MIXUP_ALPHA,
        train.CUTMIX_ALPHA,
        train.CUTMIX_MINMAX,
        train.MIXUP_PROB,
        train.MIXUP_SWITCH_PROB,
        train.MIXUP_MODE,
        train.SMOOTHING,
    )

    def loss(model: nn.Layer, batch: Batch, rng: np.random.Generator):
        erase = (train.RANDOM_ERASE_PROB, train.RANDOM_ERASE_MODE, train.RANDOM_ERASE_COUNT)
        images = random_erase(batch.images, rng, *erase)
        if mixup.prob > 0:
            images, targets = mixup(images, batch.labels, rng)
        else:
            targets = smooth_one_hot(batch.labels, config.MODEL.NUM_CLASSES, train.SMOOTHING)
        return soft_cross_entropy(model(images), targets), {}

    return Task(
        "finetune",
        model,
        optimizer_of(config, param_groups(model, train.WEIGHT_DECAY, train.LAYER_DECAY)),
        loss,
        evaluate=evaluate_batch,
        metrics=METRICS,
        best=BEST,
        ema=ema_of(config, model),
        can_be_traced=True,
    )


def transform(config) -> Transform:
    """Return a random crop, a flip, and RandAugment, AutoAugment or colour jitter; random erasing is in the loss."""
    size_hw, train, channels = image_size_hw(config), config.TRAIN, config.DATA.IMAGE_CHANNELS
    scale = train.CROP_SCALE or _CROP_SCALE
    if channels not in (1, 3) and (train.RAND_AUGMENT or train.AUTO_AUGMENT):
        raise UserError(
            f"TRAIN.RAND_AUGMENT and TRAIN.AUTO_AUGMENT work on 1 or 3 channels; DATA.IMAGE_CHANNELS is {channels}; "
            "set both False"
        )
    fill = tuple(round(255 * mean) for mean in config.DATA.IMAGENET_MEAN)
    fill = fill[0] if len(fill) == 1 else fill

    def view(image: Image.Image | LazyJpeg, rng: np.random.Generator) -> np.ndarray:
        image = augment.random_resized_crop(image, size_hw, rng, scale)
        image = augment.as_image(augment.random_flip(image, rng, train.FLIP_PROB))
        if train.AUTO_AUGMENT:
            image = augment.auto_augment(image, rng, fill)
        elif train.RAND_AUGMENT:
            image = augment.rand_augment(image, rng, train.RAND_AUGMENT_LAYERS, train.RAND_AUGMENT_MAGNITUDE, fill=fill)
        elif train.COLOR_JITTER > 0:
            image = augment.color_jitter(image, rng, train.COLOR_JITTER)
        return augment.as_pixels(image)

    return train_transform(config, view)


METHOD = Method("finetune", build, transform, target="label", evaluates=True)
