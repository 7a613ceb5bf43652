"""Sums and gathers over the ranks of a job, with gradients. In a single process they change nothing.

A rank's loss depends on what other ranks computed, so the backward pass sums the gradients of all ranks. With the mean
over ranks that data parallelism takes afterwards, the gradient is that of the mean loss of one process with all images.
"""

import paddle
from paddle import distributed as dist
from paddle.autograd import PyLayer


class _Sum(PyLayer):
    @staticmethod
    def forward(ctx, tensor):
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class _Gather(PyLayer):
    @staticmethod
    def forward(ctx, tensor):
        ctx.rows = tensor.shape[0]
        parts: list[paddle.Tensor] = []
        dist.all_gather(parts, tensor)
        return paddle.concat(parts)

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.clone()
        dist.all_reduce(total)
        first = dist.get_rank() * ctx.rows
        return total[first : first + ctx.rows]


def num_ranks() -> int:
    """Return the number of processes that take part."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def sum_over_ranks(tensor: paddle.Tensor) -> paddle.Tensor:
    """Add up a tensor over all ranks; every rank must call it with the same shape."""
    return tensor if num_ranks() == 1 else _Sum.apply(tensor)


def gather(tensor: paddle.Tensor) -> paddle.Tensor:
    """Concatenate [B, ...] of all ranks in their order, [R * B, ...]; every rank must have the same B."""
    return tensor if num_ranks() == 1 else _Gather.apply(tensor)
