"""Data parallelism: the wrapped model, and averages over ranks of gradients and batch-norm statistics."""

import contextlib

import paddle
from paddle import distributed as dist
from paddle import nn

from runtime import world_size

_BUCKET_SIZE = 1 << 25  # gradients


def wrap(model: nn.Layer) -> nn.Layer:
    """Return the model to train: it starts from rank 0's weights, and averages gradients over ranks."""
    return paddle.DataParallel(model) if world_size() > 1 else model


def no_sync(model: nn.Layer, enabled: bool):
    """Return a context in which gradients of a wrapped model only add up locally."""
    return model.no_sync() if enabled and isinstance(model, paddle.DataParallel) else contextlib.nullcontext()


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


def average_gradients(parameters: list[paddle.Tensor], dtype: str) -> None:
    """Replace every gradient by the average over ranks, all at once after the backward pass, so nothing overlaps.

    Args:
        parameters: with gradients, in the same order on all ranks.
        dtype: in which they are sent. "bfloat16" is half the traffic of "float32", for links that are slow against the
            device; its 8 bits of precision are those of the sum as well.
    """
    if world_size() == 1:
        return
    for bucket in _buckets(parameters):
        flat = paddle.concat([parameter.grad.flatten().astype(dtype) for parameter in bucket])
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
