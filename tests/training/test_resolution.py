"""Pretraining on images that grow: stages by the epoch, through the loader, the model, the plan and a resume."""

import subprocess
import sys

import numpy as np
import paddle
import pytest

import main_multi_gpu_pretrain
import runtime
from config import get_config
from errors import UserError
from launch.run_directory import find
from layers.patches import patchify
from layers.pos_embed import resize_table, sincos_table
from mae import build_mae_pretrain
from methods import dispatch
from runtime import ROOT
from storage.architecture import of_config
from tests.conftest import TINY, assert_close
from tests.helpers import script_runs
from tests.helpers.saved_runs import fit_pretrain
from training import flops, memory, resolution

pytestmark = pytest.mark.quick
# 4, 9 and 16 patches
STAGES = [[0, 8, 0.5], [1, 12], [2, 16]]
GROWING = ["TRAIN.RESOLUTION", STAGES, "TRAIN.NUM_EPOCHS", 3, "DATA.BATCH_SIZE", 256]


def test_tables_keep_the_places_of_patches():
    """Each patch has its position in the image, counted in patches of the whole grid: by hand, and near to bicubic."""
    table = sincos_table(16, (10, 10), (14, 14))
    place = (3 + 0.5) * 1.4 - 0.5  # the fourth column's
    frequencies = 10000.0 ** -(np.arange(4) / 4)
    assert_close(table[0, 1 + 3, :8], np.concatenate([np.sin(place * frequencies), np.cos(place * frequencies)]), 1e-6)
    assert not table[0, 0].any()
    assert (sincos_table(16, (14, 14), (14, 14)) == sincos_table(16, (14, 14))).all()
    bicubic = resize_table(sincos_table(16, (14, 14)), (10, 10), (14, 14))
    assert np.abs(bicubic[:, 1:] - table[:, 1:]).max() < 0.12  # at the borders, where bicubic repeats the last row
    inner = np.s_[0, 1:, :], (10, 10, 16)
    difference = (bicubic[inner[0]] - table[inner[0]]).reshape(inner[1])[2:-2, 2:-2]
    assert np.abs(difference).max() < 0.03


def test_a_stage_is_the_same_model_on_fewer_patches():
    config = get_config(None, [*TINY, "MODEL.TYPE", "PRETRAIN", "TRAIN.RESOLUTION", STAGES, "TRAIN.NUM_EPOCHS", 9])
    paddle.seed(3)
    model = build_mae_pretrain(config)
    images, noise = paddle.randn([2, 3, 8, 8]), paddle.rand([2, 4])
    with pytest.raises(ValueError, match=r"expected images of shape \[B, 3, 16, 16\]"):
        model(images)
    names = list(model.state_dict())
    model.use_stage((2, 2), 0.5)
    loss, pred, mask = model(images, noise=noise)
    assert mask.sum(axis=1).tolist() == [2, 2]
    assert list(model.state_dict()) == names  # files hold the tables of the whole grid
    smaller = get_config(None, [*TINY, "MODEL.TYPE", "PRETRAIN", "DATA.IMAGE_SIZE", 8, "MODEL.MASK_RATIO", 0.5])
    other = build_mae_pretrain(smaller)
    weights = {name: value for name, value in model.state_dict().items() if not name.endswith("position_embedding")}
    for tower in ("encoder", "decoder"):
        width = getattr(model.architecture, tower).width
        weights[f"{tower}_position_embedding"] = paddle.to_tensor(sincos_table(width, (2, 2), (4, 4)))
    other.set_state_dict(weights)
    expected = other(images, noise=noise)
    assert (pred == expected[1]).all()
    assert loss == expected[0]
    model.use_stage((4, 4), 0.75)
    assert model(paddle.randn([2, 3, 16, 16]))[2].sum(axis=1).tolist() == [12, 12]
    assert patchify(images, 4).shape == [2, 4, 48]


def test_the_loader_follows(tiny_run):
    run = tiny_run("pretrain", *GROWING, "DATA.NUM_WORKERS", 1)
    loader, task = dispatch.build_train_loader(run), dispatch.build_task(run)
    for epoch, side, visible in ((0, 8, 2), (1, 12, 2), (2, 16, 4), (1, 12, 2)):  # and back
        task.begin_epoch(epoch)
        batch = next(loader.epoch(epoch))
        assert batch.images.shape[2:] == [side, side]
        mask = task.model(batch.images)[2]
        assert int((1 - mask[0]).sum()) == visible
    loader.close()


