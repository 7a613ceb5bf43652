"""Relative position biases: their index, their gradients against torch, and what loads and ports them."""

import numpy as np
import paddle
import pytest

import checkpoint
from config import get_config
from errors import UserError
from layers import kernels
from layers.relative_position import num_rows, position_index, resize_bias_table
from mae import build_mae_pretrain
from methods import dispatch
from optim import param_groups
from port_weights import port
from storage import weight_files
from tests.conftest import assert_close
from tests.helpers.malformed_weights import torch_bytes
from tests.helpers.recipes import recipe
from tests.helpers.small_models import make_mae, make_vit
from tests.helpers.weights_by_hand import official_arrays
from transformer import build_transformer

RPE = ["MODEL.ENCODER.RELATIVE_POSITION_BIAS", True]
FLOAT32_RELATIVE = 1e-5  # sums in another order


@pytest.mark.quick
@pytest.mark.parametrize("grid_hw", [(14, 14), (2, 3), (1, 1)])
def test_the_index_of_every_pair(grid_hw):
    height, width = grid_hw
    index, last = position_index(grid_hw), (2 * height - 1) * (2 * width - 1)
    assert index.shape == (1 + height * width,) * 2
    for query in range(height * width):
        for key in range(height * width):
            down, right = query // width - key // width, query % width - key % width
            assert index[1 + query, 1 + key] == (down + height - 1) * (2 * width - 1) + right + width - 1
    assert (index[0, 1:] == last).all()
    assert (index[1:, 0] == last + 1).all()
    assert index[0, 0] == last + 2 == num_rows(grid_hw) - 1


@pytest.mark.quick
def test_counts_are_those_of_mae_lite():
    def count(name, *opts):
        task_config = get_config(recipe(f"vit_tiny_patch16_224_{name}"), list(opts))
        return sum(p.size for p in build_transformer(task_config).parameters())

    assert num_rows((14, 14)) == 732
    plain = count("finetune")
    assert plain == 5_717_416
    assert count("finetune", *RPE) - plain == 105_408
    assert count("finetune", "MODEL.ENCODER.RELATIVE_POSITION_BIAS", "shared") - plain == 732 * 12
    mae = build_mae_pretrain(get_config(recipe("vit_tiny_patch16_224_pretrain")))
    parts = ("decoder", "mask_token", "linear_projection")
    assert sum(p.size for name, p in mae.named_parameters() if name.startswith(parts)) == 224_064 - 197 * 96


