"""Estimates of memory against what runs on CPU took, and what is said of a GPU of a given size."""

import math
import re

import pytest

import main_multi_gpu_finetune
import main_multi_gpu_pretrain
from benchmarks.memory import estimated
from config import get_config, network_kind, replaced
from errors import UserError
from methods import dispatch
from runtime import ROOT
from storage.clip_architecture import of_any_config
from tests.helpers.recipes import recipe
from training import loaders, memory
from training.task import Cost

pytestmark = pytest.mark.quick
# Peaks in GiB of the training process (VmHWM), Paddle 3.3.1 on Linux: `python -m benchmarks.memory` measures them.
PEAKS = {
    ("pretrain", "vit_base_patch16_224", 8, False): 2.62,
    ("pretrain", "vit_base_patch16_224", 32, False): 5.05,
    ("pretrain", "vit_base_patch16_224", 32, True): 2.98,
    ("finetune", "vit_base_patch16_224", 8, False): 2.81,
    ("finetune", "vit_base_patch16_224", 32, False): 6.75,
    ("finetune", "vit_base_patch16_224", 32, True): 3.31,
    ("finetune", "vit_large_patch16_224", 8, False): 7.17,
    ("finetune", "vit_large_patch16_224", 8, True): 5.89,
    ("pretrain", "vit_large_patch16_224", 16, False): 6.88,
    ("pretrain", "vit_large_patch16_224", 16, True): 5.99,
}


@pytest.mark.parametrize("case", PEAKS, ids=str)
def test_estimates_are_within_15_percent_of_measured_peaks(case):
    assert estimated(*case) == pytest.approx(PEAKS[case], rel=0.15)


def load(name, *opts):
    config = get_config(recipe(name), list(opts))
    return of_any_config(config, network_kind(config)), config


def test_the_logits_of_each_pixel_are_counted():
    """Measured on CPU: a batch of 4 with 150 classes at 512 pixels took 1,863 MiB for them and the loss."""
    peaks, recipe = [], ROOT / "configs" / "segmentation" / "vit_base_patch16_512_segmentation.yaml"
    for size in (256, 512):
        config = get_config(recipe, ["DATA.BATCH_SIZE", 4, "DATA.IMAGE_SIZE", size, "MODEL.NUM_CLASSES", 150])
        peaks.append(memory.estimate(of_any_config(config, network_kind(config)), config).activations / 2**20)
    assert peaks[1] - peaks[0] == pytest.approx(1863 * 3 / 4, rel=0.1)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vit_2b_patch14_518_maws_finetuned", 1_895_819_240),  # 1,000 classes, 1,370 positions
        ("vit_2b_patch14_224_lit", 2_456_588_801),
        ("vit_base_patch16_224_lit", 364_430_593),
    ],
)
def test_parameters_are_counted_without_a_model(name, parameters):
    assert memory.count_parameters(load(name)[0]).all == parameters


def test_sharding_precision_and_recomputation_change_what_they_should():
    name = "vit_2b_patch14_224_pretrain"
    plain, sharded, both = (
        memory.estimate(*load(name, "TRAIN.SHARDING", shard), device="gpu", ranks=8)
        for shard in ("none", "optimizer", "gradients")
    )
    assert sharded.moments * 8 == both.moments * 8 == pytest.approx(plain.moments, rel=1e-3)  # tensors are owned whole
    assert sharded.gradients == plain.gradients
    largest = 4 * max(math.prod(shape) for shape in load(name)[0].shapes().values())
    assert both.gradients == pytest.approx(plain.gradients / 8 + 2 * max(32 << 20, largest), rel=1e-3)
    assert plain.moments == 2 * plain.gradients
    all_kept, recomputed = (memory.estimate(*load(name, "TRAIN.RECOMPUTE", again)) for again in (False, True))
    assert recomputed.activations < 0.1 * all_kept.activations
    low = memory.estimate(*load(name, "TRAIN.RECOMPUTE", False, "AMP", "bf16"), device="gpu")
    assert 0.5 < low.activations / all_kept.activations < 0.7
    evaluated = memory.estimate(*load("vit_6.5b_patch14_518_maws_finetuned", "EVAL", True), device="gpu")
    assert evaluated.gradients == evaluated.moments == evaluated.activations == 0


