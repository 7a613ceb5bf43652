"""Tokens per group of channels, against an own implementation in torch, in models, runs and tools."""

import numpy as np
import paddle
import pytest

from config import get_config
from errors import UserError
from layers.channel_groups import ChannelGroups
from layers.patch_embedding import on_grid
from layers.pos_embed import position_table, resize_table, sincos_table
from mae import build_mae_pretrain
from methods import dispatch
from pages import drawing, reconstruction
from tests.conftest import TINY, assert_close
from tests.helpers.saved_runs import fit_pretrain
from tools import export
from transformer import build_transformer

pytestmark = pytest.mark.quick
GROUPS = [[0, 3], [4, 1, 2]]
FIVE = ["DATA.IMAGE_CHANNELS", 5, "DATA.IMAGENET_MEAN", [0.5] * 5, "DATA.IMAGENET_STD", [0.25] * 5]
GROUPED = [*FIVE, "MODEL.CHANNEL_GROUPS", GROUPS]


def build(*options, kind="PRETRAIN"):
    paddle.seed(0)
    config = get_config(None, [*TINY, "MODEL.TYPE", kind, *GROUPED, *options])
    model = (build_mae_pretrain if kind == "PRETRAIN" else build_transformer)(config)
    for parameter in model.parameters():  # biases, too, are not 0
        parameter.set_value(parameter + 0.05 * paddle.randn(parameter.shape))
    return model


def test_groups_come_apart_and_together():
    groups, patches = ChannelGroups(GROUPS), paddle.rand([2, 3, 4 * 5])
    parts = groups.split(patches)
    pixels = patches.numpy().reshape(2, 3, 4, 5)
    for part, own in zip(parts, GROUPS, strict=True):
        assert np.array_equal(part.numpy(), pixels[..., own].reshape(2, 3, -1))
    assert np.array_equal(groups.join(parts).numpy(), patches.numpy())
    assert not groups.state_dict()


def test_the_table_has_places_and_codes():
    table = position_table(768, (14, 14), 3)[0]
    places = sincos_table(512, (14, 14))[0]
    assert table.shape == (1 + 3 * 196, 768)
    assert np.array_equal(table[0], np.zeros(768))
    angles = 2 * 10000.0 ** -(np.arange(128) / 128)
    for row in (0, 100, 195):
        assert np.array_equal(table[1 + 2 * 196 + row, :512], places[1 + row])
        assert_close(table[1 + 2 * 196 + row, 512:], np.concatenate([np.sin(angles), np.cos(angles)]), 1e-6)
    decoder = position_table(512, (14, 14), 3, is_decoder=True)[0]
    angles = 3 * 10000.0 ** -(np.arange(64) / 64)
    assert_close(decoder[0, 384:], np.concatenate([np.sin(angles), np.cos(angles)]), 1e-6)
    assert not decoder[0, :384].any()
    assert np.array_equal(position_table(768, (14, 14)), sincos_table(768, (14, 14)))
    assert [position_table(d, (2, 2), 2).shape for d in (16, 192, 1024)] == [(1, 9, d) for d in (16, 192, 1024)]
    larger = resize_table(table[None], (16, 16), (14, 14), 3)
    whole = resize_table(table[None, : 1 + 196], (16, 16), (14, 14))
    assert np.array_equal(larger[:, 1 : 1 + 256], whole[:, 1:])
    assert_close(larger[0, 1 + 2 * 256 :, 700], np.full(256, table[-1, 700]), 1e-6)


