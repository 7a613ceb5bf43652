"""Weights by name: the table, and the way from an address to a model."""

import os

import numpy as np
import paddle
import pytest
import yaml

import zoo
from errors import UserError
from mae import MAEPretrain
from port_weights import towers
from storage import cache, torch_file
from storage.architecture import Architecture, Tower
from storage.stored_tensor import StoredTensor
from tests.helpers.malformed_weights import torch_bytes
from tests.helpers.sentences import make_tokenizer
from tests.helpers.weights_by_hand import official_arrays
from transformer import VisionTransformer
from zoo import __main__ as zoo_main
from zoo import download, entries
from zoo.__main__ import main

pytestmark = pytest.mark.quick
SMALL = {"dim": 16, "depth": 2, "patch": 4, "num_patches": 4}


@pytest.fixture
def small_zoo(tmp_path, monkeypatch):
    """Return a mirror directory, and let `zoo` have three small entries whose files are there."""
    mirror = tmp_path / "mirror"
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv(download.MIRROR_VARIABLE, mirror.as_uri())
    content = yaml.safe_load((entries._TABLE).read_text())
    content["models"]["vit_test"] = [16, 2, 4, 4]
    common = {"source": "official MAE", "image": 8, "verified": "not yet"}
    content["weights"] = {
        "vit_test.mae": common | {"url": "https://example.org/a/w.pth", "content": "encoder"},
        "vit_test.ft": common | {"url": "https://example.org/b/w.pth", "content": "classifier", "classes": 7},
        "vit_test.rpe": common
        | {"url": "https://example.org/c/w.pth", "content": "encoder", "unsupported": "a reason"},
    }
    for folder, arrays in (("a", official_arrays(**SMALL)), ("b", official_arrays(**SMALL, num_classes=7))):
        (mirror / "example.org" / folder).mkdir(parents=True)
        (mirror / "example.org" / folder / "w.pth").write_bytes(torch_bytes(arrays))
    content["texts"]["text_test"] = [12, 1, 3]
    content["weights"]["vit_test.clip"] = common | {"url": "https://example.org/e/clip.pt", "content": "clip"}
    content["weights"]["vit_test.clip"] |= {"source": "MAWS", "text": "text_test", "embed": 6}
    content["files"] = {"xlmr_tokenizer": {"url": "https://example.org/d/t.model", "about": "a file", "licence": "MIT"}}
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(entries, "_TABLE", tmp_path / "zoo.yaml")
    zoo.table.cache_clear()
    entries.companions.cache_clear()
    yield mirror
    zoo.table.cache_clear()
    entries.companions.cache_clear()


def test_the_table_is_whole():
    table = zoo.table()
    assert len(table) == 75
    addresses = [entry.url for entry in table.values()]
    assert len(set(addresses)) == len(addresses)
    for name, entry in table.items():
        assert entry.architecture.shapes(), name
        assert entry.content in entry.architecture.content.lower()
        assert entry.url.startswith("https://")
        assert entry.file or entry.url.endswith((".pth", ".pt", ".th")), name
        if entry.content == "clip":
            continue
        assert (entry.architecture.norm_pix_loss is None) == (entry.content != "autoencoder"), name
    by_source = {entry.source for entry in table.values()}
    assert by_source == {"official MAE", "PaddleViT", "MAWS", "MAE-CT", "MAE-Lite", "CrossMAE"}
    checked = {name: entry.md5 for name, entry in table.items() if entry.md5}
    assert checked == {
        "vit_base_patch16.mae": "8cad7c",
        "vit_large_patch16.mae": "b8b06e",
        "vit_huge_patch14.mae": "9bdbb0",
        "vit_base_patch16.mae_finetuned": "1b25e9",
        "vit_large_patch16.mae_finetuned": "51f550",
        "vit_huge_patch14.mae_finetuned": "2541f2",
    }
    assert table["vit_tiny_patch16.mae_lite"].architecture == Architecture(
        Tower(192, 12, 12), patch_px=16, grid_hw=(14, 14), decoder=Tower(96, 1, 3), norm_pix_loss=True
    )
    assert table["vit_6.5b_patch14.maws_finetuned"].architecture.shapes()["encoder_position_embedding"] == (
        1,
        1370,
        4096,
    )


