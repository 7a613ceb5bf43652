"""Gradients that are kept by the rank that owns their parameter only (ZeRO stage 2, arXiv 1910.02054)."""

import contextlib
from collections.abc import Iterator

import paddle
from paddle import distributed as dist
from paddle import nn

from errors import UserError
from runtime import rank, world_size
from training.data_parallel import Averaging, Exchange, squared_norm
from training.sharding import ShardedOptimizer
from training.shares import BUCKET_BYTES
from training.task import Task


class ReducingToOwners(Exchange):
    """Send each gradient to the owner of its parameter during the backward pass, and free it on the other ranks.

    Parameters are put into buckets in the order in which a backward pass usually reaches them. When all gradients of a
    bucket are there, and those of the buckets before it are sent, each owner gets the average over ranks of its share
    of the bucket in one transfer. A rank holds its own gradients, a bucket that fills, and one that is being sent. The
    average over ranks is taken in every micro-step, so with one micro-step per update the result is that of
    `Averaging`, and with more it differs by rounding.

    Paddle's own stage 2 takes no parameter groups of several learning rates, and no CPU.

    Args:
        model: starts from rank 0's weights, as in DataParallel.
        optimizer: says which rank owns which parameter.
        dtype: in which gradients are sent; sums of micro-steps are in float32.
    """

    def __init__(self, model: nn.Layer, optimizer: ShardedOptimizer, dtype: str):
        super().__init__(model)
        self._dtype, self._owners = dtype, optimizer.owners()
        self._buckets = _make_buckets(self._trained[::-1])
        self._places = {parameter.name: place for place, parameter in enumerate(self._trained)}
        self._place_tensors: dict[tuple[int, ...], paddle.Tensor] = {}  # on the device, where a copy would wait for it
        self._sums: dict[str, paddle.Tensor] = {}  # by own parameter, over ranks and micro-steps
        self._reached: set[str] = set()  # parameters, in this backward pass
        self._num_sent = 0  # buckets, in this backward pass
        self._pending: list[tuple] = []  # transfers of the last bucket: (task, owner, parameters, flat gradients)
        self._shares: list[tuple] = []  # (owner, parameters) of all transfers of this backward pass
        if len(self._trained) < world_size():
            raise UserError(f"TRAIN.SHARDING=gradients: {world_size()} ranks are more than the model has parameters")
        with paddle.no_grad():
            for value in model.state_dict().values():
                dist.broadcast(value, src=0)
        for parameter in self._trained:  # called when its gradient is added up; what `register_hook` calls comes before
            parameter._register_backward_hook(self._hook(parameter.name))

    def _hook(self, name: str):
        def mark_reached(*_: object) -> None:
            self._reached.add(name)
            self._send_reached()

        return mark_reached

    def _send_reached(self) -> None:
        while self._num_sent < len(self._buckets):
            bucket = self._buckets[self._num_sent]
            if not all(parameter.name in self._reached for parameter in bucket):
                return
            self._send(bucket)
            self._num_sent += 1

    @contextlib.contextmanager
    def micro_step(self, is_last: bool) -> Iterator[None]:
        """Send gradients in each micro-step, at its end those of buckets that the backward pass did not fill.

        These have parameters without a gradient, or more than one: recomputation adds one up for each use.
        """
        self._reached.clear()
        self._shares.clear()
        self._num_sent = 0
        yield
        for bucket in self._buckets:
            self._send(bucket)
        self._receive()

    @paddle.no_grad()
    def _send(self, bucket: list[paddle.Tensor]) -> None:
        self._receive()
        shares: dict[int, list[paddle.Tensor]] = {}
        for parameter in bucket:
            if parameter.grad is not None:  # on all ranks or on none: their graphs are the same
                shares.setdefault(self._owners[parameter.name], []).append(parameter)
        for owner, share in shares.items():
            parts = [parameter.grad.flatten().astype(self._dtype) for parameter in share]
            for parameter in share:
                parameter.clear_gradient(False)  # frees it
            flat = parts[0] if len(parts) == 1 else paddle.concat(parts)
            del parts
            self._shares.append((owner, share))
            self._reduce(owner, share, flat.scale_(1.0 / world_size()))

    def _reduce(self, owner: int, share: list[paddle.Tensor], flat: paddle.Tensor) -> None:
        self._pending.append((dist.reduce(flat, dst=owner, sync_op=False), owner, share, flat))

    def _receive(self) -> None:
        """Wait for the transfers on their way, and add up own gradients."""
        for transfer, owner, share, flat in self._pending:
            transfer.wait()
            if owner != rank():
                continue
            sums = paddle.split(flat.astype("float32"), [parameter.size for parameter in share])
            for parameter, value in zip(share, sums, strict=True):
                value = value.reshape(parameter.shape)
                before = self._sums.get(parameter.name)
                self._sums[parameter.name] = value if before is None else before + value
        self._pending.clear()

    @paddle.no_grad()
    def finish(self, num_missing: int = 0) -> None:
        """Give own parameters their gradients; the others have none."""
        for owner, share in num_missing * self._shares:
            self._receive()
            self._reduce(owner, share, paddle.zeros([sum(parameter.size for parameter in share)], self._dtype))
        self._receive()
        for parameter in self._trained:
            if parameter.name in self._sums:
                parameter.grad = self._sums.pop(parameter.name)

    @paddle.no_grad()
    def spread_infinity(self) -> None:
        """Make an own gradient NaN if one of another rank is not finite: the loss scaler of fp16 looks at own ones."""
        held = [parameter for parameter in self._trained if parameter.grad is not None]
        total = self._of_all_ranks(held, [squared_norm(parameter.grad) for parameter in held]).sum()
        if held:
            held[0].grad = held[0].grad + (total - total)

    def _of_all_ranks(self, held: list[paddle.Tensor], numbers: list[paddle.Tensor]) -> paddle.Tensor:
        """Return one number per gradient, in the order of the parameters."""
        own = paddle.zeros([len(self._places)])
        if held:
            places = tuple(self._places[parameter.name] for parameter in held)
            if places not in self._place_tensors:
                self._place_tensors[places] = paddle.to_tensor(places)
            own = paddle.scatter(own, self._place_tensors[places], paddle.stack(numbers))
        dist.all_reduce(own)
        return own


def build_exchange(task: Task, config) -> Exchange:
    """Return the exchange of gradients that TRAIN.SHARDING asks for."""
    dtype = "bfloat16" if config.TRAIN.BF16_ALLREDUCE else "float32"
    if config.TRAIN.SHARDING == "gradients" and world_size() > 1:
        return ReducingToOwners(task.model, task.optimizer, dtype)
    return Averaging(task.model, dtype, at_once=config.TRAIN.RECOMPUTE)


def _make_buckets(parameters: list[paddle.Tensor]) -> list[list[paddle.Tensor]]:
    """Fill buckets in the order of the parameters; one that is larger than a bucket has its own."""
    buckets: list[list[paddle.Tensor]] = []
    room = 0
    for parameter in parameters:
        num_bytes = 4 * parameter.size
        if not buckets or num_bytes > room:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(parameter)
        room -= num_bytes
    return buckets
