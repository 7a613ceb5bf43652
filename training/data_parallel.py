"""Data parallelism: how ranks exchange gradients within an update, and averages of batch-norm statistics.

An `Exchange` is chosen by TRAIN.SHARDING: `Averaging` leaves the averages of all gradients on every rank,
`sharded_gradients.ReducingToOwners` those of a rank's own parameters.
"""

import contextlib

import paddle
from paddle import distributed as dist
from paddle import nn

from runtime import world_size
from training.device import is_on_cpu

_BUCKET_SIZE = 1 << 25  # gradients


class Exchange:
    """The exchange of gradients within an update; of a single process, nothing is exchanged.

    Attributes:
        model: whose forward pass is to be called.
    """

    def __init__(self, model: nn.Layer):
        self.model = model
        self._trained = [parameter for parameter in model.parameters() if not parameter.stop_gradient]

    def micro_step(self, is_last: bool) -> contextlib.AbstractContextManager:
        """Return the context of the forward and backward passes of a micro-step, the update's last or not."""
        return contextlib.nullcontext()

    def finish(self, num_missing: int = 0) -> None:
        """Exchange what the backward passes left; afterwards gradients are averages over ranks.

        Args:
            num_missing: micro-steps of other ranks that this rank has no images for.
        """

    def spread_infinity(self) -> None:
        """Make sure that ranks whose gradients are not finite are not alone to know."""

    @paddle.no_grad()
    def clip(self, limit: float | None) -> paddle.Tensor:
        """Return the norm of all gradients together, in float32, and scale them so that it is at most `limit`.

        Paddle's own `grad_clip` would clip each parameter group by itself.
        """
        held = [parameter for parameter in self._trained if parameter.grad is not None]
        if limit is None:
            return self._of_all_ranks(held, [squared_norm(parameter.grad) for parameter in held]).sum().sqrt()
        norms = self._of_all_ranks(held, [paddle.linalg.norm(parameter.grad.detach(), 2.0) for parameter in held])
        norm = paddle.linalg.norm(norms, 2.0)
        scale = (limit / (norm + 1e-6)).clip(max=1.0)
        for parameter in held:
            parameter.grad = parameter.grad * scale
        return norm

    def _of_all_ranks(self, held: list[paddle.Tensor], numbers: list[paddle.Tensor]) -> paddle.Tensor:
        """Return one number per gradient, of the gradients on all ranks."""
        return paddle.stack(numbers)


class Averaging(Exchange):
    """Average every gradient over ranks: Paddle's DataParallel, while the backward pass runs.

    Args:
        model: starts from rank 0's weights.
        dtype: in which gradients are sent. "bfloat16" is half the traffic of "float32", for links that are slow against
            the device; its 8 bits of precision are those of the sum as well.
        at_once: send them after the backward pass, as DataParallel cannot follow the backward passes within the
            backward pass that recomputation makes; so do gradients in bfloat16.
    """

    def __init__(self, model: nn.Layer, dtype: str, at_once: bool):
        super().__init__(model)
        self._dtype, self._at_once = dtype, at_once or dtype != "float32"
        if world_size() > 1:
            self.model = paddle.DataParallel(model)

    def micro_step(self, is_last: bool) -> contextlib.AbstractContextManager:
        """Return the context of a micro-step; gradients are sent in the last one."""
        waits = world_size() > 1 and (self._at_once or not is_last)
        return self.model.no_sync() if waits else contextlib.nullcontext()

    def finish(self, num_missing: int = 0) -> None:
        """Average what was not sent during the backward pass."""
        if world_size() == 1 or not self._at_once:
            return
        for bucket in _buckets([parameter for parameter in self._trained if parameter.grad is not None]):
            flat = paddle.concat([parameter.grad.flatten().astype(self._dtype) for parameter in bucket])
            dist.all_reduce(flat)
            averages = paddle.split(flat.astype("float32") / world_size(), [parameter.size for parameter in bucket])
            for parameter, average in zip(bucket, averages, strict=True):
                paddle.assign(average.reshape(parameter.shape).astype(parameter.grad.dtype), parameter.grad)


def _buckets(parameters: list[paddle.Tensor]) -> list[list[paddle.Tensor]]:
    """Group parameters so that a transfer is large, and its copy small."""
    buckets: list[list[paddle.Tensor]] = [[]]
    for parameter in parameters:
        if sum(other.size for other in buckets[-1]) >= _BUCKET_SIZE:
            buckets.append([])
        buckets[-1].append(parameter)
    return buckets


def squared_norm(gradient: paddle.Tensor) -> paddle.Tensor:
    """Return the sum of squares, in float32."""
    if is_on_cpu():
        return gradient.astype("float32").square().sum()
    # One kernel instead of two or three; on CPU it would sum in another order.
    return paddle._C_ops.squared_l2_norm(gradient.astype("float32")).reshape([])


def average_running_statistics(model: nn.Layer) -> None:
    """Average batch-norm statistics over ranks in place; each rank has seen its own images only."""
    if world_size() == 1:
        return
    for value in running_statistics(model):
        dist.all_reduce(value)
        paddle.assign(value / world_size(), value)


def running_statistics(model: nn.Layer) -> list[paddle.Tensor]:
    """Return means and variances that a model's batch norms keep."""
    return [value for name, value in model.state_dict().items() if name.endswith(("._mean", "._variance"))]
