"""Pretraining on several views of an image, and several masks of a view."""

import numpy as np
import paddle
import pytest

from errors import UserError
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


CROSS = ["MODEL.DECODER.KIND", "cross", "MODEL.DECODER.SOURCES", [0, 2], "MODEL.PREDICT_RATIO", 0.25]


@pytest.mark.parametrize("options", [["TRAIN.VIEWS", 2], ["TRAIN.MASKS", 2], CROSS, ["MODEL.PREDICT_RATIO", 0.25]])
def test_a_resumed_run_is_bit_identical(tiny_run, options):
    opts = [*options, "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 128, "SAVE_FREQ_STEPS", 3, "KEEP_LAST", 9]
    first = tiny_run("pretrain", *opts)
    expected = fit_pretrain(first)
    again = tiny_run("pretrain", *opts, resume_from=find(first.directory / "step-00000003"))
    resumed = fit_pretrain(again)
    assert all(np.array_equal(resumed[name], value) for name, value in expected.items())


def test_masks_of_a_view_show_other_patches(tiny_run):
    """With four masks every patch is seen once, and the loss is the mean of four passes by hand."""
    run = tiny_run("pretrain", "TRAIN.MASKS", 4)
    task, loader = dispatch.build_task(run), dispatch.build_train_loader(run)
    batch = next(loader.epoch(0))
    paddle.seed(5)
    noise = paddle.rand([8, 16])
    order, losses, seen = noise.argsort(axis=1).numpy(), [], np.zeros((8, 16), int)
    for quarter in range(4):
        mask = np.ones((8, 16), np.float32)
        np.put_along_axis(mask, order[:, 4 * quarter : 4 * quarter + 4], 0.0, axis=1)
        loss, _, found = task.model(batch.images, mask=paddle.to_tensor(mask))
        assert np.array_equal(found.numpy(), mask)
        losses.append(float(loss))
        seen += mask == 0
    assert (seen == 1).all()
    paddle.seed(5)
    assert float(task.loss(task.model, batch, None)[0]) == pytest.approx(np.mean(losses), rel=1e-6)
    assert task.cost.views == 4
    assert not task.can_be_traced


def test_masks_that_would_share_patches_are_refused(tiny_run):
    with pytest.raises(UserError, match="each shows 4 of 16 patches, which allows at most 4"):
        dispatch.build_task(tiny_run("pretrain", "TRAIN.MASKS", 5))