def torch_loss(weights, images, noise, norm_pix_loss, consistent):
    """Return the loss of MAE with tokens per group, in float64."""
    import torch
    import torch.nn.functional as F

    def linear(x, name):
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def stack(x, part, depth, heads):
        for block in range(depth):
            name, width = f"{part}.layers.{block}", x.shape[-1]
            q, k, v = linear(norm(x, f"{name}.attn_norm"), f"{name}.attn.qkv").chunk(3, dim=-1)
            q, k, v = (t.reshape(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
            mixed = F.softmax(q @ k.transpose(-1, -2) / (width // heads) ** 0.5, dim=-1) @ v
            x = x + linear(mixed.transpose(1, 2).reshape(x.shape), f"{name}.attn.out")
            hidden = F.gelu(linear(norm(x, f"{name}.mlp_norm"), f"{name}.mlp.fc1"))
            x = x + linear(hidden, f"{name}.mlp.fc2")
        return norm(x, f"{part}.norm")

    batch, side = len(images), 4
    tokens = [
        F.conv2d(
            images[:, own],
            weights[f"patch_embedding.groups.{g}.weight"],
            weights[f"patch_embedding.groups.{g}.bias"],
            stride=side,
        )
        for g, own in enumerate(GROUPS)
    ]
    tokens = torch.cat([t.flatten(2).transpose(1, 2) for t in tokens], dim=1)  # [B, G*N, D]
    table, decoder_table = (weights[f"{part}_position_embedding"] for part in ("encoder", "decoder"))
    count, grid = tokens.shape[1], tokens.shape[1] // len(GROUPS)
    noise = torch.cat([noise] * len(GROUPS), dim=1) if consistent else noise
    kept = len(GROUPS) * (grid // 4) if consistent else count // 4
    order = noise.argsort(dim=1)
    rows = torch.arange(batch)[:, None]
    first = (weights["cls_token"] + table[:, :1]).expand(batch, -1, -1)
    latent = torch.cat([first, (tokens + table[:, 1:])[rows, order[:, :kept]]], dim=1)
    latent = linear(stack(latent, "encoder", 2, 4), "linear_projection")
    whole = weights["mask_token"].expand(batch, count, -1).clone()
    whole[rows, order[:, :kept]] = latent[:, 1:]
    mask = torch.ones(batch, count, dtype=images.dtype)
    mask[rows, order[:, :kept]] = 0
    decoded = stack(torch.cat([latent[:, :1], whole], dim=1) + decoder_table, "decoder", 1, 2)[:, 1:]
    total = 0
    for g, own in enumerate(GROUPS):
        pixels = F.unfold(images[:, own], side, stride=side).reshape(batch, len(own), side**2, grid)
        target = pixels.permute(0, 3, 2, 1).reshape(batch, grid, -1)  # (pixel, channel)
        if norm_pix_loss:
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
        pred = linear(decoded[:, g * grid : (g + 1) * grid], f"decoder_pred.{g}")
        total = total + ((pred - target) ** 2).mean(-1).mul(mask[:, g * grid : (g + 1) * grid]).sum()
    return total / mask.sum(), mask


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("masks", ["independent", "consistent"])
def test_loss_masks_and_gradients_agree_with_torch(norm_pix_loss, masks):
    torch = pytest.importorskip("torch")
    model = build("MODEL.NORM_PIX_LOSS", norm_pix_loss, "MODEL.GROUP_MASKS", masks)
    images = paddle.randn([3, 5, 16, 16])
    noise = paddle.rand([3, 16 if masks == "consistent" else 32])
    loss, pred, mask = model(images, noise=noise)
    loss.backward()
    own = {name: torch.tensor(value.numpy(), dtype=torch.float64) for name, value in model.state_dict().items()}
    for name, _ in model.named_parameters():
        own[name].requires_grad_()
    inputs = (torch.tensor(value.numpy(), dtype=torch.float64) for value in (images, noise))
    theirs, their_mask = torch_loss(own, *inputs, norm_pix_loss, masks == "consistent")
    theirs.backward()
    assert np.array_equal(mask.numpy(), their_mask.numpy())
    assert pred.shape == [3, 16, 4 * 4 * 5]
    assert_close(loss.numpy(), theirs.item(), 1e-5)
    for name, parameter in model.named_parameters():
        expected = own[name].grad.numpy()
        if name.endswith("qkv.bias"):  # the keys' third is zero in theory
            expected = expected.reshape(3, -1)[[0, 2]]
            found = parameter.grad.numpy().reshape(3, -1)
            assert np.abs(found[1]).max() < 1e-6
            assert_close(found[[0, 2]], expected, 1e-5, name)
        else:
            assert_close(parameter.grad.numpy(), expected, 1e-5, name)
    if masks == "consistent":
        assert (mask.numpy()[:, :16] == mask.numpy()[:, 16:]).all()


def test_hidden_pixels_are_those_of_the_group():
    model = build()
    mask = np.zeros((1, 32), np.float32)
    mask[0, 16 + 3] = 1  # the second group's fourth patch
    hidden = model.groups.hidden(paddle.to_tensor(mask), 4).numpy().reshape(16, 16, 5)
    expected = np.zeros((16, 16, 5))
    expected[3][:, [1, 2, 4]] = 1
    assert np.array_equal(hidden, expected)


def test_what_is_hidden_does_not_reach_the_prediction():
    model = build()
    images, noise = paddle.rand([1, 5, 16, 16]), paddle.rand([1, 32])
    _, pred, mask = model(images, noise=noise)
    hidden = model.groups.hidden(mask, 4).numpy().reshape(4, 4, 4, 4, 5).transpose(4, 0, 2, 1, 3).reshape(1, 5, 16, 16)
    assert 0.7 < hidden.mean() < 0.8
    changed = model(images + 5 * paddle.to_tensor(hidden), noise=noise)[1]
    assert (changed == pred).all()


def write_arrays(folder):
    rng = np.random.default_rng(0)
    for split, name, count in (("train", "a", 8), ("train", "b", 8), ("val", "a", 4), ("val", "b", 4)):
        (folder / split / name).mkdir(parents=True)
        for index in range(count):
            np.save(folder / split / name / f"{index}.npy", rng.integers(0, 1000, (18, 18, 5), np.uint16))


def test_runs_pictures_and_tools(tiny_run, tmp_path):
    write_arrays(tmp_path / "set")
    files = ["DATA.DATASET", "folder", "DATA.DATA_PATH", str(tmp_path / "set"), "DATA.PIXELS", "array"]
    files += ["DATA.PIXEL_RANGE", [0, 1000], *GROUPED, "MODEL.NUM_CLASSES", 2]
    run = tiny_run("pretrain", *files, "TRAIN.NUM_EPOCHS", 1)
    fit_pretrain(run)
    options = [*files, "MODEL.PRETRAINED", str(run.directory), "TRAIN.NUM_EPOCHS", 1]
    later = tiny_run("finetune", *options, "TRAIN.RAND_AUGMENT", False, "DATA.IMAGE_SIZE", 32)
    scores = dispatch.train_or_evaluate(later)
    assert 0 <= scores["acc1"] <= 100
    assert "encoder_position_embedding 4x4 -> 8x8" in (later.directory / "log.txt").read_text()
    model, images = build_mae_pretrain(run.config), np.random.default_rng(0).normal(size=(2, 5, 16, 16))
    model.eval()
    for noise in (None, np.random.default_rng(1).random((2, 16), np.float32)):
        drawn = reconstruction.reconstruct(model, run.config, images.astype(np.float32), noise=noise)
        assert all(panel.shape[:3] == (2, 16, 16) for panel in drawn.panels)
        assert np.isfinite([drawn.error, drawn.means_error]).all()
    encoder = build(kind="FINETUNE")
    maps = drawing.draw_attention(encoder, later.config, images.astype(np.float32))
    assert all(panel.shape == (2, 16, 16, 3) for panel in maps)
    tokens = paddle.rand([2, 32, 3])
    assert_close(on_grid(tokens, 2).numpy(), (tokens[:, :16] + tokens[:, 16:]).numpy() / 2, 1e-6)


def test_weights_of_other_groups_are_refused(tiny_run, tmp_path):
    write_arrays(tmp_path / "set")
    files = ["DATA.DATASET", "folder", "DATA.DATA_PATH", str(tmp_path / "set"), "DATA.PIXELS", "array"]
    files += ["DATA.PIXEL_RANGE", [0, 1000], *GROUPED, "MODEL.NUM_CLASSES", 2, "TRAIN.NUM_EPOCHS", 1]
    run = tiny_run("pretrain", *files)
    fit_pretrain(run)
    later = [*files, "TRAIN.RAND_AUGMENT", False, "MODEL.PRETRAINED", str(run.directory), "MODEL.CHANNEL_GROUPS"]
    for groups in (
        [[0, 4], [3, 1, 2]],
        [[4, 1, 2], [0, 3]],
        [[0], [3], [4, 1, 2]],
        [],
    ):  # the first has the same shapes
        with pytest.raises(UserError, match="was trained with MODEL.CHANNEL_GROUPS .*0, 3.*4, 1, 2.*set it as the"):
            dispatch.build_task(tiny_run("finetune", *later, groups))
    paddle.save(build().state_dict(), str(tmp_path / "plain.pdparams"))
    later[later.index("MODEL.PRETRAINED") + 1] = str(tmp_path / "plain.pdparams")
    with pytest.raises(UserError, match="was trained with MODEL.CHANNEL_GROUPS of 2 groups, and this model has"):
        dispatch.build_task(tiny_run("finetune", *later, [[0], [3], [4, 1, 2]]))


def test_a_mask_of_the_grid_is_that_of_all_groups():
    model, mask = build(), np.zeros((1, 16), np.float32)
    mask[0, [1, 5, 9]] = 1
    _, _, found = model(paddle.rand([1, 5, 16, 16]), mask=paddle.to_tensor(mask))
    assert np.array_equal(found.numpy(), np.tile(mask, (1, 2)))
    with pytest.raises(ValueError, match="expected images of shape .B, 5, 16, 16., got .1, 3, 16, 16."):
        model(paddle.rand([1, 3, 16, 16]))
    with pytest.raises(ValueError, match="has not been called yet"):
        _ = build().predicted


def test_grouped_models_are_exported(tiny_run, tmp_path):
    run = tiny_run("pretrain", "MODEL.CHANNEL_GROUPS", [[1], [0, 2]], "TRAIN.NUM_EPOCHS", 1)
    fit_pretrain(run)
    assert max(export.main([str(run.directory), "-out", str(tmp_path / "x"), "-format", "paddle"]).values()) < 1e-5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["MODEL.ADAPT_CHANNELS", "mean"], "MODEL.ADAPT_CHANNELS='mean': does not go with"),
        (["MODEL.CHANNEL_GROUPS", [[0, 1], [2]]], "each of 0 to 4 in one of them"),
        (["MODEL.CHANNEL_GROUPS", [[0, 1, 2], [2, 3, 4]]], "each of 0 to 4 in one of them"),
        (["MODEL.CHANNEL_GROUPS", [[0, 1, 2, 3, 4], []]], "each of 0 to 4 in one of them"),
        (["MODEL.CHANNEL_GROUPS", [0, 1, 2, 3, 4]], "each of 0 to 4 in one of them"),
        (["MODEL.CHANNEL_GROUPS", [[0, 1, 2, 3, 4]]], "needs two groups or more"),
        (["MODEL.PATCH_NORM", True], "MODEL.PATCH_NORM=True: does not go with MODEL.CHANNEL_GROUPS"),
        (["TRAIN.RESOLUTION", [[0, 8], [1, 16]]], "TRAIN.RESOLUTION.*does not go with"),
        (["DISTILL.TEACHER", "x"], "DISTILL.TEACHER='x': does not go with"),
        (["MODEL.PREDICT_RATIO", 0.25], "MODEL.PREDICT_RATIO=0.25: does not go with"),
        (["MODEL.DECODER.KIND", "cross"], "need the ordinary decoder"),
    ],
)
def test_what_does_not_go_with_groups(options, said):
    with pytest.raises(UserError, match=said):
        build(*options)
