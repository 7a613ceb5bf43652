"""What an update of each method copies between host and device so that one waits: nothing between two reports."""

import collections

import paddle
import pytest

from benchmarks.sides import make_step
from config import get_config
from pipeline import mixup
from tests.conftest import MODES, TINY
from training import engine

pytestmark = pytest.mark.quick

_HEAD = ["MODEL.TYPE", "CONTRASTIVE_TUNING", "CONTRAST.PROJECTOR_DIMS", [16, 16, 8], "CONTRAST.PREDICTOR_DIM", 16]
_HEAD += ["CONTRAST.QUEUE_SIZE", 100, "DATA.DROP_LAST", True, "MODEL.GLOBAL_POOL", False]
_EMA = ["TRAIN.EMA_DECAY", 0.9]
METHODS = {
    "pretrain": [*MODES["pretrain"], *_EMA],
    "finetune": [*MODES["finetune"], *_EMA, "TRAIN.GRAD_CLIP", 1.0],
    "linearprobe": MODES["linearprobe"],
    "sharded": [*MODES["finetune"], "TRAIN.SHARDING", "optimizer"],
    "sweep": [*MODES["linearprobe"], "TRAIN.LR_SWEEP", [1.0, 10.0]],
    "moco": ["MODEL.TYPE", "MOCO", "MOCO.HIDDEN_DIM", 16, "MOCO.OUT_DIM", 8, "DATA.DROP_LAST", True, *_EMA],
    "contrastive_head": _HEAD,
    "contrastive_tuning": [*_HEAD, "CONTRAST.STAGE", "tuning", "CONTRAST.TOPK", 5, "CONTRAST.MOMENTUM", 0.9, *_EMA],
    "weak_labels": ["MODEL.TYPE", "WEAK_LABELS", *_EMA],
}
_READS = ("numpy", "item", "tolist", "set_value", "__array__", "__float__", "__int__", "__bool__")


@pytest.mark.parametrize("method", METHODS)
def test_an_update_reads_nothing_from_the_device(monkeypatch, method):
    monkeypatch.setattr(engine, "_reading_waits", lambda: True)  # as on a GPU
    step, _ = make_step("ours", get_config(None, [*TINY, *METHODS[method]]), 16)
    step()  # the first one makes the optimizer's state, and looks whether there are labels
    counts = collections.Counter()

    def counted(name):
        original = getattr(paddle.Tensor, name)

        def call(tensor, *args, **options):
            counts[name] += 1
            return original(tensor, *args, **options)

        return call

    for name in _READS:
        monkeypatch.setattr(paddle.Tensor, name, counted(name))
    to_tensor = paddle.to_tensor  # waits for a GPU; `to_device` does not
    monkeypatch.setattr(mixup, "to_device", lambda arrays: [to_tensor(array) for array in arrays])
    monkeypatch.setattr(paddle, "to_tensor", lambda *args, **options: counts.update(["to_tensor"]) or to_tensor(*args))
    step()
    assert dict(counts) == {}