@pytest.mark.parametrize("step", [2, 4, 6, 9])  # inside the first stage, at its end, inside the second and third one
def test_a_run_that_is_resumed_in_any_stage_is_bit_identical(tiny_run, step):
    opts = [*GROWING, "SAVE_FREQ_STEPS", 1, "KEEP_LAST", 99]
    first = tiny_run("pretrain", *opts)
    expected = fit_pretrain(first)
    again = tiny_run("pretrain", *opts, resume_from=find(first.directory / f"step-{step:08d}"))
    resumed = fit_pretrain(again)
    assert all(np.array_equal(resumed[name], value) for name, value in expected.items())
    assert "resolution: 12 pixels from epoch 1 on, 2 of 9 patches visible" in (first.directory / "log.txt").read_text()


def test_a_run_does_not_resume_with_other_stages(tiny_run):
    first = tiny_run("pretrain", *GROWING, "SAVE_FREQ_STEPS", 2, "KEEP_LAST", 9)
    fit_pretrain(first)
    saved = find(first.directory / "step-00000002")
    other = [*GROWING, "TRAIN.RESOLUTION", [[0, 12], [2, 16]]]
    with pytest.raises(
        UserError, match=r"that run has settings TRAIN.RESOLUTION \[\[0, 8, 0.5\], .*, this one TRAIN.RES"
    ):
        fit_pretrain(tiny_run("pretrain", *other, resume_from=saved))
    with pytest.raises(UserError, match="this one None"):
        fit_pretrain(tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 3, "DATA.BATCH_SIZE", 256, resume_from=saved))


def test_a_run_does_not_resume_with_other_sources(tiny_run):
    """As many sources have the same shapes, and their weights would be given to other blocks."""
    cross = ["MODEL.DECODER.KIND", "cross", "TRAIN.NUM_EPOCHS", 2, "DATA.BATCH_SIZE", 512, "MODEL.DECODER.SOURCES"]
    first = tiny_run("pretrain", *cross, [0, 2])
    fit_pretrain(first)
    with pytest.raises(UserError, match=r"that run has settings MODEL.DECODER.SOURCES \[0, 2\], this one .*\[1, 2\]"):
        fit_pretrain(tiny_run("pretrain", *cross, [1, 2], resume_from=find(first.directory)))
    with pytest.raises(UserError, match=r"its decoder reads the blocks \[0, 2\]: set MODEL.DECODER.SOURCES so"):
        dispatch.build_task(tiny_run("pretrain", *cross, [1, 2], "MODEL.PRETRAINED", str(first.directory)))
    for options, advice in (
        ([], "set MODEL.DECODER.KIND and MODEL.DECODER.SOURCES as the file's run has it"),
        ([*cross, []], "set MODEL.DECODER.SOURCES as the file's run has it"),
        ([*cross, [0, 2], "MODEL.QKV_BIAS", False], "set MODEL.QKV_BIAS as the file's run has it"),
        ([*cross, [0, 2], "MODEL.DECODER.KIND", "cross_self"], "set MODEL.DECODER.KIND as the file's run has it"),
    ):
        with pytest.raises(UserError, match=f"; {advice}"):
            dispatch.build_task(tiny_run("pretrain", *options, "MODEL.PRETRAINED", str(first.directory)))


