"""MoCo v3 (arXiv 2104.02057): contrast two views of an image, with keys of a momentum encoder and no queue."""

import math

import numpy as np
import paddle
from paddle import nn

from config import replaced
from errors import UserError
from layers.basic import unit_vectors
from layers.heads import feature_std, mlp_head
from layers.momentum import copy_weights, follow
from layers.pos_embed import position_table
from methods import start
from methods.info_nce import info_nce
from methods.method import Method
from pipeline.contrastive_augment import two_views
from pipeline.loading import Batch
from pipeline.transforms import Transform, train_transform
from training.flops import forward_macs
from training.optimizers import configured_optimizer, weight_average
from training.run import Run
from training.task import Cost, Task
from transformer import VisionTransformer, build_transformer, init_linear


class ProjectedEncoder(nn.Layer):
    """An encoder from images [B, C, H, W] to features [B, D], and its projector.

    Args:
        encoder: from images to features, without batch norms.
        widths: of the projector, from D to the projections.
    """

    def __init__(self, encoder: nn.Layer, widths: tuple[int, ...]):
        super().__init__()
        self.encoder = encoder
        self.projector = mlp_head(widths, norm_at_end=True, affine_at_end=False)

    def forward(self, view0: paddle.Tensor, view1: paddle.Tensor) -> list[paddle.Tensor]:
        """Return the projections [B, d] of each view [B, C, H, W]; batch norms see one view at a time.

        The encoder sees both at once: where it is computed again in the backward pass, data parallelism allows one use.
        """
        return [self.projector(features) for features in self.encoder(paddle.concat([view0, view1])).chunk(2)]


class MoCoV3(nn.Layer):
    """Encoder with projector and predictor, and the momentum copy of encoder and projector.

    Args:
        encoder, momentum_encoder: of equal architecture; the second gets the weights of the first.
        embed_dim: width of their features.
        hidden_dim, out_dim: of projector and predictor.
        temperature: of the softmax over similarities.
    """

    def __init__(
        self,
        encoder: nn.Layer,
        momentum_encoder: nn.Layer,
        embed_dim: int,
        hidden_dim: int = 4096,
        out_dim: int = 256,
        temperature: float = 0.2,
    ):
        super().__init__()
        self.temperature = temperature
        widths = (embed_dim, hidden_dim, hidden_dim, out_dim)
        self.base_encoder = ProjectedEncoder(encoder, widths)
        self.momentum_encoder = ProjectedEncoder(momentum_encoder, widths)
        self.predictor = mlp_head((out_dim, hidden_dim, out_dim), norm_at_end=True, affine_at_end=False)
        copy_weights(self.momentum_encoder, self.base_encoder)
        for parameter in self.momentum_encoder.parameters():
            parameter.stop_gradient = True

    def forward(self, view0: paddle.Tensor, view1: paddle.Tensor) -> tuple[paddle.Tensor, dict[str, paddle.Tensor]]:
        """Return the loss of two views [B, C, H, W] of the same images, and the numbers to log."""
        queries = [unit_vectors(self.predictor(projections)) for projections in self.base_encoder(view0, view1)]
        with paddle.no_grad():
            keys = [unit_vectors(projections) for projections in self.momentum_encoder(view0, view1)]
        # The factor 2 T keeps the size of the gradient about independent of the temperature (official code).
        parts = [
            2 * self.temperature * info_nce(query, key, self.temperature)
            for query, key in zip(queries, reversed(keys), strict=True)
        ]
        numbers = {"loss_view0": parts[0], "loss_view1": parts[1], "projection_std": feature_std(queries[0].detach())}
        return parts[0] + parts[1], numbers

    def update_momentum(self, momentum: float) -> None:
        """Move the momentum encoder's parameters towards the encoder's; statistics of batch norms are its own."""
        follow(self.momentum_encoder, self.base_encoder, momentum)


def momentum_at(step: int, total_steps: int, start: float) -> float:
    """Return the momentum before the keys of a step, from 0: from `start` to 1 by half a cosine."""
    return 1.0 - 0.5 * (1.0 + math.cos(math.pi * step / max(1, total_steps))) * (1.0 - start)


def build_encoder(config) -> VisionTransformer:
    """Build the encoder with MoCo v3's initialisation: fixed position table, q, k and v drawn one by one."""
    encoder = build_transformer(replaced(config, "MODEL.NUM_CLASSES", 0))
    dim = config.MODEL.ENCODER.EMBED_DIM
    for name, layer in encoder.named_sublayers():
        if isinstance(layer, nn.Linear):
            fan_out = dim if name.endswith("qkv") else layer.weight.shape[1]
            init_linear(layer, nn.initializer.XavierUniform(fan_out=fan_out))
    nn.initializer.Normal(std=1e-6)(encoder.cls_token)
    for patch in encoder.patch_embedding.projections:
        nn.initializer.XavierUniform(fan_in=math.prod(patch.weight.shape[1:]), fan_out=dim)(patch.weight)
        nn.initializer.Constant(0.0)(patch.bias)
    groups = len(encoder.architecture.channel_groups)
    encoder.encoder_position_embedding.set_value(position_table(dim, encoder.architecture.grid_hw, groups))
    encoder.encoder_position_embedding.stop_gradient = True
    for parameter in encoder.patch_embedding.parameters():
        parameter.stop_gradient = bool(config.MOCO.FREEZE_PATCH_EMBED)
    return encoder


def build(run: Run) -> Task:
    """Build both encoders, the heads and the loss."""
    config, moco = run.config, run.config.MOCO
    if config.MODEL.GLOBAL_POOL:
        raise UserError("MODEL.GLOBAL_POOL=True: MoCo v3 reads the class token; set it to False")
    paddle.seed(config.SEED)
    encoder = build_encoder(config)
    if config.MODEL.PRETRAINED:
        start.load_encoder(run, encoder)
    dim = config.MODEL.ENCODER.EMBED_DIM
    model = MoCoV3(encoder, build_encoder(config), dim, moco.HIDDEN_DIM, moco.OUT_DIM, moco.TEMPERATURE)
    # As in the official code, everything that trains is decayed, biases and norms, too.
    trained = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
    groups = [{"params": trained, "learning_rate": 1.0, "weight_decay": config.TRAIN.WEIGHT_DECAY}]

    def loss(model: nn.Layer, batch: Batch, rng: np.random.Generator):
        return model(*batch.views)

    return Task(
        "mocov3",
        model,
        configured_optimizer(config, groups),
        loss,
        saved=encoder,
        after_update=lambda step, total: model.update_momentum(momentum_at(step, total, moco.MOMENTUM)),
        ema=weight_average(config, encoder),
        smallest_batch=2,
        cost=Cost(views=2, other_macs=2 * forward_macs(encoder.architecture)),
    )


def transform(config) -> Transform:
    """Return the two views of MOCO.AUGMENTATION."""
    return train_transform(config, *two_views(config, config.MOCO.AUGMENTATION))


METHOD = Method("pretrain", build, transform, whole_batch=True)
