"""Finetuning: blocks that do not train."""

import numpy as np
import pytest

from errors import UserError
from methods import dispatch
from training.flops import train_flops as flops_of

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("count", [0, 1, 2])
def test_frozen_blocks_stay_and_the_others_learn(tiny_run, count):
    run = tiny_run("finetune", "TRAIN.FREEZE_BLOCKS", count, "TRAIN.WARMUP_EPOCHS", 0, "MODEL.ENCODER.DEPTH", 2)
    task = dispatch.build_task(run)
    before = {name: value.numpy().copy() for name, value in task.model.named_parameters()}
    from launch.stop import StopRequest
    from training import engine, plan

    loader = dispatch.build_train_loader(run)
    training = engine.Training(task, loader, None, run, plan.make_plan(run.config, loader), StopRequest(print))
    training.train()
    for name, value in task.model.named_parameters():
        is_frozen = count > 0 and task.model.layer_index(name) <= count
        assert np.array_equal(value.numpy(), before[name]) == is_frozen, name
    assert task.cost.trained_blocks == (2 - count if count else None)


def test_more_blocks_than_there_are(tiny_run):
    with pytest.raises(UserError, match=r"TRAIN\.FREEZE_BLOCKS=99: the encoder has"):
        dispatch.build_task(tiny_run("finetune", "TRAIN.FREEZE_BLOCKS", 99))


def test_flops_of_frozen_blocks(tiny_run):
    """A frozen block goes forward alone: a third of what one that trains takes."""
    runs = [tiny_run("finetune", "TRAIN.FREEZE_BLOCKS", count, "MODEL.ENCODER.DEPTH", 2) for count in (0, 1, 2)]
    tasks = [dispatch.build_task(run) for run in runs]
    whole, half, none = (flops_of(task.architecture, trained_blocks=task.cost.trained_blocks) for task in tasks)
    assert (half / whole, none / whole) == pytest.approx((2 / 3, 1 / 3))
