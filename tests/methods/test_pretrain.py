"""Pretraining on several views of an image."""

import numpy as np
import paddle
import pytest

from launch.run_directory import find
from methods import dispatch
from pipeline import loading
from tests.helpers.saved_runs import fit_pretrain

pytestmark = pytest.mark.quick


def test_two_views_are_a_batch_of_twice_as_many(tiny_run):
    run = tiny_run("pretrain", "TRAIN.VIEWS", 2)
    task, loader = dispatch.build_task(run), dispatch.build_train_loader(run)
    batch = next(loader.epoch(0))
    assert [view.shape for view in batch.views] == [[8, 3, 16, 16]] * 2
    paddle.seed(5)
    loss, _ = task.loss(task.model, batch, None)
    paddle.seed(5)
    together, _, mask = task.model(paddle.concat(batch.views))
    assert loss.item() == together.item()
    assert not np.array_equal(mask[:8].numpy(), mask[8:].numpy())


def test_an_image_is_decoded_once_for_all_its_views(tiny_run, monkeypatch, image_folder):
    reads = []
    monkeypatch.setattr(loading, "read_image", lambda s, i, *c, f=loading.read_image: reads.append(i) or f(s, i, *c))
    opts = ["DATA.DATASET", "imagenet2012", "DATA.DATA_PATH", str(image_folder)]
    run = tiny_run("pretrain", "TRAIN.VIEWS", 3, *opts)
    for _ in dispatch.build_train_loader(run).epoch(0):
        pass
    assert len(reads) <= 24 + 1  # and one to learn the shape


def test_a_run_with_two_views_is_bit_identical_when_resumed(tiny_run):
    opts = ["TRAIN.VIEWS", 2, "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 128, "SAVE_FREQ_STEPS", 3, "KEEP_LAST", 9]
    first = tiny_run("pretrain", *opts)
    expected = fit_pretrain(first)
    again = tiny_run("pretrain", *opts, resume_from=find(first.directory / "step-00000003"))
    resumed = fit_pretrain(again)
    assert all(np.array_equal(resumed[name], value) for name, value in expected.items())