def test_pretrained_models_have_the_weights(small_zoo):
    model = zoo.build_model("vit_test", "mae")
    assert isinstance(model, VisionTransformer)
    assert not model.training
    weight = official_arrays(**SMALL)["blocks.1.attn.proj.weight"]
    assert np.array_equal(model.state_dict()["encoder.layers.1.attn.out.weight"].numpy(), weight.T)
    features = model(paddle.ones([2, 3, 8, 8]))
    assert features.shape == [2, 16]  # an encoder alone gives features
    assert zoo.build_model("vit_test", "ft")(paddle.ones([2, 3, 8, 8])).shape == [2, 7]
    assert zoo.build_model("vit_test", "mae", pretrained=False)(paddle.ones([2, 3, 8, 8])).shape == [2, 16]


def test_other_classes_and_sizes(small_zoo):
    for family in ("mae", "ft"):
        model = zoo.build_model("vit_test", family, num_classes=3, image_size=(12, 8))
        assert model(paddle.ones([2, 3, 12, 8])).shape == [2, 3]
        assert model.encoder_position_embedding.shape == [1, 7, 16]
    weight = official_arrays(**SMALL, num_classes=7)["norm.weight"]
    assert np.array_equal(model.encoder.norm.weight.numpy(), weight)


def test_autoencoders_have_no_classes():
    with pytest.raises(UserError, match="an autoencoder, which has no classifier"):
        zoo.build_model("vit_tiny_patch16", "mae_lite", num_classes=3)
    assert isinstance(zoo.build_model("vit_tiny_patch16", "mae_lite", pretrained=False), MAEPretrain)


def test_a_file_that_is_not_what_the_table_says_is_refused(small_zoo):
    (small_zoo / "example.org" / "a" / "w.pth").write_bytes(
        torch_bytes(official_arrays(dim=16, depth=1, num_patches=4))
    )
    with pytest.raises(UserError, match="16 wide, 1 deep.*expected encoder only.*16 wide, 2 deep"):
        zoo.fetch("vit_test.mae")
    with pytest.raises(UserError, match="cannot be used here: a reason"):
        zoo.fetch("vit_test.rpe")


def test_a_wrong_file_by_hand_does_not_stay(small_zoo, tmp_path, capsys):
    right, wrong = tmp_path / "right.pth", tmp_path / "wrong.pth"
    right.write_bytes(torch_bytes(official_arrays(**SMALL)))
    wrong.write_bytes(torch_bytes(official_arrays(**SMALL, num_classes=7)))
    assert main(["fetch", "vit_test.mae", "-from", str(wrong)]) == 1
    assert main(["fetch", "vit_test.mae", "-from", str(right)]) == 0
    assert main(["fetch", "vit_test.mae", "-from", str(tmp_path / "none")]) == 1  # not from the cache
    other = tmp_path / "other.pth"
    other.write_bytes(torch_bytes({name: array + 1 for name, array in official_arrays(**SMALL).items()}))
    assert main(["fetch", "vit_test.mae", "-from", str(other)]) == 1
    assert "when first used" in capsys.readouterr().err
    assert main(["fetch", "vit_test.mae"]) == 0
    assert "taken for vit_test.mae on trust" not in capsys.readouterr().err  # it was said the first time


def write_clip(mirror, tmp_path) -> dict[str, np.ndarray]:
    """Put a CLIP file and a tokenizer on the mirror, and return the model's arrays."""
    rng = np.random.default_rng(0)
    shapes = zoo.find("vit_test.clip").architecture.shapes()
    arrays = {name: rng.standard_normal(shape).astype(np.float32) * 0.1 for name, shape in shapes.items()}
    for folder in ("d", "e"):
        (mirror / "example.org" / folder).mkdir(exist_ok=True)
    theirs = towers.to_maws({name: StoredTensor.of(np.asarray(array)) for name, array in arrays.items()}, "old")
    torch_file.write(mirror / "example.org" / "e" / "clip.pt", theirs)
    make_tokenizer(mirror / "example.org" / "d" / "t.model")
    return arrays


