"""Ranks, and what they exchange. Everything works in a single process, too."""

import contextlib
import logging
import os
import tempfile

import numpy as np
import paddle
from paddle import distributed as dist
from paddle import nn

from errors import UserError, printable

_BUCKET_SIZE = 1 << 25  # gradients
_ROWS_AT_ONCE = 1 << 14


def rank() -> int:
    """Return this process's number, from 0."""
    return _number("PADDLE_TRAINER_ID", "0")


def world_size() -> int:
    """Return the number of processes, on all nodes."""
    return _number("PADDLE_TRAINERS_NUM", "1")


def _number(variable: str, default: str) -> int:
    """Return a number that a launcher left in the environment."""
    text = os.environ.get(variable, default)
    if not text.isdecimal() or len(text) > 9:
        raise UserError(f"{variable}={printable(text, 40)}: is no number; it is for a launcher to set, so unset it")
    return int(text)


def is_main() -> bool:
    """Return True if this process writes files and prints."""
    return rank() == 0


def init() -> None:
    """Join the other processes, if there are any."""
    if world_size() > 1 and not dist.is_initialized():
        _import_http_server()
        dist.init_parallel_env()


def _import_http_server() -> None:
    """Import Paddle's store for addresses, which makes a file http.log in the working directory; here it makes none."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            from paddle.distributed.fleet.utils import http_server
        finally:
            os.chdir(before)
    for handler in list(http_server._http_server_logger.handlers):
        http_server._http_server_logger.removeHandler(handler)
        handler.close()
    http_server._http_server_logger.addHandler(logging.NullHandler())


def wrap(model: nn.Layer) -> nn.Layer:
    """Return the model to train: it starts from rank 0's weights, and averages gradients over ranks."""
    return paddle.DataParallel(model) if world_size() > 1 else model


def no_sync(model: nn.Layer, enabled: bool):
    """Return a context in which gradients of a wrapped model only add up locally."""
    return model.no_sync() if enabled and isinstance(model, paddle.DataParallel) else contextlib.nullcontext()


def sum_across_ranks(values: np.ndarray) -> np.ndarray:
    """Add up float64 values over all ranks; every rank must call it with the same shape."""
    if world_size() == 1:
        return values
    total = paddle.to_tensor(np.asarray(values, np.float64))
    dist.all_reduce(total)
    return total.numpy()


def exchange_rows(values: np.ndarray) -> None:
    """Fill an array [N, D] on all ranks, in place, where rank r of R has the rows r, r + R, r + 2R, ...

    The rows are sent in their own type and in blocks, so little more than the array itself is in memory.
    """
    ranks = world_size()
    if ranks == 1:
        return
    per_block = max(1, _ROWS_AT_ONCE // ranks)
    for first in range(0, len(values), per_block * ranks):
        block = np.zeros((per_block, values.shape[1]), values.dtype)
        own = values[first + rank() : first + per_block * ranks : ranks]
        block[: len(own)] = own
        gathered: list[paddle.Tensor] = []
        dist.all_gather(gathered, paddle.to_tensor(block))
        for other, part in enumerate(gathered):
            rows = values[first + other : first + per_block * ranks : ranks]
            rows[:] = part.numpy()[: len(rows)]


def gather_texts(texts: list[str]) -> list[str]:
    """Return the texts of all ranks; every rank must call it."""
    if world_size() == 1 or not sum_across_ranks(np.array([len(texts)], np.float64))[0]:
        return list(texts)
    gathered: list[list[str]] = []
    dist.all_gather_object(gathered, list(texts))
    return [text for part in gathered for text in part]


def is_same_on_all_ranks(value: int) -> bool:
    """Return True if every rank has the same value; every rank must call it."""
    own = np.array([value], np.float64)
    mean = sum_across_ranks(own) / world_size()
    return not sum_across_ranks(np.abs(own - mean)).any()


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def average_running_statistics(model: nn.Layer) -> None:
    """Average batch-norm statistics over ranks in place; each rank has seen its own images only."""
    if world_size() == 1:
        return
    for value in running_statistics(model):
        dist.all_reduce(value)
        value.set_value(value / world_size())


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
            parameter.grad.set_value(average.reshape(parameter.shape).astype(parameter.grad.dtype))


def _buckets(parameters: list[paddle.Tensor]) -> list[list[paddle.Tensor]]:
    """Group parameters so that a transfer is large, and its copy small."""
    buckets: list[list[paddle.Tensor]] = [[]]
    for parameter in parameters:
        if sum(other.size for other in buckets[-1]) >= _BUCKET_SIZE:
            buckets.append([])
        buckets[-1].append(parameter)
    return buckets
