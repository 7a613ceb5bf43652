"""CrossMAE's files: read, and written back, by names that are written out here once more."""

import argparse

import numpy as np
import paddle
import pytest

import checkpoint
from config import get_config
from errors import UserError
from mae import build_mae_pretrain
from port_weights import port
from storage import weight_files
from tests.conftest import assert_close
from tests.layers.test_cross_decoder import make, make_inputs
from transformer import build_transformer

torch = pytest.importorskip("torch", reason="requirements/torch.txt is not installed")

GRID = (4, 4)
TOP = {
    "cls_token": "cls_token",
    "encoder_position_embedding": "pos_embed",
    "mask_token": "mask_token",
    "decoder_position_embedding": "decoder_pos_embed",
}


def official(name):
    module, _, kind = name.rpartition(".")
    parts = module.split(".")
    if name in TOP:
        return TOP[name]
    plain = {
        "patch_embedding.patch_embedding": "patch_embed.proj", "decoder_pred": "decoder_pred", "encoder.norm": "norm",
        "decoder.norm": "decoder_norm", "decoder.source_mix": "wfm.linear",
    }  # fmt: skip
    if module in plain:
        return f"{plain[module]}.{kind}"
    part, _, index, *inner = parts
    inner = ".".join(inner)
    if part == "encoder":
        inner = {"attn_norm": "norm1", "attn.out": "attn.proj", "mlp_norm": "norm2"}.get(inner, inner)
        return f"blocks.{index}.{inner}.{kind}"
    if inner == "source_norm":
        return f"dec_norms.{index}.{kind}"
    inner = {
        "attn_norm": "norm0", "attn.qkv": "self_attn.qkv", "attn.out": "self_attn.proj", "cross_norm": "norm1",
        "cross_attn.out": "cross_attn.proj", "mlp_norm": "norm2",
    }.get(inner, inner)  # fmt: skip
    return f"decoder_blocks.{index}.{inner}.{kind}"


def write(path, model, kind=argparse.Namespace, **arguments):
    state = {}
    for name, value in model.state_dict().items():
        value = torch.tensor(value.numpy())
        state[official(name)] = value.T.contiguous() if value.ndim == 2 and name.endswith(".weight") else value
    torch.save({"model": state, "args": kind(norm_pix_loss=True, **arguments), "epoch": 1}, path)
    return state


