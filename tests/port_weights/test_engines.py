"""Exports to PaddleDetection, PaddleSeg and detectron2; the first two are loaded into the libraries' own classes."""

import ast
import importlib.util
import subprocess
import sys

import numpy as np
import paddle
import pytest
import yaml

import runtime
from config import get_config
from errors import UserError
from methods import load_models
from port_weights import port
from port_weights.engines import ENGINES
from runtime import ROOT
from storage import weight_files
from tests.conftest import MODES, TINY, assert_close
from transformer import build_transformer

# Another order of sums in float32 through a few blocks, and a layer scale that is part of the matrices.
RELATIVE = 1e-4
SIZES = ["DATA.IMAGE_SIZE", 64, "MODEL.PATCH_SIZE", 16, "MODEL.ENCODER.DEPTH", 4, "MODEL.ENCODER.EMBED_DIM", 32]
KINDS = {
    "small": SIZES,
    "no biases": [*SIZES, "MODEL.QKV_BIAS", False],
    "with a last norm": [*SIZES, "MODEL.GLOBAL_POOL", False],
    "layer scale": [*SIZES, "MODEL.ENCODER.LAYER_SCALE", 0.5],
    "base wide": [*SIZES[:-2], "MODEL.ENCODER.EMBED_DIM", 768, "MODEL.ENCODER.NUM_HEADS", 12],
}


def make_weights(folder, kind):
    """Write random weights of a classifier, and return their file."""
    config = get_config(None, [*TINY, *MODES["finetune"], *KINDS[kind]])
    paddle.seed(0)
    model = build_transformer(config)
    for parameter in model.parameters():
        parameter.set_value(parameter + 0.02 * paddle.randn(parameter.shape))
    paddle.save(model.state_dict(), str(folder / "ours.pdparams"))
    (folder / "ours.yaml").write_text(config.dump())
    return folder / "ours.pdparams"


@pytest.mark.parametrize("library", ["paddledetection", "paddleseg"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_librarys_own_class_has_our_features(tmp_path, library, kind):
    package = {"paddledetection": "ppdet", "paddleseg": "paddleseg"}[library]
    if importlib.util.find_spec(package) is None:
        pytest.skip("requirements/engines.txt is not installed")
    weights = make_weights(tmp_path, kind)
    report = port(weights, tmp_path / "out", target=library, heads=(12 if kind == "base wide" else 4, None))
    pixels = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    np.save(tmp_path / "images.npy", pixels)
    config_file = next(path for path in report.written if path.suffix == ".yml")
    script = ROOT / "tests" / "helpers" / "engine_features.py"
    arguments = [library, config_file, tmp_path / "out" / "vit_backbone.pdparams", tmp_path / "images.npy"]
    command = [sys.executable, str(script), *map(str, arguments), str(tmp_path / "features.npz")]
    done = subprocess.run(command, capture_output=True, text=True, env=runtime.original_environment(), timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr

    model, _ = load_models.load_encoder(weights)
    images = paddle.to_tensor(pixels)
    outputs = [tokens for _, tokens, _ in model.encoder.walk(model.embed(images))]
    if library == "paddleseg" and kind == "with a last norm":
        outputs[-1] = model.encoder.norm(outputs[-1])
    if library == "paddledetection":
        outputs = [
            outputs[block] for block in yaml.safe_load(config_file.read_text())["VisionTransformer"]["out_indices"]
        ]
    with np.load(tmp_path / "features.npz") as found:
        assert len(found) == len(outputs) == 4
        for number, tokens in enumerate(outputs):
            expected = tokens[:, 1:].numpy()
            if library == "paddledetection":
                expected = expected.transpose(0, 2, 1).reshape(2, -1, 4, 4)
            assert_close(found[str(number)], expected, RELATIVE)


@pytest.mark.quick
def test_detectron2_has_its_names_and_a_configuration(tmp_path):
    weights = make_weights(tmp_path, "small")
    report = port(weights, tmp_path / "out", target="detectron2", heads=(4, None))
    assert sorted(path.name for path in report.written) == ["mask_rcnn_vitdet.py", "vit_backbone.pth"]
    stored = weight_files.read(tmp_path / "out" / "vit_backbone.pth").tensors
    block = [
        f"{module}.{kind}" for module in ("norm1", "norm2", "attn.qkv", "attn.proj") for kind in ("weight", "bias")
    ]
    block += [f"mlp.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")]
    expected = {f"backbone.net.blocks.{number}.{name}" for number in range(4) for name in block}
    expected |= {f"backbone.net.patch_embed.proj.{kind}" for kind in ("weight", "bias")}
    assert set(stored) == expected | {"backbone.net.pos_embed"}
    assert stored["backbone.net.pos_embed"].shape == (1, 17, 32)
    ours = paddle.load(str(weights))["encoder.layers.1.attn.qkv.weight"].numpy()
    assert np.array_equal(stored["backbone.net.blocks.1.attn.qkv.weight"].read(), ours.T)
    text = (tmp_path / "out" / "mask_rcnn_vitdet.py").read_text()
    ast.parse(text)
    assert "model.backbone.net.window_block_indexes = []" in text  # 4 blocks: all are global
    assert "model.backbone.net.num_heads = 4" in text
    assert "num_layers=4, lr_decay_rate=1.0" in text


@pytest.mark.quick
@pytest.mark.parametrize("library", ENGINES)
def test_a_configuration_that_was_changed_stays(tmp_path, library):
    weights = make_weights(tmp_path, "small")
    for _ in range(2):
        report = port(weights, tmp_path / "out", target=library, heads=(4, None))
    config_file = next(path for path in report.written if path.suffix in (".yml", ".py"))
    config_file.write_text("mine")
    with pytest.raises(UserError, match="exists, and is another one"):
        port(weights, tmp_path / "out", target=library, heads=(4, None))
    assert config_file.read_text() == "mine"


@pytest.mark.quick
@pytest.mark.parametrize("library", ENGINES)
@pytest.mark.parametrize(
    ("opts", "said"),
    [
        (
            ["MODEL.ENCODER.RELATIVE_POSITION_BIAS", True],
            "its ViT has no relative position biases of this kind; finetune without",
        ),
        (["MODEL.ENCODER.DEPTH", 3], "its pyramid reads four blocks, and this encoder has 3"),
        (["DATA.IMAGE_SIZE", [32, 64]], "position tables of square grids only, and this one is 2x4"),
        (["DATA.IMAGE_CHANNELS", 1, "DATA.IMAGENET_MEAN", [0.5], "DATA.IMAGENET_STD", [0.5]], "reads RGB images"),
    ],
)
def test_what_a_library_cannot_represent_is_refused(tmp_path, library, opts, said, monkeypatch):
    monkeypatch.setitem(KINDS, "odd", [*SIZES, *opts])
    weights = make_weights(tmp_path, "odd")
    with pytest.raises(UserError, match=said):
        port(weights, tmp_path / "out", target=library, heads=(4, None), grid_hw=(2, 4) if "square" in said else None)
    with pytest.raises(UserError, match=f"for {library}, name a directory"):
        port(weights, tmp_path / "out.pdparams", target=library)
