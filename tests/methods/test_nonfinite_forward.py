"""A forward pass with bad numbers is left out: its loss says so, and no buffer that it changes keeps them."""

import numpy as np
import paddle
import pytest

from launch.run_directory import find
from layers.basic import ProbeNorm
from layers.heads import JointBatchNorm, mlp_head
from methods import dispatch
from tests.conftest import MODES
from tests.helpers.saved_runs import poison_images
from tests.methods import test_contrastive_tuning, test_moco
from training.checkpoints import load
from training.engine import fit

METHODS = {
    "head": test_contrastive_tuning.OPTS,
    "tuning": [*test_contrastive_tuning.OPTS, *test_contrastive_tuning.TUNING],
    "moco": test_moco.OPTS,
    "linearprobe": ["DATA.BATCH_SIZE", 64, "TRAIN.NUM_EPOCHS", 1, *MODES["linearprobe"]],
}


@pytest.mark.quick
@pytest.mark.parametrize("norm", [JointBatchNorm, ProbeNorm])
def test_statistics_of_bad_numbers_are_not_kept(norm):
    layer = norm(3)
    layer(paddle.randn([6, 3]))
    before = {name: value.numpy() for name, value in layer.state_dict().items()}
    features = paddle.randn([6, 3])
    features[2, 1] = float("inf")
    assert not np.isfinite(layer(features).numpy()).all()
    assert all(np.array_equal(value.numpy(), before[name]) for name, value in layer.state_dict().items())
    layer(paddle.randn([6, 3]))
    assert not np.array_equal(layer._mean.numpy(), before["_mean"])


@pytest.mark.quick
def test_a_head_hands_bad_numbers_on():
    features = paddle.randn([6, 3])
    features[2, 1] = float("nan")
    assert not np.isfinite(mlp_head((3, 8, 8, 4), norm_at_end=True)(features).numpy()).any()


@pytest.mark.quick
@pytest.mark.parametrize("method", METHODS)
def test_a_bad_batch_is_left_out_and_the_run_stays_good(tiny_run, method, monkeypatch):
    # The tuning stage gets its head from nowhere: what it starts from does not matter here.
    monkeypatch.setattr("methods.contrastive_tuning._load", lambda run, model: None)
    run = tiny_run("linearprobe", *METHODS[method], "TRAIN.NONFINITE", "skip")
    task = poison_images(run, {3})
    fit(task, dispatch.build_train_loader(run), None, run)
    assert [path.name for path in run.directory.glob("nonfinite-*.json")] == ["nonfinite-00000003.json"]
    assert all(np.isfinite(value.numpy()).all() for value in task.model.state_dict().values())
    if method in ("head", "tuning"):
        updates = dispatch.build_train_loader(run).sampler.updates_per_epoch
        assert task.model.head.queue_ptr.item() == (updates - 1) * 64 % 100
    load(find(run.directory), dispatch.build_task(run))
