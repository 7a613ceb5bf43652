"""Networks that follow another one as a moving average, as the keys and targets of contrastive methods do."""

import paddle
from paddle import nn


@paddle.no_grad()
def copy_weights(follower: nn.Layer, leader: nn.Layer) -> None:
    """Copy parameters and buffers to a network of equal architecture."""
    values = leader.state_dict()
    for name, value in follower.state_dict().items():
        paddle.assign(values[name], value)


@paddle.no_grad()
def follow(follower: nn.Layer, leader: nn.Layer, momentum: float) -> None:
    """Move the parameters towards those of a network of equal architecture; buffers stay.

    Args:
        momentum: share of the old value that is kept.
    """
    values = dict(leader.named_parameters())
    for name, value in follower.named_parameters():
        paddle.assign(value * momentum + values[name] * (1.0 - momentum), value)