def test_clip_models_come_whole_and_with_their_tokenizer(small_zoo, tmp_path):
    arrays = write_clip(small_zoo, tmp_path)
    clip = zoo.build_model("vit_test", "clip")
    assert all(np.array_equal(value.numpy(), arrays[name]) for name, value in clip.state_dict().items())
    assert clip.classify(paddle.ones([1, 3, 8, 8]), ["a cat", "un chien"]).shape == [1, 2]
    random = zoo.build_model("vit_test", "clip", pretrained=False)
    assert random.encode_images(paddle.ones([1, 3, 8, 8])).shape == [1, 6]
    assert zoo.fetch("xlmr_tokenizer").name == "t.model"
    with pytest.raises(UserError, match="is a CLIP model"):
        zoo.build_model("vit_test", "clip", num_classes=3)


def test_a_tokenizer_that_is_none_does_not_stay(small_zoo, tmp_path, capsys):
    (tmp_path / "wrong.model").write_text("no model")
    assert main(["fetch", "xlmr_tokenizer", "-from", str(tmp_path / "wrong.model")]) == 1
    assert "cannot be read as a sentencepiece model" in capsys.readouterr().err
    right = make_tokenizer(tmp_path / "right.model")
    assert main(["fetch", "xlmr_tokenizer", "-from", str(right)]) == 0
    assert main(["info", "xlmr_tokenizer"]) == 0
    assert "(there)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "family", "ours"),
    [
        ("vit_b16", "mae", "vit_base_patch16.maws_mae"),
        ("vit_2b14", "mae_in1k", "vit_2b_patch14.maws_mae_in1k"),
        ("vit_l16", "mae_in21k", "vit_large_patch16.maws_mae_in21k"),
        ("vit_6.5b14", "maws", "vit_6.5b_patch14.maws"),
        ("vit_h14_ft_in1k", "maws", "vit_huge_patch14.maws_finetuned"),
        ("vit_b16_xlmr_b", "maws_clip", "vit_base_patch16.maws_clip"),
        ("vit_2b14_xlmr_l", "maws_clip", "vit_2b_patch14.maws_clip"),
    ],
)
def test_names_of_maws_are_known(model, family, ours):
    assert zoo.find(model, family).name == ours


def test_names_are_found_in_several_ways():
    assert zoo.find("mae_pretrain_vit_base").name == "vit_base_patch16.mae"
    assert zoo.find("mae_tiny_400e.pth.tar").name == "vit_tiny_patch16.mae_lite"
    with pytest.raises(UserError, match="did you mean vit_base_patch16.mae?"):
        zoo.find("vit_base_patch16.mea")
    small = zoo.build_model("vit_tiny_patch16.mae_lite_moco_v3", pretrained=False, image_size=32)
    assert small.patch_embedding.grid_hw == (2, 2)


def test_command_line(small_zoo, capsys, tmp_path):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "MILLION", "CONTENT", "SOURCE", "LICENCE", "VERIFIED", "PUBLISHED"]
    assert len(lines) == 6
    assert main(["info", "vit_test.ft"]) == 0
    assert "CC-BY-NC 4.0" in capsys.readouterr().out
    assert main(["fetch", "vit_test.ft"]) == 0
    path = capsys.readouterr().out.strip()
    assert path.endswith("vit_test.ft.pdparams")
    assert main(["fetch", "vit_test.ft"]) == 0  # from the cache
    assert capsys.readouterr().out.strip() == path
    assert main(["info", "vit_test.nothing"]) == 1
    assert "vit_test has clip, ft, mae, rpe" in capsys.readouterr().err
    assert main(["list", "nothing"]) == 1
    capsys.readouterr()
    (small_zoo / "example.org" / "a" / "w.pth").rename(tmp_path / "by hand.pth")
    assert main(["fetch", "vit_test.mae"]) == 1
    assert "-from FILE" in capsys.readouterr().err
    assert main(["fetch", "vit_test.mae", "-from", str(tmp_path / "by hand.pth")]) == 0


def test_the_zoo_needs_no_home_to_describe(monkeypatch, capsys):
    for name in ("HOME", "XDG_CACHE_HOME", "MAE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert zoo_main.main(["info", "vit_base_patch16.mae"]) == 0
    assert "cache" in capsys.readouterr().out