def test_two_ranks_continue_what_one_began(tmp_path):
    options = [*TINY, "MODEL.TYPE", "PRETRAIN", *GROWING, "SAVE_FREQ_STEPS", 1, "KEEP_LAST", 99, "AMP", False]
    run = script_runs.train(main_multi_gpu_pretrain.main, tmp_path, "whole", options)
    cfg = script_runs.write_config(tmp_path, "two", [*options, "DATA.BATCH_SIZE", 128])
    command = [sys.executable, str(ROOT / "main_multi_gpu_pretrain.py"), "-cfg", str(cfg), "-output", str(tmp_path)]
    command += ["-nproc", "2", "-device", "cpu", "-resume", str(run / "step-00000006"), "-opts", "RUN", "two"]
    done = subprocess.run(
        command, env=runtime.original_environment(), cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 12/12" in done.stdout


def test_costs_follow_the_stages(tiny_run):
    run = tiny_run("pretrain", *GROWING)
    found, architecture = resolution.stages(run.config), of_config(run.config, "autoencoder")
    costs = [flops.forward_macs(resolution.of_stage(architecture, s), *flops.ratios(s.config)) for s in found]
    sizes = [(8, 0.5), (12, 0.75), (16, 0.75)]
    for cost, (side, ratio) in zip(costs, sizes, strict=True):
        own = get_config(None, [*TINY, "MODEL.TYPE", "PRETRAIN", "DATA.IMAGE_SIZE", side, "MODEL.MASK_RATIO", ratio])
        assert cost == flops.forward_macs(of_config(own, "autoencoder"), ratio)
    assert resolution.work(found, [1.0, 2.0, 4.0], 10, 5, 25) == 5 * 1 + 10 * 2 + 5 * 4
    assert [resolution.stage_at(found, epoch) for epoch in range(5)] == [0, 1, 2, 2, 2]


def test_memory_is_that_of_the_largest_stage():
    usual = [*TINY, "MODEL.TYPE", "PRETRAIN", "TRAIN.NUM_EPOCHS", 9]
    first = [*usual, "MODEL.MASK_RATIO", 0.9, "TRAIN.RESOLUTION", [[0, 16, 0.3], [4, 16]]]
    last = [*usual, "TRAIN.RESOLUTION", STAGES]
    for options, alone in ((first, [*usual, "MODEL.MASK_RATIO", 0.3]), (last, usual)):
        configs = [get_config(None, [*some, "DATA.BATCH_SIZE", 4096]) for some in (options, alone)]
        peaks = [memory.estimate(of_config(config, "autoencoder"), config).peak for config in configs]
        assert peaks[0] == peaks[1]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "must be a list of"),
        ([8, 16], "must be a list of"),
        ([[0, 8.5], [1, 16]], "epochs and pixels are integers"),
        ([[1, 8], [2, 16]], "ascend from 0"),
        ([[0, 8], [0, 16]], "ascend from 0"),
        ([[0, 8], [9, 16]], "last stage is never reached, as TRAIN.NUM_EPOCHS is 9"),
        ([[0, 10], [2, 16]], "multiples of MODEL.PATCH_SIZE, 4"),
        ([[0, 16], [2, 8]], "the last side must be DATA.IMAGE_SIZE, which is 16"),
        ([[0, 32], [2, 16]], "no other one larger"),
        ([[0, 8, 1.5], [2, 16]], "mask ratios must be above 0 and below 1"),
        ([[0, 8], [2, 16, 0.9]], "the last mask ratio is MODEL.MASK_RATIO"),
        (None, "its images are square, and DATA.IMAGE_SIZE is .16, 12."),
    ],
)  # fmt: skip
def test_impossible_stages_are_named(stages, message):
    options = [*TINY, "MODEL.TYPE", "PRETRAIN", "TRAIN.NUM_EPOCHS", 9, "TRAIN.RESOLUTION"]
    options += [stages] if stages is not None else [[[0, 8], [1, 16]], "DATA.IMAGE_SIZE", [16, 12]]
    with pytest.raises(UserError, match=f"TRAIN.RESOLUTION=.*{message}"):
        get_config(None, options)


def test_a_square_size_in_two_numbers_will_do():
    options = [*TINY, "MODEL.TYPE", "PRETRAIN", "DATA.IMAGE_SIZE", [16, 16], "TRAIN.NUM_EPOCHS", 9]
    found = resolution.stages(get_config(None, [*options, "TRAIN.RESOLUTION", [(0, 8), (1, 16)]]))
    assert [stage.grid_hw for stage in found] == [(2, 2), (4, 4)]


def test_what_does_not_go_with_it(tiny_run):
    with pytest.raises(UserError, match="a static graph has one size"):
        get_config(None, [*TINY, "MODEL.TYPE", "PRETRAIN", *GROWING, "TRAIN.TO_STATIC", True])
    with pytest.raises(UserError, match="keeps 0 of 4 patches"):
        dispatch.build_task(tiny_run("pretrain", *GROWING, "TRAIN.RESOLUTION", [[0, 8, 0.9], [1, 16]]))
    with pytest.raises(UserError, match="TRAIN.RESOLUTION, the stage of 8 pixels: MODEL.PREDICT_RATIO=0.6: .* is 0.5"):
        dispatch.build_task(tiny_run("pretrain", *GROWING, "MODEL.PREDICT_RATIO", 0.6))
