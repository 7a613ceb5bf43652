import re

import numpy as np
import paddle
import pytest

from config import get_config
from layers import kernels
from layers.pos_embed import resize_table, sincos_table
from mae import build_mae_pretrain
from tests.conftest import assert_close
from tests.helpers.small_models import make_vit
from transformer import DropPath, build_transformer

pytestmark = pytest.mark.quick


def expected_keys(depth: int, decoder_depth: int | None = None) -> set[str]:
    """List PaddleViT's names."""

    def layers(part, depth):
        modules = ("attn_norm", "attn.qkv", "attn.out", "mlp_norm", "mlp.fc1", "mlp.fc2")
        return {f"{part}.layers.{i}.{m}.{kind}" for i in range(depth) for m in modules for kind in ("weight", "bias")}

    keys = {
        "cls_token",
        "encoder_position_embedding",
        "patch_embedding.patch_embedding.weight",
        "patch_embedding.patch_embedding.bias",
    } | layers("encoder", depth)
    if decoder_depth is not None:
        keys |= {"mask_token", "decoder_position_embedding"} | layers("decoder", decoder_depth)
        keys |= {
            f"{m}.{kind}"
            for m in ("encoder.norm", "linear_projection", "decoder.norm", "decoder_pred")
            for kind in ("weight", "bias")
        }
    return keys


def test_keys_are_paddlevits():
    norm = {"encoder.norm.weight", "encoder.norm.bias"}
    pooled = {"encoder_norm.weight", "encoder_norm.bias"}
    head = {"classifier.weight", "classifier.bias"}
    probe = {"classifier.0._mean", "classifier.0._variance", "classifier.1.weight", "classifier.1.bias"}
    size = [
        "MODEL.ENCODER.EMBED_DIM",
        16,
        "MODEL.ENCODER.NUM_HEADS",
        2,
        "MODEL.DECODER.EMBED_DIM",
        8,
        "MODEL.DECODER.NUM_HEADS",
        2,
    ]

    def keys(build, *opts):
        return set(build(get_config(None, [*size, *opts])).state_dict())

    assert keys(build_mae_pretrain) == expected_keys(12, 8)
    assert keys(build_transformer, "MODEL.TYPE", "FINETUNE") == expected_keys(12) | norm | head
    assert (
        keys(build_transformer, "MODEL.TYPE", "FINETUNE", "MODEL.GLOBAL_POOL", True)
        == expected_keys(12) | pooled | head
    )
    assert keys(build_transformer, "MODEL.TYPE", "LINEARPROBE") == expected_keys(12) | norm | probe


def test_vit_base_shapes():
    shapes = {
        name: value.shape
        for name, value in build_transformer(get_config("configs/vit_base_patch16_224_finetune.yaml"))
        .state_dict()
        .items()
    }
    assert len(shapes) == 152
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 86_567_656
    assert shapes["encoder.layers.11.attn.qkv.weight"] == [768, 2304]
    assert shapes["encoder_position_embedding"] == [1, 197, 768]
    assert shapes["classifier.weight"] == [768, 1000]


def test_global_pool_leaves_out_the_class_token():
    model = make_vit((8, 8), num_classes=2, embed_dim=16, depth=1, num_heads=2, global_pool=True)
    images = paddle.rand([2, 3, 8, 8])
    tokens = model.forward_tokens(images)
    expected = model.encoder_norm(tokens[:, 1:].mean(axis=1))
    assert_close(model.forward_features(images).numpy(), expected.numpy(), 1e-6)
    assert_close(model(images).numpy(), model.classifier(expected).numpy(), 1e-6)


def test_attention_logits_come_from_the_same_computation():
    model = make_vit((8, 8), num_classes=2, embed_dim=16, depth=1, num_heads=2)
    tokens = paddle.rand([2, 5, 16])
    plain = model.encoder.layers[0](tokens)
    with_logits, logits = model.encoder.layers[0](tokens, return_logits=True)
    assert_close(plain.numpy(), with_logits.numpy(), 1e-6)  # on CPU, plain attention is computed otherwise
    assert logits.shape == [2, 2, 5, 5]


def test_patch_projection_is_the_convolution():
    embedding = make_vit((8, 12), embed_dim=16, depth=1, num_heads=2).patch_embedding
    images = paddle.rand([2, 3, 8, 12])
    expected = embedding.patch_embedding(images).flatten(2).transpose([0, 2, 1])
    assert_close(embedding(images).numpy(), expected.numpy(), 1e-5)  # float32 sums in another order


def test_drop_path_grows_linearly_and_keeps_the_mean():
    model = make_vit((8, 8), embed_dim=16, depth=3, num_heads=2, drop_path=0.2)
    assert [layer.drop_path.drop_prob for layer in model.encoder.layers] == [0.0, 0.1, 0.2]
    paddle.seed(0)
    out = DropPath(0.25)(paddle.ones([4000, 1, 1])).numpy().ravel()
    assert set(np.round(np.unique(out), 5)) == {0.0, np.float32(1.33333)}
    assert abs(out.mean() - 1.0) < 0.05  # 4,000 draws: two standard errors are 0.018


def test_sincos_table():
    table = sincos_table(8, (2, 3))[0]
    assert not table[0].any()
    row, column = 1, 2
    expected = [
        np.sin(column),
        np.sin(column / 100),
        np.cos(column),
        np.cos(column / 100),
        np.sin(row),
        np.sin(row / 100),
        np.cos(row),
        np.cos(row / 100),
    ]
    assert_close(table[1 + row * 3 + column], expected, 1e-6)