@pytest.mark.quick
@pytest.mark.parametrize("batch", [1, 3, 50])
def test_attention_with_a_bias_is_torchs(batch, monkeypatch):
    """On CPU in pieces, whose last one may be smaller, and the plain way."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr("layers.cpu_kernels._SCORES_AT_ONCE", 2 * 2 * 10 * 10)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((batch, 10, 3, 2, 8), (2, 10, 10))]
    weight = rng.standard_normal((batch, 10, 2, 8)).astype(np.float32)
    theirs = [torch.from_numpy(array).requires_grad_() for array in arrays]
    query, key, value = theirs[0].permute(2, 0, 3, 1, 4)
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=theirs[1])
    mixed = mixed.transpose(1, 2)
    (mixed * torch.from_numpy(weight)).sum().backward()
    for return_logits in (False, True):
        ours = [paddle.to_tensor(array, stop_gradient=False) for array in arrays]
        found = kernels.attention(*ours, return_logits=return_logits)[0]
        (found * paddle.to_tensor(weight)).sum().backward()
        assert_close(found.numpy(), mixed.detach().numpy(), FLOAT32_RELATIVE)
        for own, their in zip(ours, theirs, strict=True):
            assert_close(own.grad.numpy(), their.grad.numpy(), FLOAT32_RELATIVE)


@pytest.mark.quick
@pytest.mark.parametrize("kind", [True, "shared"])
def test_every_block_gets_the_biases_and_recomputation_changes_nothing(kind):
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32))
    gradients, plain, tables = [], make_vit(), {}
    for recompute in (False, True):
        model = make_vit(position_bias=kind, recompute=recompute)
        model.train()
        for name, value in model.named_parameters():
            if name.endswith("table"):
                value.set_value(tables.setdefault(name, paddle.randn(value.shape)))
        model(images).square().sum().backward()
        gradients.append({name: p.grad.numpy() for name, p in model.named_parameters()})
    assert len(tables) == (1 if kind == "shared" else len(model.encoder.layers))
    assert all(np.abs(gradients[0][name]).max() > 0 for name in tables)
    assert all(np.array_equal(gradients[0][name], value) for name, value in gradients[1].items())
    logits = [scores.numpy() for _, _, scores in model.encoder.walk(model.embed(images), return_logits=True)]
    without = [scores.numpy() for _, _, scores in plain.encoder.walk(plain.embed(images), return_logits=True)]
    table = next(iter(tables.values())).numpy()
    assert_close(logits[0] - without[0], np.repeat(table[position_index((2, 2))].transpose(2, 0, 1)[None], 4, 0), 1e-4)


@pytest.mark.quick
def test_a_table_grows_with_the_grid():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((num_rows((2, 2)), 3)).astype(np.float32)
    assert resize_bias_table(table, (2, 2), (2, 2)) is table
    grown = resize_bias_table(table, (4, 3), (2, 2))
    assert grown.shape == (num_rows((4, 3)), 3)
    assert np.array_equal(grown[-3:], table[-3:])
    middle = grown[:-3].reshape(7, 5, 3)[3, 2]  # no step at all: the middle of both
    assert_close(middle, table[4], 1e-6)
    flat = np.ones_like(table)
    assert_close(resize_bias_table(flat, (4, 3), (2, 2)), np.ones_like(grown), 1e-6)


@pytest.mark.quick
def test_finetuning_starts_from_plain_weights_as_without_biases(tmp_path, tiny_run, capsys):
    paddle.save(make_mae((16, 16)).state_dict(), str(tmp_path / "mae.pdparams"))
    sizes = [
        "MODEL.ENCODER.EMBED_DIM",
        16,
        "MODEL.ENCODER.DEPTH",
        1,
        "MODEL.ENCODER.NUM_HEADS",
        2,
        "MODEL.PRETRAINED",
        str(tmp_path / "mae"),
    ]
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32))
    outputs = []
    for opts in ([], RPE, ["MODEL.ENCODER.RELATIVE_POSITION_BIAS", "shared"]):
        model = dispatch.build_task(tiny_run("finetune", *sizes, *opts, "MODEL.DROPPATH", 0.0)).network
        model.eval()
        outputs.append(model.forward_tokens(images).numpy())
    assert_close(outputs[1], outputs[0], 1e-6)
    assert_close(outputs[2], outputs[0], 1e-6)
    with pytest.raises(UserError, match="for finetuning, which starts from plain weights"):
        dispatch.build_task(tiny_run("pretrain", *RPE))


@pytest.mark.quick
def test_tables_follow_another_grid_when_they_are_loaded(tmp_path, tiny_config):
    small, large = (build_transformer(tiny_config("finetune", *RPE, "DATA.IMAGE_SIZE", side)) for side in (8, 16))
    for parameter in small.parameters():
        parameter.set_value(paddle.randn(parameter.shape))
    paddle.save(small.state_dict(), str(tmp_path / "small.pdparams"))
    report = checkpoint.load_weights(large, tmp_path / "small.pdparams")
    name = "encoder.layers.1.attn.position_bias.table"
    assert f"{name} 2x2 -> 4x4" in report.resized
    expected = resize_bias_table(small.state_dict()[name].numpy(), (4, 4), (2, 2))
    assert np.array_equal(large.state_dict()[name].numpy(), expected)


@pytest.mark.quick
def test_rates_and_decays_follow_the_block():
    """Tables are decayed; layer scales, which have one dimension, are not. Three blocks, decay 0.5."""
    options = {"depth": 3, "layer_scale": 0.1}
    expected = {f"encoder.layers.{block}.attn.position_bias.table": (0.5 ** (3 - block), 0.05) for block in range(3)}
    expected |= {f"encoder.layers.{block}.gamma_{n}": (0.5 ** (3 - block), 0.0) for block in range(3) for n in (1, 2)}
    expected |= {"encoder.position_bias.table": (1.0, 0.05)}  # shared by all blocks: as the head
    found = {}
    for kind in (True, "shared"):
        model = make_vit(position_bias=kind, **options)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for group in param_groups(model, 0.05, 0.5):
            for parameter in group["params"]:
                found[names[id(parameter)]] = (group["learning_rate"], group["weight_decay"])
    assert {name: found[name] for name in expected} == expected


def published(layout: str) -> dict[str, np.ndarray]:
    """Return weights in a layout of MAE-Lite's: two blocks of width 16, two heads, a 2 x 2 grid."""
    arrays = official_arrays(dim=16, depth=2, num_patches=4, num_classes=3)
    arrays["fc_norm.weight"], arrays["fc_norm.bias"] = arrays.pop("norm.weight"), arrays.pop("norm.bias")
    rng = np.random.default_rng(0)
    for block in range(2):
        prefix = f"blocks.{block}"
        arrays[f"{prefix}.attn.relative_position_bias_table"] = rng.standard_normal((12, 2)).astype(np.float32)
        arrays[f"{prefix}.attn.relative_position_index"] = position_index((2, 2))
        if layout != "qkv.bias":
            query, _, value = np.split(arrays.pop(f"{prefix}.attn.qkv.bias"), 3)
            arrays |= {f"{prefix}.attn.q_bias": query, f"{prefix}.attn.v_bias": value}
        if layout == "gamma":
            arrays |= {f"{prefix}.gamma_{n}": rng.standard_normal(16).astype(np.float32) for n in (1, 2)}
    return arrays


