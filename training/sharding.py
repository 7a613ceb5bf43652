"""An optimizer whose state is shared out among the ranks, for models whose AdamW moments do not fit one device."""

from collections.abc import Callable

import paddle
from paddle import distributed as dist
from paddle.optimizer import Optimizer

import runtime
from training.shares import share_out


class PartedOptimizer:
    """What optimizers have in common that update shares of the parameters apart, each parameter whole.

    Args:
        groups: of all parameters, see `optim.param_groups`.
        num_parts: among which they are shared out.
    """

    _param_groups = None  # paddle.amp.GradScaler reads it, and `_parameter_list`: it looks at all gradients

    def __init__(self, groups: list[dict], num_parts: int):
        self._parameter_list = [parameter for group in groups for parameter in group["params"]]
        self._owners = share_out([parameter.size for parameter in self._parameter_list], num_parts)

    def _own_groups(self, groups: list[dict], owner: int) -> list[dict]:
        """Return the groups with the parameters of one part; groups without any are left out."""
        pairs = zip(self._parameter_list, self._owners, strict=True)
        names = {parameter.name for parameter, of in pairs if of == owner}
        own = [{**group, "params": [p for p in group["params"] if p.name in names]} for group in groups]
        return [group for group in own if group["params"]]

    def clear_grad(self, set_to_zero: bool = True) -> None:
        """Forget the gradients of all parameters."""
        for parameter in self._parameter_list:
            parameter.clear_gradient(set_to_zero)


class ShardedOptimizer(PartedOptimizer):
    """Let each rank update its own parameters, and hand them to the others (ZeRO stage 1, arXiv 1910.02054).

    A rank keeps the optimizer state of its share only: with R ranks, AdamW takes 8 / R bytes per parameter instead of
    8, besides 4 for the weight and 4 for its gradient. Parameters are distributed whole, so the result is bit-identical
    to that of the unsharded optimizer. Each rank saves its part of the state; a run may resume sharded or not, on any
    number of ranks. Paddle's own engines take no parameter groups (fleet's stage 1), which layer-wise decay needs, or
    no CPU (`group_sharded_parallel`), where they could be tested.

    Args:
        build: makes the optimizer of some parameter groups.
        groups: of all parameters, see `optim.param_groups`.
    """

    def __init__(self, build: Callable[[list[dict]], Optimizer], groups: list[dict]):
        super().__init__(groups, runtime.world_size())
        own_groups = self._own_groups(groups, runtime.rank())
        self._own_names = {parameter.name for group in own_groups for parameter in group["params"]}
        self._optimizer = build(own_groups) if own_groups else None

    @property
    def gradient_share(self) -> float:
        """Factor of the next update's gradients, for an optimizer that normalises them."""
        return getattr(self._optimizer, "gradient_share", 1.0)

    @gradient_share.setter
    def gradient_share(self, share: float) -> None:
        if hasattr(self._optimizer, "gradient_share"):
            self._optimizer.gradient_share = share

    def set_lr(self, value: float) -> None:
        """Set the learning rate of the next update."""
        if self._optimizer is not None:
            self._optimizer.set_lr(value)

    def step(self) -> None:
        """Update this rank's parameters, and exchange all."""
        if self._optimizer is not None:
            self._optimizer.step()
        if runtime.world_size() == 1:
            return
        pairs = zip(self._parameter_list, self._owners, strict=True)
        with paddle.no_grad():
            pending = [dist.broadcast(parameter, src=owner, sync_op=False) for parameter, owner in pairs]
        for transfer in pending:
            transfer.wait()

    def state_dict(self) -> dict[str, paddle.Tensor]:
        """Return this rank's part of the state."""
        return {} if self._optimizer is None else self._optimizer.state_dict()

    def owners(self) -> dict[str, int]:
        """Return the rank that owns each parameter, by automatic names."""
        return {p.name: owner for p, owner in zip(self._parameter_list, self._owners, strict=True)}

    def owns(self, name: str) -> bool:
        """Return True if this rank keeps the state of a parameter, by its automatic name."""
        return name in self._own_names

    def set_state_dict(self, state: dict[str, paddle.Tensor]) -> None:
        """Restore this rank's part of the state."""
        if self._optimizer is not None:
            self._optimizer.set_state_dict(state)
