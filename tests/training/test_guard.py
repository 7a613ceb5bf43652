"""Numbers that are read late, as on a GPU: nothing waits for the device between reports, and nothing changes."""

import json

import numpy as np
import paddle
import pytest

from errors import UserError
from launch import run_directory
from launch.stop import StopRequest
from methods import dispatch
from tests.helpers.saved_runs import fit_pretrain, poison
from training import engine
from training.log import read_log
from training.plan import make_plan

READS = ("numpy", "item", "tolist", "__bool__", "__float__", "__int__", "__array__", "__index__")
pytestmark = pytest.mark.quick


@pytest.fixture
def late(monkeypatch):
    """Make the guard read as it does on a GPU."""
    monkeypatch.setattr(engine, "_reading_waits", lambda: True)


@pytest.fixture
def reads(monkeypatch):
    """Count how often a tensor is read by the host."""
    count = {name: 0 for name in READS if hasattr(paddle.Tensor, name)}
    for name in count:
        original = getattr(paddle.Tensor, name)

        def read(*args, name=name, original=original, **options):
            count[name] += 1
            return original(*args, **options)

        monkeypatch.setattr(paddle.Tensor, name, read)
    return count


@pytest.mark.skipif(paddle.__version__.startswith("2."), reason="Paddle 2.6 itself reads a number per parameter")
@pytest.mark.parametrize("mode", ["pretrain", "finetune", "linearprobe"])
def test_no_update_reads_from_the_device(tiny_run, late, reads, mode):
    run = tiny_run(mode, "TRAIN.GRAD_CLIP", 1.0, "TRAIN.EMA_DECAY", None if mode == "linearprobe" else 0.9)
    task, loader = dispatch.build_task(run), dispatch.build_train_loader(run)
    training = engine.Training(task, loader, None, run, make_plan(run.config, loader), StopRequest(print))
    training.start()
    batches = loader.epoch(0)
    training.update(batches, 0, 1e-3)
    reads.update(dict.fromkeys(reads, 0))
    for update in (1, 2, 3):
        training.update(batches, update, 1e-3)
    assert not any(reads.values()), reads
    training.guard.synchronise()
    assert reads["numpy"] == 2  # losses and norms of all updates at once


def test_reading_late_changes_no_bit(tiny_run, monkeypatch):
    opts = ["TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 64, "REPORT_FREQ", 5, "SAVE_FREQ_STEPS", 4]
    runs = [tiny_run("pretrain", *opts) for _ in range(2)]
    soon = fit_pretrain(runs[0])
    monkeypatch.setattr(engine, "_reading_waits", lambda: True)
    late = fit_pretrain(runs[1])
    assert all(np.array_equal(soon[name], late[name]) for name in soon)
    losses = [[(record["step"], record["grad_norm"], record["loss"]) for record in read_log(r.directory)] for r in runs]
    assert [record[:2] for record in losses[0]] == [record[:2] for record in losses[1]]
    assert [record[2] for record in losses[0]] == pytest.approx([record[2] for record in losses[1]], rel=1e-6)


def test_a_bad_number_is_found_before_the_next_save(tiny_run, late):
    run = tiny_run("pretrain", "SAVE_FREQ_STEPS", 4, "TRAIN.NUM_EPOCHS", 1)
    with pytest.raises(UserError, match="not finite at update 6 on ranks .0."):
        engine.fit(poison(run, {6}), dispatch.build_train_loader(run), None, run)
    assert json.loads((run.directory / "nonfinite-00000006.json").read_text())["loss"] == "nan"
    assert run_directory.find(run.directory).name == "step-00000004"


def test_skipping_needs_every_number_at_once(tiny_run, late):
    run = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 1, "TRAIN.NONFINITE", "skip")
    task = poison(run, {3})
    engine.fit(task, dispatch.build_train_loader(run), None, run)
    assert all(np.isfinite(value.numpy()).all() for value in task.model.state_dict().values())
