"""Copies to a GPU, with events and pinned memory of equal meaning in the place of CUDA's."""

import time

import numpy as np
import paddle
import pytest

from pipeline import device_copy
from pipeline.loading import Loader
from pipeline.samplers import EvalSampler
from pipeline.sources import ArrayImages

pytestmark = pytest.mark.quick


class Event:
    """Notes the order of what is recorded and waited for."""

    log: list[str]

    def __init__(self):
        self.name = f"copy {sum(line.startswith('recorded') for line in self.log)}"

    def record(self):
        self.log.append(f"recorded {self.name}")

    def synchronize(self):
        self.log.append(f"waited for {self.name}")


def test_pinned_memory_is_kept_until_its_copy_is_made(monkeypatch):
    Event.log = []
    blocking = []

    def cuda(tensor, blocking_=None, **options):
        blocking.append(options["blocking"])
        return tensor.clone()

    monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(paddle, "CUDAPinnedPlace", paddle.CPUPlace)
    monkeypatch.setattr(paddle.device.cuda, "Event", Event)
    monkeypatch.setattr(paddle.Tensor, "cuda", cuda)
    monkeypatch.setattr(device_copy, "_ring", type(device_copy._ring)())
    for number in range(10):
        array = np.full(3, number, np.int64)
        (copy,) = device_copy.to_device([array])
        array[:] = -1  # the worker fills it again
        assert copy.tolist() == [number] * 3
    assert blocking == [False] * 10
    assert len(device_copy._ring) == 8
    assert [line for line in Event.log if line.startswith("waited")] == ["waited for copy 0", "waited for copy 1"]
    assert Event.log.index("waited for copy 0") < Event.log.index("recorded copy 8")


@pytest.mark.parametrize(("slow", "waits"), [("loading", True), ("computing", False)])
def test_only_loading_counts_as_waiting_for_data(slow, waits):
    def view(image, rng):
        time.sleep(0.02 if slow == "loading" else 0.0)
        return np.asarray(image, np.float32)

    source = ArrayImages(np.zeros((12, 4, 4, 3), np.uint8), np.arange(12), "zeros")
    loader = Loader(source, view, EvalSampler(12, 4))
    started = time.monotonic()
    for batch in loader:
        assert batch.labels.tolist() == batch.host_indices.tolist() == batch.indices.tolist()
        time.sleep(0.0 if slow == "loading" else 0.1)
    share = loader.waited_secs / (time.monotonic() - started)
    assert (share > 0.7) if waits else (share < 0.3)