CASES = {  # kind, sources, what the file's arguments say
    "all": ("cross", (0, 1, 2, 3), {"use_input": True, "use_fm": [-1]}),
    "all, not said": ("cross", (0, 1, 2, 3), {}),
    "some": ("cross", (0, 2, 3), {"use_input": True, "use_fm": [2, 1]}),
    "without the input": ("cross", (1, 2, 3), {"use_input": False, "use_fm": [-1]}),
    "last output": ("cross", (), {}),
    "with self-attention": ("cross_self", (0, 1, 2, 3), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case, tmp_path):
    kind, sources, arguments = CASES[case]
    model = make(kind, sources, grid=GRID)
    state = write(tmp_path / "cross.pth", model, **arguments)
    report = port(tmp_path / "cross.pth", tmp_path / "cross.pdparams", heads=(4, 2))
    assert (report.family, report.architecture) == ("CrossMAE", model.architecture)
    assert report.mapped == len(state)
    assert ("no norm follows its encoder" in str(report)) == bool(sources)
    config = get_config(tmp_path / "cross.yaml")
    ported = build_mae_pretrain(config)
    checkpoint.load_weights(ported, tmp_path / "cross.pdparams")
    images, noise = map(paddle.to_tensor, make_inputs(GRID))
    for ours, theirs in zip(ported(images, noise=noise), model(images, noise=noise), strict=True):
        assert (ours == theirs).all()

    port(tmp_path / "cross.pdparams", tmp_path / "back.pth", target="official")
    back = torch.load(tmp_path / "back.pth", weights_only=False)["model"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_the_encoder_alone(tmp_path):
    """Behind a decoder with sources there is no norm; everywhere else the encoder has one of ones and zeros."""
    model = make("cross", (0, 1, 2, 3), grid=GRID)
    state = write(tmp_path / "cross.pth", model)
    port(tmp_path / "cross.pth", tmp_path / "cross.pdparams", heads=(4, 2))
    report = port(tmp_path / "cross.pdparams", tmp_path / "timm.safetensors", target="timm")
    assert "39 tensors of the cross decoder were left out: timm has none" in str(report)
    tensors = {name: tensor.read() for name, tensor in weight_files.read(tmp_path / "timm.safetensors").tensors.items()}
    assert tensors.keys() == {name for name in state if not name.startswith(("dec", "wfm", "mask"))} | {
        "norm.weight",
        "norm.bias",
    }
    assert (tensors["norm.weight"] == 1).all()
    assert not tensors["norm.bias"].any()
    directory = tmp_path / "transformers"
    port(tmp_path / "cross.pth", directory, target="transformers", heads=(4, 2))
    found = weight_files.read(directory / "model.safetensors").tensors
    assert (found["layernorm.weight"].read() == 1).all()
    assert not any(name.startswith("decoder") for name in found)

    opts = [
        "MODEL.TYPE",
        "LINEARPROBE",
        "MODEL.NUM_CLASSES",
        0,
        "MODEL.ENCODER.EMBED_DIM",
        24,
        "MODEL.ENCODER.DEPTH",
        3,
    ]
    opts += ["MODEL.ENCODER.NUM_HEADS", 4, "MODEL.PATCH_SIZE", 4, "DATA.IMAGE_SIZE", 16]
    encoder = build_transformer(get_config(None, opts))
    encoder.encoder.norm.weight.set_value(paddle.full([24], 3.0))  # whatever it had before
    report = checkpoint.load_encoder(encoder, tmp_path / "cross.pdparams")
    assert "of ones and zeros, as no norm followed the encoder in its pretraining: encoder.norm.weight" in str(report)
    images, _ = make_inputs(GRID)
    outputs = model.encoder(mae_tokens(model, images))
    centred = outputs.numpy() - outputs.numpy().mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    assert_close(encoder.forward_tokens(paddle.to_tensor(images)).numpy(), normed, 1e-5)


def mae_tokens(model, images):
    tokens = model.patch_embedding(paddle.to_tensor(images)) + model.encoder_position_embedding[:, 1:]
    token = (model.cls_token + model.encoder_position_embedding[:, :1]).expand([len(images), -1, -1])
    return paddle.concat([token, tokens], axis=1)


def test_a_decoder_whose_sources_are_not_known_is_refused(tmp_path):
    write(tmp_path / "cross.pth", make("cross", (0, 3), grid=GRID))
    with pytest.raises(UserError, match="mixes 2 outputs of an encoder of 3 blocks; the file does not tell which"):
        port(tmp_path / "cross.pth", tmp_path / "cross.pdparams", heads=(4, 2))
    write(tmp_path / "cross.pth", make("cross", (0, 3), grid=GRID), use_input=True, use_fm=[0])
    with pytest.raises(UserError, match="or the last one is not among them"):
        port(tmp_path / "cross.pth", tmp_path / "cross.pdparams", heads=(4, 2))
    assert not (tmp_path / "cross.pdparams").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_token": None}, "not a whole CrossMAE ViT"),
        ({"cls_token": None}, "cls_token"),
        ({"cls_token": torch.zeros([])}, "cls_token is .*\\[\\]"),
        ({"wfm.linear.weight": torch.zeros([])}, "source_mix.weight is of shape \\[\\]"),
        ({"decoder_blocks.1.cross_attn.kv.weight": None}, "cross_attn.kv.weight is missing"),
        ({"dec_norms.0.weight": torch.zeros(7)}, "source_norm.weight is \\[7\\]"),
        ({"decoder_blocks.0.extra": torch.zeros(7)}, "no place: decoder_blocks.0.extra"),
    ],
)
def test_damaged_files_are_named(change, message, tmp_path):
    path = tmp_path / "cross.pth"
    state = write(path, make("cross", (0, 1, 2, 3), grid=GRID)) | change
    torch.save({"model": {name: value for name, value in state.items() if value is not None}}, path)
    with pytest.raises(UserError, match=message):
        port(path, tmp_path / "cross.pdparams", heads=(4, 2))
    assert not (tmp_path / "cross.pdparams").exists()


@pytest.mark.parametrize("blocks", [[-2, 2], [-5, 2], ["a", 2], [2.5, 2]])
def test_blocks_that_cannot_be_are_refused(blocks, tmp_path):
    write(tmp_path / "cross.pth", make("cross", (0, 1, 3), grid=GRID), use_input=True, use_fm=blocks)
    with pytest.raises(UserError, match="the file does not tell which"):
        port(tmp_path / "cross.pth", tmp_path / "cross.pdparams", heads=(4, 2))
    assert not (tmp_path / "cross.pdparams").exists()


def test_arguments_as_a_dict_will_do(tmp_path):
    model = make("cross", (0, 2, 3), grid=GRID)
    write(tmp_path / "cross.pth", model, dict, use_input=True, use_fm=[2, 1])
    assert port(tmp_path / "cross.pth", tmp_path / "cross.pdparams", heads=(4, 2)).architecture == model.architecture


def test_small_has_six_heads():
    from port_weights.cross_decoder import heads
    from storage.stored_tensor import StoredTensor

    sized = {
        name: StoredTensor.of(np.zeros((1, 1, width), np.float32))
        for name, width in (("cls_token", 384), ("mask_token", 256))
    }
    assert heads(sized) == (6, 8)
