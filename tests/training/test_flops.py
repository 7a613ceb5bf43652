import dataclasses

import pytest

from config import get_config, network_kind
from methods import dispatch
from storage import architecture
from tests.conftest import TINY
from tests.helpers.recipes import recipe
from training import flops, memory, plan
from training.task import ONE_PASS

pytestmark = pytest.mark.quick


def model(name):
    config = get_config(recipe(name))
    return architecture.of_config(config, network_kind(config)), config.MODEL.MASK_RATIO


# EasyCV states 9.8 and 20.8 G for the autoencoders of ViT-B and L; timm 17.6, 61.6 and 167.3 G for the classifiers.
@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("vit_base_patch16_224_pretrain", 9.8),
        ("vit_large_patch16_224_pretrain", 20.8),
        ("vit_huge_patch14_224_pretrain", 48.6),
        ("vit_base_patch16_224_finetune", 17.6),
        ("vit_large_patch16_224_finetune", 61.6),
        ("vit_huge_patch14_224_finetune", 167.3),
    ],
)
def test_published_figures(name, gmacs):
    assert round(flops.forward_macs(*model(name)) / 1e9, 1) == gmacs


def test_training_is_three_passes_and_a_probe_one():
    classifier, _ = model("vit_base_patch16_224_finetune")
    probe, _ = model("vit_base_patch16_224_linearprobe")
    assert flops.train_flops(classifier) == 6 * flops.forward_macs(classifier)
    assert flops.train_flops(probe) == 2 * flops.forward_macs(probe)


def test_views_frozen_blocks_and_other_networks_count():
    encoder, _ = model("vit_base_patch16_224_moco")
    forward = flops.forward_macs(encoder)
    assert flops.train_flops(encoder, views=2, other_macs=2 * forward) == 2 * 8 * forward
    assert flops.train_flops(encoder, views=2, trained_blocks=6) == 2 * 4 * forward
    assert flops.train_flops(encoder, views=2, trained_blocks=0) == 2 * 2 * forward


def test_methods_say_what_a_step_costs(tiny_run):
    head = ["MODEL.TYPE", "CONTRASTIVE_TUNING", "DATA.DROP_LAST", True]
    moco = ["MODEL.TYPE", "MOCO", "DATA.DROP_LAST", True]
    passes = {"head": (head, 2), "moco": (moco, 8), "pretrain": (["TRAIN.VIEWS", 2], 6)}
    for opts, forward_passes in passes.values():
        run = tiny_run("pretrain", *opts)
        task = dispatch.build_task(run)
        forward = flops.forward_macs(task.architecture, run.config.MODEL.MASK_RATIO)
        assert plan.train_flops(task, run.config) == pytest.approx(2 * forward_passes * forward)


def test_two_views_take_twice_the_memory_and_no_advice_is_refused(tiny_run):
    run = tiny_run("pretrain", "MODEL.TYPE", "MOCO", "DATA.DROP_LAST", True, "TRAIN.TOTAL_BATCH_SIZE", 32)
    task = dispatch.build_task(run)
    encoder = task.architecture
    one, two = (memory.estimate(encoder, run.config, cost=cost) for cost in (ONE_PASS, task.cost))
    assert (two.activations, two.layer) == (2 * one.activations, 2 * one.layer)
    loader = dispatch.build_train_loader(run)
    text = plan.describe_plan(plan.make_plan(run.config, loader), task, loader.sampler, run.config)
    assert "not 8; -batch_size 32 makes it so" in text


def test_a_small_model_counted_by_hand():
    small = architecture.Architecture(architecture.Tower(8, 1, 2), 4, (2, 2), 1, 2.0, num_classes=3)
    # 4 patches of 16 values; 5 tokens: qkv 3*64, out 64, mlp 2*8*16; scores and mixing 2*25*8; head 8*3
    assert flops.forward_macs(small) == 4 * 16 * 8 + 5 * (3 * 64 + 64 + 2 * 8 * 16) + 2 * 25 * 8 + 24


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A800-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H800 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 5090", 209.5e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("NVIDIA A100X", None),
        ("other", None),
    ],
)
def test_peaks(name, peak):
    assert flops.peak_flops(name) == (None if peak is None else pytest.approx(peak))


def test_a_segmenter_classifies_each_patch():
    opts = [*TINY, "MODEL.TYPE", "SEGMENTATION", "DATA.DATASET", "scenes", "MODEL.NUM_CLASSES", 8, "SEG.LAYERS", [1, 2]]
    segmenter = architecture.of_config(get_config(None, opts), "segmenter")
    encoder = dataclasses.replace(segmenter, num_classes=0)
    patches, width = segmenter.grid_hw[0] * segmenter.grid_hw[1], segmenter.encoder.width
    assert flops.forward_macs(segmenter) - flops.forward_macs(encoder) == patches * 2 * width * 8
    whole = flops.train_flops(segmenter, trained_blocks=segmenter.encoder.depth)
    assert whole == 3 * flops.train_flops(segmenter, trained_blocks=0) == 6 * flops.forward_macs(segmenter)
