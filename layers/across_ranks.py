"""Exchange of tensors and values among the ranks of a job. In a single process nothing changes.

A rank's loss depends on what other ranks computed, so the backward pass sums the gradients of all ranks. With the mean
over ranks that data parallelism takes afterwards, the gradient is that of the mean loss of one process with all images.
"""

import contextlib
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterator

import numpy as np
import paddle
from paddle import distributed as dist
from paddle.autograd import PyLayer

from runtime import ENDING_SIGNALS, rank, world_size

_ROWS_AT_ONCE = 1 << 14


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
        first = rank() * ctx.rows
        return total[first : first + ctx.rows]


def sum_over_ranks(tensor: paddle.Tensor) -> paddle.Tensor:
    """Add up a tensor over all ranks; every rank must call it with the same shape."""
    return tensor if world_size() == 1 else _Sum.apply(tensor)


def gather(tensor: paddle.Tensor) -> paddle.Tensor:
    """Concatenate [B, ...] of all ranks in their order, [R * B, ...]; every rank must have the same B."""
    return tensor if world_size() == 1 else _Gather.apply(tensor)


# ---- values on the host, without gradients ------------------------------------------------------


def join() -> None:
    """Join the other processes of the job, if there are any."""
    if world_size() > 1 and not dist.is_initialized():
        _import_http_server()
        os.environ.setdefault("PADDLE_CURRENT_ENDPOINT", f"{socket.gethostname()}:0")  # Paddle only asks for it
        if paddle.device.get_device() == "cpu":
            os.environ.setdefault("PADDLE_DISTRI_BACKEND", "gloo")  # Paddle's launcher sets it, others do not
        with _ended_by_signals():
            dist.init_parallel_env()


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Have signals end the process: while Paddle waits for the other ranks, the handlers of Python do not run."""
    handlers = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    handlers = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in handlers:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


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
