"""Weights for images of other channels, in models and in runs."""

import dataclasses

import numpy as np
import paddle
import pytest

import checkpoint
from mae import MAEPretrain
from methods import dispatch
from tests.conftest import assert_close
from tests.helpers.saved_runs import fit_pretrain
from tests.helpers.small_models import VIT, mae_architecture
from transformer import VisionTransformer

pytestmark = pytest.mark.quick
PATCHES = "patch_embedding.patch_embedding.weight"


def save(model, folder):
    paddle.save(model.state_dict(), str(folder / "w.pdparams"))
    return folder / "w.pdparams"


def saved(folder, channels, build=MAEPretrain, architecture=None):
    paddle.seed(channels)
    model = build(dataclasses.replace(architecture or mae_architecture(), channels=channels))
    for value in model.state_dict().values():
        value.set_value(value + paddle.rand(value.shape))  # biases, too, are not 0
    model.eval()
    return model, save(model, folder)


def adapted(path, channels, how, build=MAEPretrain, architecture=None, **options):
    paddle.seed(0)
    model = build(dataclasses.replace(architecture or mae_architecture(), channels=channels))
    report = checkpoint.load_weights(model, path, adapt=how, **options)
    model.eval()
    return model, report


@pytest.mark.parametrize("how", ["repeat", "mean"])
def test_a_grey_model_answers_as_the_rgb_one_does_to_grey(tmp_path, how):
    options = {"build": VisionTransformer, "architecture": VIT}
    rgb, path = saved(tmp_path, 3, **options)
    grey = paddle.rand([2, 1, 8, 8])
    model, _ = adapted(path, 1, how, **options)
    assert_close(model(grey).numpy(), rgb(grey.expand([2, 3, 8, 8])).numpy(), 1e-5)
    options["architecture"] = dataclasses.replace(VIT, patch_norm=True)
    rgb, path = saved(tmp_path, 3, **options)
    own, theirs = adapted(path, 1, how, **options)[0].state_dict(), rgb.state_dict()
    for name in ("patch_embedding.norm_pixels.weight", "patch_embedding.norm_pixels.bias"):
        assert_close(own[name].numpy(), theirs[name].numpy().reshape(3, 16).mean(0), 1e-6)


@pytest.mark.parametrize("how", ["repeat", "mean"])
def test_thirteen_channels_alike_answer_as_three_alike(tmp_path, how):
    rgb, path = saved(tmp_path, 3)
    model, _ = adapted(path, 13, how)
    noise, grey = paddle.rand([2, 4]), paddle.rand([2, 1, 8, 8])
    _, theirs, _ = rgb(grey.expand([2, 3, 8, 8]), noise=noise)
    if how == "repeat":  # 3 does not divide 13: the weights of red are one more
        weight = rgb.state_dict()[PATCHES].numpy()
        expected = np.stack([weight[:, c % 3] * 3 / 13 for c in range(13)], axis=1)
        assert_close(model.state_dict()[PATCHES].numpy(), expected, 1e-6)
        back, _ = adapted(save(model, tmp_path), 3, how)
        for name, value in back.state_dict().items():
            assert_close(value.numpy(), rgb.state_dict()[name].numpy(), 1e-6)
        model, _ = adapted(saved(tmp_path, 3)[1], 12, how)
        _, own, _ = model(grey.expand([2, 12, 8, 8]), noise=noise)
        for channel in range(12):
            assert_close(own.numpy()[..., channel::12], theirs.numpy()[..., channel % 3 :: 3], 1e-5)
        return
    _, own, _ = model(grey.expand([2, 13, 8, 8]), noise=noise)
    mean = theirs.numpy().reshape(2, 4, 16, 3).mean(-1)
    for channel in range(13):
        assert_close(own.numpy()[..., channel::13], mean, 1e-5)


def test_what_is_not_taken_stays_as_drawn(tmp_path):
    _, path = saved(tmp_path, 3)
    assert "51.6 against 53.0" in str(adapted(path, 13, "repeat")[1])
    paddle.seed(0)
    drawn = MAEPretrain(mae_architecture(channels=5))
    model, report = adapted(path, 5, "none")
    names = [PATCHES, "decoder_pred.weight", "decoder_pred.bias"]
    assert sorted(report.missing) == sorted(names)
    for name in names:
        assert np.array_equal(model.state_dict()[name].numpy(), drawn.state_dict()[name].numpy())
    assert "adapted from 3 channels, and the model has 5" in str(report)
    with pytest.raises(ValueError, match="set DATA.IMAGE_CHANNELS 3, .*MODEL.ADAPT_CHANNELS repeat"):
        checkpoint.load_weights(model, path)
    assert "adapted" not in str(adapted(path, 3, "repeat")[1])


GREY = ["DATA.IMAGE_CHANNELS", 1, "DATA.IMAGENET_MEAN", [0.5], "DATA.IMAGENET_STD", [0.25]]
GREY += ["TRAIN.NUM_EPOCHS", 1]


@pytest.mark.parametrize("method", ["pretrain", "finetune", "linearprobe", "moco"])
def test_runs_on_grey_start_from_rgb(tiny_run, method):
    first = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 1)
    fit_pretrain(first)
    options = [*GREY, "MODEL.ADAPT_CHANNELS", "mean", "MODEL.PRETRAINED", str(first.directory)]
    options += ["TRAIN.RAND_AUGMENT", False] if method == "finetune" else []
    options += (
        ["MODEL.TYPE", "MOCO", "MOCO.HIDDEN_DIM", 16, "MOCO.OUT_DIM", 8, "DATA.DROP_LAST", True]
        if method == "moco"
        else []
    )
    run = tiny_run("pretrain" if method == "moco" else method, *options)
    dispatch.build_task(run)
    log = (run.directory / "log.txt").read_text()
    assert "adapted from 3 channels to 1 by mean: patch_embedding" in log
    assert "51.6 against 53.0" not in log, "which is of many bands"
    assert "was trained with DATA." not in log, "as other channels are meant"
