"""The optimizer of a configuration, and averages of weights that follow its updates."""

import concurrent.futures
import contextlib
import functools
from collections.abc import Callable, Iterator

import paddle
from paddle import nn
from paddle.optimizer import Optimizer

import runtime
from errors import UserError
from optim import JoinedOptimizer, build_optimizer
from training.device import is_on_cpu
from training.sharding import PartedOptimizer, ShardedOptimizer

_LEAST_PER_THREAD = 2_000_000  # parameters for which a thread is worth its cost


def configured_optimizer(config, groups: list[dict]):
    """Build TRAIN.OPTIMIZER over parameter groups, sharded over the ranks unless TRAIN.SHARDING is none.

    Args:
        groups: of `optim.param_groups`; those of several networks one after the other.
    """
    settings = config.TRAIN.OPTIMIZER
    options = {"betas": settings.BETAS, "eps": settings.EPS, "nesterov": settings.NESTEROV}
    if settings.NAME == "Muon":
        options["muon"] = {"momentum": settings.MUON_MOMENTUM, "dtype": settings.MUON_DTYPE}
        if not any(group["matrices"] for group in groups):
            raise UserError("TRAIN.OPTIMIZER.NAME=Muon: no matrix of a block trains here; use AdamW")
    build = functools.partial(build_optimizer, settings.NAME, **options)
    num_threads = runtime.cores_per_rank()
    if is_on_cpu() and settings.NAME.startswith("AdamW") and num_threads > 1:
        build = functools.partial(ThreadedOptimizer, build, num_threads)
    return build(groups) if config.TRAIN.SHARDING == "none" else ShardedOptimizer(build, groups)


class ThreadedOptimizer(PartedOptimizer, JoinedOptimizer):
    """Lets threads update shares of the parameters: AdamW's kernel on CPU takes one core, and leaves Python's lock.

    Parameters are distributed whole, so the result is bit-identical to that of one optimizer.

    Args:
        build: makes the optimizer of some parameter groups.
        num_threads: at most; small networks are updated by one.
        groups: of all parameters, see `optim.param_groups`.
    """

    def __init__(self, build: Callable[[list[dict]], Optimizer], num_threads: int, groups: list[dict]):
        size = sum(parameter.size for group in groups for parameter in group["params"])
        num_threads = max(1, min(num_threads, size // _LEAST_PER_THREAD))
        super().__init__(groups, num_threads)
        self._parts = [build(self._own_groups(groups, owner)) for owner in range(num_threads)]
        self._threads = concurrent.futures.ThreadPoolExecutor(num_threads - 1) if num_threads > 1 else None

    def step(self) -> None:
        """Update all parameters."""
        waiting = [self._threads.submit(part.step) for part in self._parts[1:]]
        self._parts[0].step()
        for done in waiting:
            done.result()


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