@pytest.mark.quick
@pytest.mark.parametrize("layout", ["qkv.bias", "q_bias", "gamma"])
def test_the_published_layouts_are_ported_and_back(tmp_path, layout):
    arrays = published(layout)
    (tmp_path / "lite.pth").write_bytes(torch_bytes({f"module.model.{name}": a for name, a in arrays.items()}))
    report = port(tmp_path / "lite.pth", tmp_path / "ours.pdparams")
    assert report.architecture.encoder.heads == 2
    assert report.architecture.position_bias is True
    assert (report.architecture.layer_scale is not None) == (layout == "gamma")
    model = build_transformer(get_config(tmp_path / "ours.yaml"))
    assert not checkpoint.load_weights(model, tmp_path / "ours.pdparams").missing
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    table = arrays["blocks.1.attn.relative_position_bias_table"]
    assert np.array_equal(state["encoder.layers.1.attn.position_bias.table"], table)
    bias = state["encoder.layers.1.attn.qkv.bias"]
    if layout == "qkv.bias":
        assert np.array_equal(bias, arrays["blocks.1.attn.qkv.bias"])
    else:
        zero = np.zeros(16, np.float32)
        expected = np.concatenate([arrays["blocks.1.attn.q_bias"], zero, arrays["blocks.1.attn.v_bias"]])
        assert np.array_equal(bias, expected)
    port(tmp_path / "ours.pdparams", tmp_path / "back.pth", target="official")
    port(tmp_path / "back.pth", tmp_path / "again.pdparams")
    again = weight_files.read(tmp_path / "again.pdparams").tensors
    assert all(np.array_equal(again[name].read(), value) for name, value in state.items())
    for target, name in (("timm", "a.pth"), ("transformers", "folder")):
        with pytest.raises(UserError, match="no relative position biases.*; -to official keeps them"):
            port(tmp_path / "ours.pdparams", tmp_path / name, target=target)