@pytest.mark.parametrize(
    ("main", "name", "flags", "words"),
    [
        (main_multi_gpu_pretrain.main, "vit_6.5b_patch14_224_pretrain", ["-gpu_memory", "1x80"], "nothing fits 1 x 80"),
        (main_multi_gpu_pretrain.main, "vit_6.5b_patch14_224_pretrain", ["-gpu_memory", "8x80"], "gradients .*fits 80"),
        (main_multi_gpu_pretrain.main, "vit_6.5b_patch14_224_pretrain", ["-gpu_memory", "64x24"], "nothing fits 64 x"),
        (main_multi_gpu_pretrain.main, "vit_6.5b_patch14_224_pretrain", ["-gpu_memory", "64x80"], "configured.*; fits"),
        (main_multi_gpu_pretrain.main, "vit_6.5b_patch14_224_wsp", ["-gpu_memory", "141"], "without its head fits 141"),
        (main_multi_gpu_pretrain.main, "vit_2b_patch14_224_lit", ["-gpu_memory", "80"], "fits 80 GiB"),
        (
            main_multi_gpu_finetune.main,
            "vit_6.5b_patch14_518_maws_finetuned",
            ["-gpu_memory", "24", "-eval"],
            "with bfloat16 weights: .*; fits 24 GiB",
        ),
    ],
)
def test_a_dry_run_needs_neither_model_nor_data(main, name, flags, words, capsys, tmp_path):
    cfg = str(recipe(name))
    assert main(["-cfg", cfg, "-dry_run", "-data_path", str(tmp_path / "absent"), "-device", "cpu", *flags]) == {}
    assert re.search(words, capsys.readouterr().out)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "options", "more"),
    [
        ("vit_base_patch16_224_pretrain", ["TRAIN.VIEWS", "4"], 2.5),
        ("vit_base_patch16_224_pretrain", ["TRAIN.MASKS", "4"], 2.5),
        ("vit_tiny_patch16_224_moco", [], None),
        ("vit_base_patch16_224_contrastive_head", [], None),
    ],
)
def test_the_plan_for_a_gpu_counts_the_views_and_the_blocks_that_train(name, options, more, capsys):
    peaks = []
    for opts in ([], ["-opts", *options]) if options else ([],):
        main_multi_gpu_pretrain.main(
            ["-cfg", str(recipe(name)), "-dry_run", "-device", "cpu", "-gpu_memory", "80", *opts]
        )
        peaks.append(float(re.search(r"as configured: ([0-9.]+) GiB", capsys.readouterr().out)[1]))
    if more:
        assert peaks[1] > more * peaks[0]
    else:  # what the run's own task says
        config = get_config(recipe(name), ["AMP", "auto"])
        views, blocks = dispatch._cost(config).views, dispatch._cost(config).trained_blocks
        assert (views, blocks) == (2, 0 if "head" in name else None)
        cost = Cost(views, blocks)
        wanted = memory.estimate(of_any_config(config, network_kind(config)), config, cost=cost, device="gpu", ranks=8)
        assert peaks[0] == pytest.approx(wanted.peak / memory.GIB, abs=0.06)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "device", "gib", "opts", "expected"),
    [
        ("vit_large_patch16_224_pretrain", "gpu:0", 1000, [], 4096),
        ("vit_large_patch16_224_pretrain", "gpu:0", 24, ["AMP", "bf16"], 128),
        ("vit_large_patch16_224_pretrain", "gpu:0", 24, ["AMP", False], 64),
        ("vit_large_patch16_224_pretrain", "gpu:0", 1, [], 1),
        ("vit_large_patch16_224_pretrain", "cpu", 1000, [], 64),  # the recipe's
        ("vit_large_patch16_224_pretrain", "cpu", 12, [], 16),
        ("vit_large_patch16_224_pretrain", "npu:0", None, [], 64),
        ("vit_large_patch16_224_pretrain", "gpu:0", 1000, ["DATA.BATCH_FIT", "few"], 64),
        ("vit_large_patch16_224_pretrain", "gpu:0", 1000, ["TRAIN.TOTAL_BATCH_SIZE", 4000], 3968),
        ("vit_base_patch16_224_finetune", "gpu:0", 1000, ["TRAIN.ACCUM_ITER", 6, "DATA.BATCH_SIZE", 10], 60),
    ],
)
def test_the_batch_fits_the_memory(name, device, gib, opts, expected, monkeypatch):
    monkeypatch.setattr("paddle.device.get_device", lambda: device)
    monkeypatch.setattr("training.device.memory_of_rank", lambda: None if gib is None else gib << 30)
    config = get_config(recipe(name), ["DATA.BATCH_FIT", "auto", *opts])
    lines = []
    found = loaders.fit_memory(config, lines.append)
    batch, images = found.DATA.BATCH_SIZE, config.DATA.BATCH_SIZE * loaders._accum_iter(config)
    assert batch == expected
    assert batch * loaders._accum_iter(found) == images, "an update has as many images as before"
    assert len(lines) == (batch != config.DATA.BATCH_SIZE)
    if expected > 1 and lines:  # it is the largest that fits
        architecture = of_any_config(config, network_kind(config))
        kind = device.partition(":")[0]
        sizes = [replaced(config, "DATA.BATCH_SIZE", size) for size in (batch, min(2 * batch, images))]
        peaks = [memory.estimate(architecture, tried, device=kind).peak for tried in sizes]
        assert [peak <= 0.8 * (gib << 30) for peak in peaks] == [True, batch == images]


