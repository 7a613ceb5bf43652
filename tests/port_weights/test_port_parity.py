"""Ported weights give the outputs of the implementation that they came from (transformers, in torch)."""

import argparse
import json
import pickle

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
from transformer import build_transformer

torch = pytest.importorskip("torch", reason="requirements/torch.txt is not installed")
pytest.importorskip("transformers", reason="requirements/torch.txt is not installed")

from safetensors.torch import load_file, save_file
from transformers import ViTForImageClassification, ViTMAEForPreTraining, ViTModel

from tests.helpers import foreign_weights as foreign

FLOAT32_RELATIVE = 1e-5  # two float32 implementations that add in different orders


def build(weights):
    """Build the model of a ported file from the YAML beside it, and load it without any exception to the names."""
    config = get_config(weights.with_suffix(".yaml"))
    model = (build_mae_pretrain if config.MODEL.TYPE == "PRETRAIN" else build_transformer)(config)
    report = checkpoint.load_weights(model, weights)
    assert not report.missing + report.unexpected + report.mismatched + report.resized
    model.eval()
    return model


def compare(model, outputs) -> None:
    images = paddle.to_tensor(foreign.images().numpy())
    with paddle.no_grad():
        if "pred" in outputs:
            loss, pred, _ = model(images, noise=paddle.to_tensor(foreign.noise().numpy()))
            assert_close(pred.numpy(), outputs["pred"], FLOAT32_RELATIVE)
            assert_close(loss.numpy(), outputs["loss"], FLOAT32_RELATIVE)
        else:
            assert_close(model.forward_features(images).numpy(), outputs["features"], FLOAT32_RELATIVE)
            wanted = outputs.get("logits", outputs["features"])
            assert_close(model(images).numpy(), wanted, FLOAT32_RELATIVE)


@pytest.mark.parametrize("name", foreign.CASES)
def test_ported_models_compute_the_same(tmp_path, name):
    case = foreign.CASES[name]()
    torch.save(case.content, tmp_path / "source.pth")
    report = port(tmp_path / "source.pth", tmp_path / "ported.pdparams", heads=case.heads)
    assert report.family == case.family
    assert report.mapped == case.num_mapped
    tensors = case.content.get("model") or case.content.get("state_dict") or case.content
    beside = len(case.content) - 1 if tensors is not case.content else 0
    assert report.mapped + len(report.dropped) == len(tensors) + beside  # every tensor and entry is accounted for
    compare(build(tmp_path / "ported.pdparams"), case.outputs)


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "pt", "th"])
def test_every_file_format_is_read(tmp_path, suffix):
    case = foreign.timm_classifier()
    source = tmp_path / f"source.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(case.content, source)
    for result in ("ported.pdparams", "ported.safetensors"):
        port(source, tmp_path / result, heads=case.heads)
        compare(build(tmp_path / result), case.outputs)


def test_passl_keeps_official_names_in_paddles_layout(tmp_path):
    case = foreign.official_finetuned()
    arrays = {name: tensor.numpy() for name, tensor in case.content["model"].items()}
    arrays = {name: array.T.copy() if array.ndim == 2 else array for name, array in arrays.items()}
    (tmp_path / "source.pd").write_bytes(pickle.dumps({"model": arrays, "epoch": 3}))
    report = port(tmp_path / "source.pd", tmp_path / "ported.pdparams", heads=case.heads)
    assert report.family == "PASSL or PaddleClas"
    compare(build(tmp_path / "ported.pdparams"), case.outputs)


