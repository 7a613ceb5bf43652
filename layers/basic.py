"""Layers of which the networks are made, each computed by the device's fastest way."""

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import nn

from errors import UserError
from layers import kernels

LAYER_NORM_EPS = 1e-6
ONE_IMAGE_ADVICE = "choose another -batch_size, or set DATA.DROP_LAST True"


class Linear(nn.Linear):
    """Paddle's layer, computed the fastest way."""

    def forward(self, inputs: paddle.Tensor) -> paddle.Tensor:
        """Transform inputs [..., in] to [..., out]."""
        return kernels.linear(inputs, self.weight, self.bias)


class Mlp(nn.Layer):
    """Linear, exact GELU, Linear."""

    def __init__(self, embed_dim: int, mlp_ratio: float, dropout: float):
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.fc1 = Linear(embed_dim, hidden)
        self.fc2 = Linear(hidden, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """Transform tokens [B, T, D] one by one."""
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(tokens)))))


class LayerNorm(nn.LayerNorm):
    """Paddle's layer over the last dimension, computed by the device's fastest way."""

    def __init__(self, embed_dim: int, epsilon: float = LAYER_NORM_EPS):
        super().__init__(embed_dim, epsilon=epsilon)

    def forward(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """Normalise tokens [..., D]."""
        return kernels.layer_norm(tokens, self.weight, self.bias, self._epsilon)


class ProbeNorm(nn.BatchNorm1D):
    """Batch norm without affine parameters, before the classifier of a linear probe.

    Paddle's momentum is the share of the old statistics that stays: 0.9 is torch's 0.1.
    """

    def __init__(self, embed_dim: int):
        super().__init__(embed_dim, momentum=0.9, epsilon=1e-6, weight_attr=False, bias_attr=False)

    def forward(self, features: paddle.Tensor) -> paddle.Tensor:
        """Normalise features [B, D]; one image alone has no deviation, and Paddle would pass it through as it is."""
        if self.training and paddle.in_dynamic_mode() and features.shape[0] == 1:
            raise UserError(f"a batch of one image cannot be normalised; {ONE_IMAGE_ADVICE}")
        if not self.training and not paddle.in_dynamic_mode():  # Paddle Inference crashes on a batch norm of two axes
            return (features - self._mean) * (self._variance + self._epsilon).rsqrt()
        if not self.training or not paddle.in_dynamic_mode():  # a static graph has no buffers to put back
            return nn.BatchNorm1D.forward(self, features)  # Paddle 2.6 cannot trace super()
        buffers = (self._mean, self._variance)
        before = [buffer.clone() for buffer in buffers]
        if features.stop_gradient:
            normalised = nn.BatchNorm1D.forward(self, features)
            moved = buffers
        else:  # Paddle's layer does not allow to write its buffers before the backward pass
            mean = features.mean(axis=0)
            variance = (features - mean).square().mean(axis=0)  # Paddle's var warns of types that it mixes itself
            normalised = (features - mean) * (variance + self._epsilon).rsqrt()
            kept = self._momentum
            moved = [old * kept + new.detach() * (1 - kept) for old, new in zip(before, (mean, variance), strict=True)]
        for buffer, value in zip(buffers, keep_finite(moved, before), strict=True):
            paddle.assign(value.detach(), buffer)
        return normalised


class ReLU(nn.Layer):
    """The positive part. Paddle's own makes 0 of NaN, which then nobody would see."""

    def forward(self, features: paddle.Tensor) -> paddle.Tensor:
        """Replace what is below zero by zero."""
        return features * (features > 0).astype(features.dtype)


def unit_vectors(vectors: paddle.Tensor) -> paddle.Tensor:
    """Scale vectors [B, D] to length 1, in float32."""
    with paddle.amp.auto_cast(enable=False):
        return F.normalize(vectors.astype("float32"))


@paddle.no_grad()
def keep_finite(values: Sequence[paddle.Tensor], before: Sequence[paddle.Tensor]) -> list[paddle.Tensor]:
    """Return new values of buffers that a forward pass changes, or the old ones if the new ones are not all finite.

    The training loop can leave out an update with bad numbers, but not what its forward pass has done.
    """
    is_good = paddle.stack([value.isfinite().all() for value in values]).all()
    return [paddle.where(is_good, new, old) for new, old in zip(values, before, strict=True)]


class DropPath(nn.Layer):
    """Drop a residual branch per image, and scale what stays by 1 / keep (stochastic depth, arXiv 1603.09382)."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, branch: paddle.Tensor) -> paddle.Tensor:
        """Zero whole images of the branch [B, T, D] while training."""
        if not self.training or self.drop_prob == 0.0:
            return branch
        keep_prob = 1.0 - self.drop_prob
        keep = (paddle.rand([branch.shape[0], 1, 1]) < keep_prob).astype(branch.dtype)  # [B, 1, 1]
        return branch * (keep / keep_prob)