def test_a_run_takes_the_batch_that_fits_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.device.memory_of_rank", lambda: 600 << 20)
    flags = ["-dataset", "synthetic", "-output", str(tmp_path), "-device", "cpu", "-batch_size", "auto", "-dry_run"]
    main_multi_gpu_pretrain.main(["-cfg", str(recipe("vit_micro_patch4_32_pretrain")), *flags])
    out = capsys.readouterr().out
    size = int(re.search(r"micro-steps of (\d+) images per update and process instead of 1 of 128", out)[1])
    assert f"batch: {size} per process x {128 // size} accumulated x 1 processes = 128 images per update" in out


def test_bad_questions_are_refused(capsys):
    cfg = str(recipe("vit_base_patch16_224_pretrain"))
    with pytest.raises(UserError, match="is for -dry_run"):
        main_multi_gpu_pretrain.main(["-cfg", cfg, "-device", "cpu", "-gpu_memory", "80"])
    for number in ("inf", "1e400", "nan", "-1", "0", "0x80", "x80", "8x", "1.5x80", "8x-1", "8X80", "1e3", "٣"):
        with pytest.raises(SystemExit):
            main_multi_gpu_pretrain.main(["-cfg", cfg, "-dry_run", "-gpu_memory", number])
        assert "is neither GiB above 0, such as 80, nor 8x80" in capsys.readouterr().err


def test_a_head_that_follows_the_data_is_counted_or_said_to_be_left_out(capsys):
    cfg = str(recipe("vit_base_patch16_224_wsp"))
    common = ["-cfg", cfg, "-dry_run", "-device", "cpu", "-gpu_memory", "80"]

    def trained() -> int:
        return int(re.search(r"([\d,]+) of them train", capsys.readouterr().out)[1].replace(",", ""))

    main_multi_gpu_pretrain.main([*common, "-opts", "MODEL.NUM_CLASSES", "1000000"])
    with_a_million = trained()
    main_multi_gpu_pretrain.main([*common, "-dataset", "synthetic"])  # data with 10 classes
    with_ten = trained()
    assert with_a_million - with_ten == (1_000_000 - 10) * 769
    main_multi_gpu_pretrain.main([*common, "-data_path", "absent"])
    assert "without the head, as MODEL.NUM_CLASSES follows the data, which is not there: " in capsys.readouterr().out


def test_cached_features_need_no_activations_of_the_image_tower(tmp_path):
    sizes = {}
    for cached in (False, True):
        config = get_config(recipe("vit_2b_patch14_224_lit"), ["LIT.CACHE_FEATURES", cached])
        sizes[cached] = memory.estimate(of_any_config(config, "clip"), config, device="gpu")
    assert sizes[True].activations < sizes[False].activations
    assert sizes[True].layer < sizes[False].layer
    assert sizes[True].weights == sizes[False].weights, "it stays for the evaluation"
