"""Layers whose activations are computed again in the backward pass, instead of being kept."""

import paddle
from paddle import nn
from paddle.distributed import fleet


def run(layer: nn.Layer, recompute: bool, tokens: paddle.Tensor, *others: paddle.Tensor | None) -> paddle.Tensor:
    """Return `layer(tokens, *others)`.

    Args:
        recompute: training keeps the layer's inputs only.
    """
    has_gradient = not tokens.stop_gradient or any(not p.stop_gradient for p in layer.parameters())
    if not (recompute and layer.training and has_gradient):
        return layer(tokens, *others)
    if tokens.stop_gradient:  # Paddle would compute no gradients at all, not even of the layer's parameters
        tokens = tokens.detach()
        tokens.stop_gradient = False
    return fleet.utils.recompute(layer, tokens, *others)
