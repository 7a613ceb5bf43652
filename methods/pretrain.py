"""Masked autoencoding (arXiv 2111.06377, Sec. 3 and Table 8)."""

import numpy as np
import paddle
from paddle import nn

import checkpoint
from mae import build_mae_pretrain
from methods.method import Method
from optim import param_groups
from pipeline.loading import Batch
from pipeline.transforms import Transform, crop_and_flip, train_transform
from training.optimizers import ema_of, optimizer_of
from training.task import Cost, Run, Task

_CROP_SCALE = [0.2, 1.0]


def build(run: Run) -> Task:
    """Build the autoencoder and its loss."""
    config = run.config
    paddle.seed(config.SEED)
    model = build_mae_pretrain(config)
    if config.MODEL.PRETRAINED and run.resume_from is None:
        run.log.say(str(checkpoint.load_weights(model, config.MODEL.PRETRAINED)))

    def loss(model: nn.Layer, batch: Batch, rng: np.random.Generator):
        # Masks are drawn from Paddle's generator, which the engine seeds; each view has its own.
        images = batch.images if len(batch.views) == 1 else paddle.concat(batch.views)
        return model(images)[0], {}

    optimizer = optimizer_of(config, param_groups(model, config.TRAIN.WEIGHT_DECAY, config.TRAIN.LAYER_DECAY))
    cost = Cost(views=config.TRAIN.VIEWS)
    return Task("pretrain", model, optimizer, loss, ema=ema_of(config, model), cost=cost, can_be_traced=True)


def transform(config) -> Transform:
    """Return a random crop and a flip, and nothing else (Sec. 4.1 "Data augmentation"), for each of TRAIN.VIEWS."""
    return train_transform(config, *[crop_and_flip(config, _CROP_SCALE)] * config.TRAIN.VIEWS)


METHOD = Method("pretrain", build, transform)
