"""Checkpoints that ranks write together, as one process can show them; test_sharded_gradients.py trains with four."""

import shutil
import tracemalloc

import numpy as np
import paddle
import pytest

from config import get_config
from errors import UserError
from launch import run_directory
from optim import build_optimizer, param_groups
from storage.run_files import optimizer_files
from storage.run_state import RunState
from tests.helpers.saved_runs import contents, save, trained
from training import checkpoints, sharded_checkpoints
from training.optimizers import WeightAverage
from training.sharding import ShardedOptimizer
from training.task import Task

pytestmark = pytest.mark.quick
SIDE = 512  # a weight of 1 MiB


def large_task():
    """Return a task of 16 MiB of weights, averages and moments."""
    paddle.seed(0)
    model = paddle.nn.Sequential(*(paddle.nn.Linear(SIDE, SIDE) for _ in range(4)))
    optimizer = ShardedOptimizer(lambda own: build_optimizer("AdamW", own), param_groups(model, 0.05))
    model(paddle.ones([1, SIDE])).sum().backward()
    optimizer.set_lr(0.01)
    optimizer.step()
    return Task("test", model, optimizer, None, ema=WeightAverage(model, 0.9))


def write_by_ranks(tmp_path, task, step=1):
    saved = checkpoints.snapshot(task, copies=False, state=RunState(step), config_yaml="SEED: 0\n")
    writer = checkpoints.Writer(tmp_path)
    writer.submit(sharded_checkpoints.write_tensors(tmp_path, saved, writer))
    writer.wait()
    return tmp_path / f"step-{step:08d}"


def test_no_more_than_a_tensor_is_on_the_host_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    task, to_numpy = large_task(), paddle.Tensor.numpy
    # Copies of NumPy's own, as from a GPU; tracemalloc does not see those of Paddle.
    monkeypatch.setattr(paddle.Tensor, "numpy", lambda tensor: np.array(to_numpy(tensor)))
    tracemalloc.start()
    written = write_by_ranks(tmp_path, task)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * (1 << 20), "the array, and its bytes in the file's buffer"
    assert sum(path.stat().st_size for path in written.iterdir()) > 16 << 20
    assert run_directory.find(tmp_path) == written, "it has sums that agree"


def test_it_is_read_back_exactly(tmp_path):
    (model, optimizer), (other, zero) = trained(seed=0), trained(seed=1)
    task, restored = Task("test", model, optimizer, None), Task("test", other, zero, None)
    checkpoints.load(write_by_ranks(tmp_path, task), restored)
    for one, two in zip(everything(task), everything(restored), strict=True):
        assert np.array_equal(one, two)


def everything(task):
    moments = checkpoints.optimizer_state_by_name(task.model, task.optimizer)
    states = (task.model.state_dict(), moments)
    return [value.numpy() for state in states for value in state.values()]


@pytest.mark.parametrize("change", ["lost", "added", "renamed", "both"])
def test_parts_that_do_not_belong_together_are_refused(tmp_path, change):
    written = write_by_ranks(tmp_path, large_task())
    (written / "manifest.json").unlink()  # else its sums tell
    part = written / "optimizer-00000-of-00001.pdopt"
    if change == "lost":
        part.rename(written / "optimizer-00000-of-00002.pdopt")
    elif change == "renamed":
        part.rename(written / "optimizer-00001-of-00001.pdopt")
    else:
        shutil.copy(part, written / ("optimizer-00001-of-00001.pdopt" if change == "added" else "optimizer.pdopt"))
    with pytest.raises(UserError, match="parts of the optimizer's state are missing or too many: optimizer"):
        optimizer_files(written)


def test_if_one_rank_cannot_write_all_stop_and_the_checkpoint_before_is_intact(tmp_path, monkeypatch):
    model, optimizer = trained(steps=1)
    save(tmp_path, 1, model, optimizer)
    before = contents(tmp_path)
    monkeypatch.setattr(sharded_checkpoints.across_ranks, "gather_texts", lambda own: [*own, "disk of node-2 is full"])
    with pytest.raises(UserError, match="disk of node-2 is full"):
        write_by_ranks(tmp_path, large_task(), step=2)
    assert contents(tmp_path) == before


def test_a_node_that_does_not_see_the_directory_is_named_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(sharded_checkpoints.across_ranks, "gather_texts", lambda own: own or ["node-2"])
    with pytest.raises(UserError, match="is not there on node-2; with TRAIN.SHARDING, .* all nodes share"):
        sharded_checkpoints.shared_directory(tmp_path)


def test_the_part_of_a_node_with_a_directory_of_its_own_is_missed(tmp_path, monkeypatch):
    task = large_task()
    monkeypatch.setattr(sharded_checkpoints.runtime, "world_size", lambda: 2)
    monkeypatch.setattr(sharded_checkpoints.across_ranks, "gather_texts", list)
    with pytest.raises(UserError, match="optimizer-00001-of-00002.pdopt of another node is not there"):
        write_by_ranks(tmp_path, task)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("old", "new"), [(True, "optimizer"), (False, "none"), ("True", "optimizer")])
def test_the_old_key_still_works(old, new):
    assert new == get_config(None, ["TRAIN.SHARD_OPTIMIZER", old]).TRAIN.SHARDING


def test_the_old_key_takes_no_other_value():
    with pytest.raises(UserError, match="-opts: TRAIN.SHARD_OPTIMIZER='gradients': must be True or False; TRAIN.SHARD"):
        get_config(None, ["TRAIN.SHARD_OPTIMIZER", "gradients"])


def test_files_of_users_in_a_sharded_checkpoint_stay_and_are_not_read(tmp_path):
    (model, optimizer), others = trained(), ("optimizer-mine.pdopt", "optimizer-old.pdopt")
    task = Task("test", model, optimizer, None)
    written = write_by_ranks(tmp_path, task)
    for name in others:
        (written / name).write_text("mine")
    (written / "optimizer-00009-of-00010.pdopt").mkdir()
    assert [path.name for path in optimizer_files(written)] == ["optimizer-00000-of-00001.pdopt"]
    checkpoints._delete_old(tmp_path, 0)
    assert {path.name for path in written.iterdir()} >= set(others)  # `latest` keeps it
    for step in (2, 3, 4, 5):
        write_by_ranks(tmp_path, task, step)
    assert {path.name for path in written.iterdir()} == {*others, "optimizer-00009-of-00010.pdopt"}


def test_what_a_killed_run_left_of_a_checkpoint_is_deleted_by_the_next_one(tmp_path):
    model, optimizer = trained()
    for name in (".writing-step-00000007", ".writing-mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "optimizer-00000-of-00002.pdopt").write_text("half")
    save(tmp_path, 1, model, optimizer)
    assert {path.name for path in tmp_path.iterdir()} == {".writing-mine", "step-00000001", "latest"}