def test_resize_table():
    table = sincos_table(8, (4, 4))
    assert resize_table(table, (4, 4)) is table
    assert resize_table(table, (6, 2)).shape == (1, 13, 8)
    flat = np.concatenate([table[:, :1], np.full((1, 6, 8), 0.5, np.float32)], axis=1)
    assert_close(resize_table(flat, (5, 7), (2, 3))[:, 1:], np.full((1, 35, 8), 0.5), 1e-6)
    with pytest.raises(ValueError, match="no square grid"):
        resize_table(flat, (5, 7))
    with pytest.raises(ValueError, match="does not fit"):
        resize_table(flat, (5, 7), (2, 2))


@pytest.mark.parametrize(
    ("device", "capability", "dtype", "dims", "said"),
    [
        ("cpu", (0, 0), None, [64], "in pieces that fit the cache"),
        ("gpu:0", (8, 0), None, [64], "plain, as scores in float32"),
        ("gpu:0", (7, 5), "float16", [64], "plain, as the GPU's compute capability 7.5 is below 8.0"),
        ("gpu:0", (9, 0), "bfloat16", [64, 12], "flash, bfloat16, in one stack; plain, as heads 12 wide"),
        ("gpu:0", (9, 0), "bfloat16", [64, 32], "flash, bfloat16"),
    ],
)
def test_the_kind_of_attention_is_told_with_its_reason(monkeypatch, device, capability, dtype, dims, said):
    monkeypatch.setattr(paddle.device, "get_device", lambda: device)
    monkeypatch.setattr(kernels, "_compute_capability", lambda: capability)
    assert re.match(said, kernels.describe_attention(dtype, dims))


def test_a_bias_is_added_to_the_scores_of_every_layer():
    """Against NumPy; a bias of -1e9 on all but the diagonal makes every token see itself only."""
    paddle.seed(0)
    layer = make_vit((8, 8), embed_dim=16, depth=1, num_heads=2).encoder.layers[0].attn
    layer.eval()
    tokens, bias = paddle.randn([2, 5, 16]), paddle.randn([2, 5, 5])
    query, key, value = layer.qkv(tokens).reshape([2, 5, 3, 2, 8]).transpose([2, 0, 3, 1, 4]).numpy()
    scores = query @ key.swapaxes(-1, -2) / np.float32(np.sqrt(8)) + bias.numpy()
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    expected = layer.out(paddle.to_tensor((weights @ value).swapaxes(1, 2).reshape(2, 5, 16)))
    found, logits = layer(tokens, bias, return_logits=True)
    assert_close(found.numpy(), expected.numpy(), 1e-5)
    assert_close(logits.numpy(), scores, 1e-5)
    bias.stop_gradient = False
    layer(tokens, bias).sum().backward()
    assert float(bias.grad.abs().max()) > 0
    alone = layer(tokens, -1e9 * (1 - paddle.eye(5)))
    own = layer.out(paddle.to_tensor(value.swapaxes(1, 2).reshape(2, 5, 16)))
    assert_close(alone.numpy(), own.numpy(), 1e-5)


def test_the_stack_hands_out_scores_of_chosen_layers():
    paddle.seed(0)
    model = make_vit((8, 8), embed_dim=16, depth=3, num_heads=2)
    model.eval()
    tokens = model.embed(paddle.randn([2, 3, 8, 8]))
    plain = model.encoder(tokens)
    mixed, logits = model.encoder(tokens, logits_of=(0, 2))
    assert sorted(logits) == [0, 2]
    assert_close(mixed.numpy(), plain.numpy(), 1e-5)
    walked = list(model.encoder.walk(tokens, return_logits=True))
    assert_close(walked[2][2].numpy(), logits[2].numpy(), 1e-5)  # other kernels in between
    assert np.array_equal(walked[1][0].numpy(), walked[0][1].numpy())


def test_patches_are_normalised_before_and_behind_their_projection():
    """Against NumPy, in (channel, row, column) order of the pixels."""
    eps, rng = 1e-4, np.random.default_rng(0)
    model = make_vit(patch_norm=True, norm_eps=eps).patch_embedding
    for parameter in model.parameters():
        parameter.set_value(rng.standard_normal(parameter.shape).astype(np.float32))
    images = rng.standard_normal((2, 3, *model.image_hw)).astype(np.float32)

    def normalise(values, norm):
        values = values - values.mean(axis=-1, keepdims=True)
        values = values / np.sqrt((values**2).mean(axis=-1, keepdims=True) + eps)
        return values * norm.weight.numpy().astype(np.float64) + norm.bias.numpy()

    pixels = normalise(model.split(paddle.to_tensor(images)).numpy().astype(np.float64), model.norm_pixels)
    weight = model.patch_embedding.weight.numpy().reshape(model.patch_embedding.weight.shape[0], -1)
    expected = normalise(pixels @ weight.T + model.patch_embedding.bias.numpy(), model.norm_tokens)
    assert_close(model(paddle.to_tensor(images)).numpy(), expected, 1e-5)


def test_every_norm_has_the_configured_epsilon():
    model = build_mae_pretrain(get_config(None, ["MODEL.NORM_EPS", 1e-4, "MODEL.ENCODER.DEPTH", 1]))
    classifier = make_vit(norm_eps=1e-4, global_pool=True, patch_norm=True, distill_head=True)
    layers = [*model.sublayers(), *classifier.sublayers()]
    norms = [layer for layer in layers if isinstance(layer, paddle.nn.LayerNorm)]
    assert len(norms) > 20
    assert {norm._epsilon for norm in norms} == {1e-4}
