"""Finetuning: blocks that do not train, and low-rank adapters."""

import numpy as np
import paddle
import pytest

from errors import UserError
from launch.stop import StopRequest
from layers.attention import Attention
from layers.lora import Adapters
from methods import dispatch, load_models
from storage import weight_files
from tests.conftest import assert_close
from training import engine, plan
from training.flops import train_flops as flops_of
from transformer import build_transformer

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("count", [0, 1, 2])
def test_frozen_blocks_stay_and_the_others_learn(tiny_run, count):
    run = tiny_run("finetune", "TRAIN.FREEZE_BLOCKS", count, "TRAIN.WARMUP_EPOCHS", 0, "MODEL.ENCODER.DEPTH", 2)
    task = dispatch.build_task(run)
    before = {name: value.numpy().copy() for name, value in task.model.named_parameters()}
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


# ---- LoRA


def lora_run(tiny_run, *opts, **fields):
    settings = ["TRAIN.LORA_RANK", 2, "MODEL.ENCODER.DEPTH", 2, "TRAIN.NUM_EPOCHS", 2, "TRAIN.WARMUP_EPOCHS", 0]
    return tiny_run("finetune", *settings, "TRAIN.BASE_LR", 0.1, *opts, **fields)


def test_saved_weights_are_an_ordinary_classifier_with_equal_outputs(tiny_run):
    run = lora_run(tiny_run)
    task = dispatch.build_task(run)
    for adapter in task.model.adapters.children():
        adapter.up.set_value(paddle.randn(adapter.up.shape) * 0.1)
    task.model.eval()
    images = paddle.randn([3, 3, *task.architecture.image_hw])
    expected = task.model(images).numpy()
    plain = build_transformer(run.config)
    plain.eval()
    assert set(task.saved_state()) == set(plain.state_dict())
    plain.set_state_dict(task.saved_state())
    assert_close(plain(images).numpy(), expected, 1e-5)
    assert np.abs(expected - expected[:1]).max() > 1e-3


def test_only_adapters_and_the_head_train(tiny_run):
    task = dispatch.build_task(lora_run(tiny_run, "TRAIN.FREEZE_BLOCKS", 1))
    trained = {name for name, value in task.model.named_parameters() if not value.stop_gradient}
    assert {name for name in trained if name.startswith("adapters.")} == {
        f"adapters.1_{layer}.{factor}" for layer in ("qkv", "out") for factor in ("down", "up")
    }
    rest = {name for name in trained if not name.startswith("adapters.")}
    assert rest == {"network.classifier.weight", "network.classifier.bias"} | {
        name for name in rest if name.startswith("network.encoder_norm.")
    }


def test_parameters_of_vit_base_at_rank_8():
    """12 blocks, 4 projections each, two factors of 768 x 8."""
    attentions = {number: Attention(768, 12, True, 0.0, 0.0) for number in range(1)}
    count = sum(parameter.size for parameter in Adapters(attentions, 8).parameters())
    assert 12 * count == 589_824 <= 600_000


@pytest.mark.parametrize("recompute", [False, True])
def test_a_resumed_run_is_bit_identical_and_its_file_is_merged(tiny_run, recompute):
    opts = ["TRAIN.RECOMPUTE", recompute, "SAVE_FREQ", 1]
    whole = lora_run(tiny_run, *opts)
    dispatch.train_or_evaluate(whole)
    first = sorted(path for path in whole.directory.glob("step-*"))[0]
    resumed = lora_run(tiny_run, *opts, resume_from=first)
    dispatch.train_or_evaluate(resumed)
    for name in ("model.pdparams", "extra.pdparams"):
        own, other = (weight_files.read(run.directory / "latest" / name).tensors for run in (whole, resumed))
        assert own.keys() == other.keys()
        assert all(np.array_equal(own[key].read(), other[key].read()) for key in own)
    untrained = build_transformer(whole.config)
    tensors = weight_files.read(whole.directory / "latest" / "model.pdparams").tensors
    assert set(tensors) == set(untrained.state_dict())
    extra = weight_files.read(whole.directory / "latest" / "extra.pdparams").tensors
    name = "encoder.layers.0.attn.qkv.weight"
    assert not np.array_equal(tensors[name].read(), extra[f"unmerged.{name}"].read())
    model, _ = load_models.load_classifier(whole.directory, whole.config)
    assert model.architecture.num_classes == 4


def test_averages_are_refused(tiny_run):
    with pytest.raises(UserError, match="adapters are not averaged"):
        dispatch.build_task(lora_run(tiny_run, "TRAIN.EMA_DECAY", 0.9))