@pytest.mark.parametrize("kind", ["mae", "mae in memory", "classifier", "encoder with pooler"])
def test_transformers_models(tmp_path, kind):
    if kind.startswith("mae"):
        model = foreign.mae_model()
        outputs = foreign.official_pretrain_full().outputs
    elif kind == "classifier":
        model = foreign.randomise(
            ViTForImageClassification(foreign.ViTConfig(**foreign.SIZES, num_labels=foreign.CLASSES))
        )
        with torch.no_grad():
            features = model.vit(foreign.images()).last_hidden_state[:, 0].numpy()
            outputs = {"features": features, "logits": model(foreign.images()).logits.numpy()}
    else:
        model = foreign.randomise(ViTModel(foreign.ViTConfig(**foreign.SIZES)))
        outputs = {"features": foreign.class_features(model).numpy()}
    source, heads = tmp_path / "source", (None, None)
    if kind == "mae in memory":  # version 5 has other names in memory than in files
        source, heads = tmp_path / "source.pth", (foreign.HEADS, foreign.DECODER_HEADS)
        torch.save(model.state_dict(), source)
    else:
        model.save_pretrained(source)
    report = port(source, tmp_path / "ported.pdparams", heads=heads)
    assert report.family == ("transformers ViTMAE" if kind.startswith("mae") else "transformers ViT")
    assert report.heads_from.startswith("as -heads says" if kind == "mae in memory" else "as config.json says")
    assert list(report.dropped) == (["pooler.dense.bias", "pooler.dense.weight"] if "pooler" in kind else [])
    compare(build(tmp_path / "ported.pdparams"), outputs)


