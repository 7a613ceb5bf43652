"""Projection and prediction heads of contrastive methods: linear layers with batch norms over all ranks."""

import itertools
import math
from collections.abc import Sequence

import paddle
from paddle import nn

from errors import UserError
from layers.across_ranks import sum_over_ranks
from layers.basic import ONE_IMAGE_ADVICE, Linear, ReLU, keep_finite
from runtime import world_size

_BATCH_NORM_EPS, _BATCH_NORM_KEPT = 1e-5, 0.9  # torch's defaults; its momentum is 0.1


class JointBatchNorm(nn.Layer):
    """Batch norm of features [B, D] with the statistics of the joint batch of all ranks, in float32.

    Paddle's SyncBatchNorm has no kernel for CPU, and its running variance is the biased one. This one works everywhere,
    and keeps torch's statistics: the running variance is unbiased. Every rank must have the same B.

    Args:
        width: D.
        affine: scale and shift the result.
    """

    def __init__(self, width: int, affine: bool = True):
        super().__init__()
        self.weight = (
            self.create_parameter([width], default_initializer=nn.initializer.Constant(1.0)) if affine else None
        )
        self.bias = self.create_parameter([width], is_bias=True) if affine else None
        self._epsilon = _BATCH_NORM_EPS
        self.register_buffer("_mean", paddle.zeros([width]))
        self.register_buffer("_variance", paddle.ones([width]))

    def forward(self, features: paddle.Tensor) -> paddle.Tensor:
        """Normalise features [B, D]."""
        with paddle.amp.auto_cast(enable=False):
            features = features.astype("float32")
            mean, variance = self._batch_statistics(features) if self.training else (self._mean, self._variance)
            normalised = (features - mean) * (variance + self._epsilon).rsqrt()
            return normalised if self.weight is None else normalised * self.weight + self.bias

    def _batch_statistics(self, features: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Return mean and biased variance [D] over all ranks, and move the running statistics."""
        count = features.shape[0] * world_size()
        if count == 1:
            raise UserError(f"a batch of one image cannot be normalised; {ONE_IMAGE_ADVICE}")
        mean = sum_over_ranks(features.sum(axis=0)) / count
        variance = sum_over_ranks((features - mean).square().sum(axis=0)) / count
        with paddle.no_grad():
            kept = _BATCH_NORM_KEPT
            moved = [
                self._mean * kept + mean.detach() * (1 - kept),
                self._variance * kept + variance.detach() * ((1 - kept) * count / (count - 1)),
            ]
            buffers = (self._mean, self._variance)
            for buffer, value in zip(buffers, keep_finite(moved, buffers), strict=True):
                paddle.assign(value, buffer)
        return mean, variance


def plain_linear(inputs: int, outputs: int) -> Linear:
    """Return a linear layer without bias, drawn like torch's: uniformly within 1 / sqrt(inputs)."""
    layer = Linear(inputs, outputs, bias_attr=False)
    bound = 1.0 / math.sqrt(inputs)
    nn.initializer.Uniform(-bound, bound)(layer.weight)
    return layer


def mlp_head(widths: Sequence[int], norm_at_end: bool, affine_at_end: bool = True) -> nn.Sequential:
    """Return linear layers without bias, with batch norm and ReLU between them.

    Args:
        widths: of the input, the hidden layers, and the output.
        norm_at_end: a batch norm follows the last linear layer, too.
        affine_at_end: it scales and shifts.
    """
    layers: list[nn.Layer] = []
    for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        is_last = index == len(widths) - 2
        layers.append(plain_linear(inputs, outputs))
        if not is_last or norm_at_end:
            layers.append(JointBatchNorm(outputs, affine=affine_at_end or not is_last))
        if not is_last:
            layers.append(ReLU())
    return nn.Sequential(*layers)


@paddle.no_grad()
def feature_std(unit_vectors: paddle.Tensor) -> paddle.Tensor:
    """Return how far unit vectors [B, d] are spread: about 1 if evenly over all directions, 0 if they have collapsed.

    It is the mean over the d coordinates of their standard deviation over the batch, times the root of d.
    """
    centred = unit_vectors - unit_vectors.mean(axis=0)
    return centred.square().mean(axis=0).sqrt().mean() * unit_vectors.shape[1] ** 0.5
