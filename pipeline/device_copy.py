"""Copies of batches to the device that do not wait for what it computes meanwhile."""

import collections
from collections.abc import Sequence

import numpy as np
import paddle

_MOST_COPIES = 8  # under way at a time; some batches

_ring: collections.deque = collections.deque()


def to_device(arrays: Sequence[np.ndarray]) -> list[paddle.Tensor]:
    """Return arrays as tensors on the current device; they may be overwritten afterwards.

    Paddle's `to_tensor` waits for all that a GPU still has to do, as it copies from pageable memory. Here the arrays go
    into pinned memory, which stays alive until its copy has been made, as an event on the device tells.
    """
    if not paddle.device.get_device().startswith("gpu"):
        return [paddle.to_tensor(array) for array in arrays]
    if len(_ring) >= _MOST_COPIES:
        made, _ = _ring.popleft()
        made.synchronize()  # in practice long ago
    pinned = [paddle.to_tensor(array, place=paddle.CUDAPinnedPlace()) for array in arrays]
    copies = [tensor.cuda(blocking=False) for tensor in pinned]
    made = paddle.device.cuda.Event()
    made.record()
    _ring.append((made, pinned))
    return copies
