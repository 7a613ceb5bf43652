"""The optimizer of a configuration, and averages of weights that follow its updates."""

import contextlib
import functools
from collections.abc import Iterator

import paddle
from paddle import nn

from optim import build_optimizer
from training.sharding import ShardedOptimizer


def configured_optimizer(config, groups: list[dict]):
    """Build TRAIN.OPTIMIZER over parameter groups, sharded if TRAIN.SHARD_OPTIMIZER is set.

    Args:
        groups: of `optim.param_groups`; those of several networks one after the other.
    """
    settings = config.TRAIN.OPTIMIZER
    options = {"betas": settings.BETAS, "eps": settings.EPS, "nesterov": settings.NESTEROV}
    build = functools.partial(build_optimizer, settings.NAME, **options)
    return ShardedOptimizer(build, groups) if config.TRAIN.SHARD_OPTIMIZER else build(groups)


def weight_average(config, network: nn.Layer) -> "WeightAverage | None":
    """Return an average of a network's weights; None unless TRAIN.EMA_DECAY is set."""
    return WeightAverage(network, config.TRAIN.EMA_DECAY) if config.TRAIN.EMA_DECAY is not None else None


class WeightAverage:
    """Exponential moving average of a model's weights (EMA), kept in float32 beside it.

    Args:
        model: its state dict is averaged; integers are copied.
        decay: share of the old average that stays at each update.
    """

    def __init__(self, model: nn.Layer, decay: float):
        self.decay = decay
        self._average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @paddle.no_grad()
    def update(self, model: nn.Layer, is_made: paddle.Tensor | None = None) -> None:
        """Move the average towards the model's weights.

        Args:
            is_made: boolean on the device: True if the optimizer made its update. If not, the average stays.
        """
        share = paddle.full([], 1.0 - self.decay)
        if is_made is not None:
            share = paddle.where(is_made, share, paddle.zeros([]))
        for name, value in model.state_dict().items():
            average = self._average[name]
            if value.dtype in (paddle.float32, paddle.float64):
                average.lerp_(value.detach(), share.astype(value.dtype))
            else:
                paddle.assign(value, average)

    def state_dict(self) -> dict[str, paddle.Tensor]:
        """Return the averaged weights under the model's names."""
        return dict(self._average)

    def set_state_dict(self, state: dict) -> None:
        """Restore the average exactly."""
        for name, average in self._average.items():
            average.set_value(paddle.to_tensor(state[name], dtype=average.dtype))

    @contextlib.contextmanager
    def swapped(self, model: nn.Layer) -> Iterator[None]:
        """Give the model the averaged weights within this context."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    @paddle.no_grad()
    def _swap(self, model: nn.Layer) -> None:
        for name, value in model.state_dict().items():
            kept = value.detach().clone()
            paddle.assign(self._average[name], value)
            paddle.assign(kept, self._average[name])