def test_a_config_that_computes_otherwise_is_refused(tmp_path):
    foreign.mae_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in (("layer_norm_eps", 0.1), ("hidden_act", "relu")):
        (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(UserError, match=f"config.json says {key}="):
            port(tmp_path, tmp_path / "ported.pdparams")


@pytest.mark.parametrize("eps", [1e-12, 1e-4])
def test_the_epsilon_of_the_norms_goes_both_ways(tmp_path, eps):
    model = foreign.mae_model()
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = eps
    model.config.layer_norm_eps = eps
    model.save_pretrained(tmp_path / "theirs")
    assert port(tmp_path / "theirs", tmp_path / "ported.pdparams").architecture.norm_eps == eps
    with torch.no_grad():
        found = model(foreign.images(), noise=foreign.noise())
    compare(build(tmp_path / "ported.pdparams"), {"pred": found.logits.numpy(), "loss": found.loss.numpy()})
    port(tmp_path / "ported.pdparams", tmp_path / "back", target="transformers")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["layer_norm_eps"] == eps


def test_a_grid_in_config_json(tmp_path):
    model = foreign.vit_model(image_size=(64, 16))
    model.save_pretrained(tmp_path)
    report = port(tmp_path, tmp_path / "ported.pdparams")
    assert report.architecture.grid_hw == (8, 2)
    images = torch.randn(2, 3, 64, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(images).last_hidden_state[:, 0]
    ours = build(tmp_path / "ported.pdparams")
    assert_close(ours(paddle.to_tensor(images.numpy())).numpy(), wanted, FLOAT32_RELATIVE)
    with pytest.raises(UserError, match="config.json says a grid of 8x2, -grid another one"):
        port(tmp_path, tmp_path / "ported.pdparams", grid_hw=(4, 4))


def test_arguments_of_the_official_code_tell_the_target(tmp_path):
    for norm_pix_loss in (False, True):
        content = {**foreign.official_pretrain_full().content, "args": argparse.Namespace(norm_pix_loss=norm_pix_loss)}
        torch.save(content, tmp_path / "a.pth")
        report = port(tmp_path / "a.pth", tmp_path / "b.pdparams", heads=(4, 2))
        assert report.architecture.norm_pix_loss is norm_pix_loss
        assert get_config(tmp_path / "b.yaml").MODEL.NORM_PIX_LOSS is norm_pix_loss


def test_the_hub_names_decoder_layers_in_another_way(tmp_path):
    foreign.mae_model().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    renamed = {
        name.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): t for name, t in state.items()
    }
    assert set(renamed) != set(state)  # transformers 5.23 writes the former, the hub has the latter
    save_file(renamed, tmp_path / "model.safetensors")
    port(tmp_path, tmp_path / "ported.pdparams")
    compare(build(tmp_path / "ported.pdparams"), foreign.official_pretrain_full().outputs)


@pytest.mark.parametrize(
    "name", ["official_pretrain_full", "official_pretrain_encoder", "official_finetuned", "official_linear_probe"]
)
def test_round_trip_to_official_is_bit_exact(tmp_path, name):
    case = foreign.CASES[name]()
    torch.save(case.content, tmp_path / "a.pth")
    port(tmp_path / "a.pth", tmp_path / "b.pdparams", heads=case.heads)
    port(tmp_path / "b.pdparams", tmp_path / "c.pth", target="official")
    state = torch.load(tmp_path / "c.pth", weights_only=True)["model"]
    assert set(state) == set(case.content["model"])
    for key, tensor in case.content["model"].items():
        assert state[key].dtype == tensor.dtype
        assert state[key].shape == tensor.shape
        assert torch.equal(state[key], tensor), key
    # And back again, without -heads: the file says them.
    port(tmp_path / "c.pth", tmp_path / "d.pdparams")
    first, second = (weight_files.read(tmp_path / file).tensors for file in ("b.pdparams", "d.pdparams"))
    assert all(np.array_equal(first[key].read(), second[key].read()) for key in first)


def test_timm_gets_the_encoder_and_the_classifier(tmp_path):
    for name, left_out in (("official_finetuned", 0), ("official_pretrain_full", 32)):
        case = foreign.CASES[name]()
        torch.save(case.content, tmp_path / "a.pth")
        port(tmp_path / "a.pth", tmp_path / "b.pth", target="timm", heads=case.heads)
        state = torch.load(tmp_path / "b.pth", weights_only=True)["state_dict"]
        assert len(case.content["model"]) - len(state) == left_out
        assert all(torch.equal(tensor, case.content["model"][key]) for key, tensor in state.items())
    port(tmp_path / "a.pth", tmp_path / "b.safetensors", target="timm", heads=case.heads)
    assert set(load_file(tmp_path / "b.safetensors")) == set(state)


def test_transformers_loads_what_it_gets(tmp_path):
    full, encoder, classifier = (
        foreign.official_pretrain_full(),
        foreign.official_pretrain_encoder(),
        foreign.timm_classifier(),
    )
    for name, case in (("full", full), ("encoder", encoder), ("classifier", classifier)):
        torch.save(case.content, tmp_path / f"{name}.pth")
        port(tmp_path / f"{name}.pth", tmp_path / name, target="transformers", heads=case.heads)
    images = foreign.images()
    with torch.no_grad():
        model, info = ViTMAEForPreTraining.from_pretrained(tmp_path / "full", output_loading_info=True)
        assert not info["missing_keys"] | info["unexpected_keys"]
        assert_close(model.eval()(images, noise=foreign.noise()).logits, full.outputs["pred"], FLOAT32_RELATIVE)
        model = ViTModel.from_pretrained(tmp_path / "encoder", add_pooling_layer=False).eval()
        assert_close(model(images).last_hidden_state[:, 0], encoder.outputs["features"], FLOAT32_RELATIVE)
        model, info = ViTForImageClassification.from_pretrained(tmp_path / "classifier", output_loading_info=True)
        assert not info["missing_keys"] | info["unexpected_keys"]
        assert_close(model.eval()(images).logits, classifier.outputs["logits"], FLOAT32_RELATIVE)


def test_low_precision_becomes_float32_without_loss(tmp_path):
    case = foreign.official_pretrain_encoder()
    for dtype in (torch.float16, torch.bfloat16):
        low = {name: tensor.to(dtype) for name, tensor in case.content["model"].items()}
        for source in ("low.pth", "low.safetensors"):
            (save_file if source.endswith("s") else torch.save)(low, tmp_path / source)
            report = port(tmp_path / source, tmp_path / "ported.pdparams", heads=case.heads)
            assert "written in float32" in str(report)
            ported = weight_files.read(tmp_path / "ported.pdparams").tensors
            weight = low["blocks.0.attn.qkv.weight"].float().numpy()
            assert np.array_equal(ported["encoder.layers.0.attn.qkv.weight"].read(), weight.T)
