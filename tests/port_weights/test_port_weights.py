"""Porting as a user meets it: the command, what it writes, and the main scripts that read it."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import paddle
import pytest
import yaml

import checkpoint
import main_multi_gpu_finetune
import main_multi_gpu_linearprobe
import main_multi_gpu_pretrain
from config import get_config
from errors import UserError
from mae import build_mae_pretrain
from port_weights.__main__ import main
from port_weights.porting import port
from storage import weight_files
from storage.architecture import Tower
from storage.stored_tensor import StoredTensor
from tests.helpers.malformed_weights import safetensors_bytes, torch_bytes
from tests.helpers.weights_by_hand import official_arrays
from tools import visualise
from transformer import build_transformer

pytestmark = pytest.mark.quick
from runtime import ROOT


@pytest.fixture
def ported(tmp_path):
    """Return a function: classes (0: an encoder alone) to a ported file for 16-pixel images."""

    def make(num_classes=0):
        source, result = tmp_path / f"{num_classes}.pth", tmp_path / f"{num_classes}.pdparams"
        source.write_bytes(torch_bytes(official_arrays(dim=32, num_patches=16, num_classes=num_classes)))
        assert main([str(source), str(result), "-heads", "4"]) == 0
        return result

    return make


def test_the_command_reports_and_writes_a_config(ported, capsys, tmp_path):
    path = ported(7)
    report = capsys.readouterr().out
    for line in (
        "official MAE",
        "classifier: 7 classes, reads the class token",
        "32 wide, 2 deep, 4 heads, MLP ratio 4; 4-pixel patches, 3 channels, grid 4x4 (16x16 pixels)",
        "as -heads says",
        "mapped        32 tensors",
        "dropped       nothing",
        "missing       nothing",
        f"wrote {path}",
        f"wrote {path.with_suffix('.yaml')}",
    ):
        assert line in report
    config = get_config(path.with_suffix(".yaml"))
    model = build_transformer(config)
    assert len(checkpoint.load_weights(model, path).loaded) == 32
    assert weight_files.read(path).architecture.encoder == Tower(32, 2, 4)
    missing, unexpected = model.set_state_dict(paddle.load(str(path)))  # plain Paddle reads it, too
    assert not missing
    assert not unexpected
    assert path.with_suffix(".yaml").read_text().startswith("# Builds the model of 7.pdparams, classifier: 7 classes")


def test_errors_are_one_line_and_exit_code_1(tmp_path, capsys):
    (tmp_path / "a.pth").write_bytes(torch_bytes(official_arrays()))
    source = str(tmp_path / "a.pth")

    def error(*arguments):
        assert main(list(map(str, arguments))) == 1
        captured = capsys.readouterr()
        assert not captured.out
        assert captured.err.count("\n") == 1
        return captured.err

    out = tmp_path / "b.pdparams"
    assert "number of attention heads is not visible in the shapes" in error(source, out)
    assert "3 heads do not divide the encoder's width of 16" in error(source, out, "-heads", "3")
    assert "expected 1 or 2 integers" in error(source, out, "-heads", "twelve")
    assert "expected 2 integers" in error(source, out, "-grid", "4")
    assert "no such file" in error(tmp_path / "none", out)
    assert "name a file that ends in .pdparams, .safetensors" in error(source, tmp_path / "b.pth", "-heads", "4")
    assert "for official weights, name a file that ends in .pth" in error(source, out, "-to", "official")
    assert "for transformers, name a directory" in error(source, source, "-to", "transformers")
    (tmp_path / "b.yaml").write_text("DATA:\n  IMAGE_SIZE: 8\n")
    assert "exists, and is not from here" in error(source, out, "-heads", "4")
    assert not out.exists()
    assert "is the source itself" in error(source, source, "-to", "official", "-heads", "4")
    with pytest.raises(SystemExit):
        main(["-h"])


def test_small_models_need_their_heads(tmp_path):
    """Tiny and small have 12 heads at MAE-Lite and 3 or 6 elsewhere: no silent guess."""
    (tmp_path / "a.pth").write_bytes(torch_bytes(official_arrays(dim=192)))
    with pytest.raises(
        UserError, match="MAE-Lite's ViT-Tiny has 12 heads, timm's and DeiT's have 3; say it with -heads"
    ):
        port(tmp_path / "a.pth", tmp_path / "b.pdparams")
    arrays = {f"module.model.{name}": array for name, array in official_arrays(dim=192).items()}
    (tmp_path / "a.pth").write_bytes(torch_bytes(arrays))
    report = port(tmp_path / "a.pth", tmp_path / "b.pdparams")
    assert (report.architecture.encoder.heads, report.heads_from) == (12, "as MAE-Lite's models have")


def test_what_config_files_beside_the_weights_tell(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(safetensors_bytes(official_arrays(dim=192)))
    pretrained = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "crop_pct": 0.9}
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(config))
    report = port(folder, tmp_path / "b.pdparams")
    assert (report.architecture.encoder.heads, report.heads_from) == (3, "as timm's model of that name has")
    data = get_config(tmp_path / "b.yaml").DATA
    assert (data.IMAGENET_MEAN, data.IMAGENET_STD, data.CROP_PCT) == ([0.5] * 3, [0.5] * 3, 0.9)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: cannot be read as a JSON file"):
        port(folder, tmp_path / "b.pdparams")


def test_another_entry_of_the_file(tmp_path):
    model, average = official_arrays(), {name: array + 1 for name, array in official_arrays().items()}
    (tmp_path / "a.pd").write_bytes(pickle.dumps({"model": model, "model_ema": average}))
    with pytest.raises(UserError, match="has no entry 'model_emb' with weights; its entries: model, model_ema"):
        port(tmp_path / "a.pd", tmp_path / "b.pdparams", heads=(4, None), entry="model_emb")
    report = port(tmp_path / "a.pd", tmp_path / "b.pdparams", heads=(4, None), entry="model_ema")
    assert report.dropped == {"model": "beside the weights; -entry NAME takes them from there instead"}
    weights = checkpoint.read_weights(tmp_path / "b.pdparams")
    assert np.array_equal(weights["encoder.norm.weight"], average["norm.weight"])


def test_a_grid_that_is_not_square(tmp_path):
    arrays = official_arrays(num_patches=6)
    (tmp_path / "a.pth").write_bytes(torch_bytes(arrays))
    with pytest.raises(UserError, match="6 patches has no square grid"):
        port(tmp_path / "a.pth", tmp_path / "b.pdparams", heads=(4, None))
    report = port(tmp_path / "a.pth", tmp_path / "b.pdparams", heads=(4, None), grid_hw=(2, 3))
    assert report.architecture.image_hw == (8, 12)
    model = build_transformer(get_config(tmp_path / "b.yaml", ["DATA.IMAGE_SIZE", [16, 12]]))
    assert checkpoint.load_weights(model, tmp_path / "b").resized == ["encoder_position_embedding 2x3 -> 4x3"]
    with pytest.raises(UserError, match="-grid 3,4 does not fit pos_embed, which has 7 rows"):
        port(tmp_path / "a.pth", tmp_path / "b.pdparams", heads=(4, None), grid_hw=(3, 4))
    without_class_row = arrays | {"pos_embed": arrays["pos_embed"][:, 1:]}
    (tmp_path / "a.pth").write_bytes(torch_bytes(without_class_row))
    report = port(tmp_path / "a.pth", tmp_path / "b.pdparams", heads=(4, None), grid_hw=(2, 3))
    assert report.family == "MAE-CT, or timm without a position for the class token"
    assert not weight_files.read(tmp_path / "b.pdparams").tensors["encoder_position_embedding"].read()[0, 0].any()


def test_a_square_number_of_rows_is_not_guessed_at(tmp_path):
    """3x5 patches and a class row make 16 rows, and so do 4x4 patches without one."""
    (tmp_path / "a.pth").write_bytes(torch_bytes(official_arrays(num_patches=15)))
    with pytest.raises(
        UserError, match="16 rows: 4x4 patches without a row for the class token, or 15 patches with one"
    ):
        port(tmp_path / "a.pth", tmp_path / "b.pdparams", heads=(4, None))
    report = port(tmp_path / "a.pth", tmp_path / "b.pdparams", heads=(4, None), grid_hw=(3, 5))
    assert report.architecture.grid_hw == (3, 5)
    (tmp_path / "a.pth").write_bytes(torch_bytes(official_arrays()))
    report = port(tmp_path / "a.pth", tmp_path / "b.pdparams", heads=(4, None))
    assert "the grid 2x2 is taken as square" in str(report)


def test_other_channels_keep_a_config_that_builds(tmp_path):
    arrays = official_arrays()
    arrays["patch_embed.proj.weight"] = arrays["patch_embed.proj.weight"][:, :1].copy()
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes(arrays))
    port(tmp_path / "a.safetensors", tmp_path / "b.safetensors", heads=(4, None))
    model = build_transformer(get_config(tmp_path / "b.yaml"))
    checkpoint.load_weights(model, tmp_path / "b.safetensors")
    assert model(paddle.ones([1, 1, 8, 8])).shape == [1, 16]
    assert "check IMAGENET_MEAN" in (tmp_path / "b.yaml").read_text()


def test_runs_of_this_project_go_out_and_come_back(tmp_path, tiny_yaml):
    run = tmp_path / "runs" / "first"
    main_multi_gpu_pretrain.main(["-cfg", tiny_yaml("pretrain"), "-opts", "SAVE", str(run.parent), "RUN", run.name])
    assert main([str(run), str(tmp_path / "official.pth"), "-to", "official"]) == 0
    assert main([str(tmp_path / "official.pth"), str(tmp_path / "back.pdparams")]) == 0
    before, after = (checkpoint.read_weights(path) for path in (run, tmp_path / "back.pdparams"))
    assert set(before) == set(after)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    out = tmp_path / "picture.png"
    visualise.main([str(tmp_path / "back"), "-dataset", "synthetic", "-num", "2", "-out", str(out)])
    assert out.stat().st_size > 0


def test_a_config_beside_old_weights_tells_the_heads(tmp_path, tiny_config):
    """Files from before this project described its weights, and PaddleViT's, may lie beside their YAML."""
    config = tiny_config("pretrain", "MODEL.NORM_PIX_LOSS", False)
    model = build_mae_pretrain(config)
    paddle.save(model.state_dict(), str(tmp_path / "model.pdparams"))
    with pytest.raises(UserError, match="say it with -heads"):
        port(tmp_path / "model.pdparams", tmp_path / "b.pdparams")
    (tmp_path / "config.yaml").write_text(config.dump())
    report = port(tmp_path / "model.pdparams", tmp_path / "b.pdparams")
    assert report.heads_from == "as config.yaml beside it says; decoder as config.yaml beside it says"
    assert (report.architecture.encoder.heads, report.architecture.decoder.heads) == (4, 2)
    assert report.architecture.norm_pix_loss is False


def test_old_probes_of_paddle_lose_their_unused_norm(tmp_path, tiny_config):
    model = build_transformer(tiny_config("linearprobe"))
    tensors = {name: StoredTensor.of(value.numpy()) for name, value in model.state_dict().items()}
    for kind, value in (("weight", 1), ("bias", 0)):
        tensors[f"classifier.0.{kind}"] = StoredTensor.of(np.full(32, value, np.float32))
    weight_files.write_pdparams(tmp_path / "a.pdparams", tensors)
    report = port(tmp_path / "a.pdparams", tmp_path / "b.pdparams", heads=(4, None))
    assert report.family == "PaddleViT MAE"
    assert list(report.dropped) == ["classifier.0.weight", "classifier.0.bias"]
    assert report.architecture.probe
    tensors["classifier.0.weight"] = StoredTensor.of(np.full(32, 3, np.float32))
    weight_files.write_pdparams(tmp_path / "a.pdparams", tensors)
    with pytest.raises(UserError, match="classifier.0.weight is not 1: a batch norm with weights"):
        port(tmp_path / "a.pdparams", tmp_path / "b.pdparams", heads=(4, None))


def test_the_main_scripts_read_ported_weights(ported, tiny_yaml, tmp_path, capsys):
    encoder, classifier = ported(0), ported(4)
    common = ["-output", str(tmp_path / "runs"), "-dataset", "synthetic"]
    finetune, probe = main_multi_gpu_finetune.main, main_multi_gpu_linearprobe.main
    short = ["-opts", "TRAIN.NUM_EPOCHS", "1"]
    scores = finetune(["-cfg", tiny_yaml("finetune"), *common, "-pretrained", str(encoder), *short])
    assert scores["loss"] > 0
    probe(["-cfg", tiny_yaml("linearprobe"), *common, "-pretrained", str(encoder.with_suffix("")), *short])
    # The YAML that was written evaluates a classifier as it is.
    yaml_file = str(classifier.with_suffix(".yaml"))
    assert finetune(["-cfg", yaml_file, *common, "-pretrained", str(classifier), "-eval"])["acc5"] == 100.0
    # Another class count: an error in evaluation, a new head in finetuning.
    other = ["-opts", "MODEL.NUM_CLASSES", "3"]
    with pytest.raises(UserError, match="classifier.weight .32, 4. in the file.*set MODEL.NUM_CLASSES to the file's 4"):
        finetune(["-cfg", yaml_file, *common, "-pretrained", str(classifier), "-eval", *other])
    capsys.readouterr()
    arguments = ["-cfg", tiny_yaml("finetune", "MODEL.GLOBAL_POOL", False), *common, "-pretrained", str(classifier)]
    finetune([*arguments, "-opts", "TRAIN.NUM_EPOCHS", "1", "MODEL.NUM_CLASSES", "3"])
    assert "of another shape, kept as initialised: classifier.weight, classifier.bias" in capsys.readouterr().out
    # An encoder alone is not evaluated, and never becomes an autoencoder.
    with pytest.raises(UserError, match="MODEL.NUM_CLASSES=0: an encoder without a head"):
        finetune(["-cfg", str(encoder.with_suffix(".yaml")), *common, "-pretrained", str(encoder), "-eval"])
    with pytest.raises(UserError, match="the file holds no decoder"):
        main_multi_gpu_pretrain.main(["-cfg", tiny_yaml("pretrain"), *common, "-pretrained", str(encoder)])
    with pytest.raises(UserError, match="reconstructing needs the decoder"):
        visualise.main([str(encoder), "-dataset", "synthetic", "-out", str(tmp_path / "x.png")])


def test_what_a_file_says_of_itself(tmp_path, ported):
    source = weight_files.read(ported(0))
    assert source.metadata["ported_from"]["family"] == "official MAE"
    assert len(source.metadata["ported_from"]["sha256"]) == 64
    assert json.dumps(source.metadata)
    good = source.metadata["architecture"]
    for change, message in (
        ({"encoder": "x"}, "its own description is damaged"),
        ({"encoder": [32, 2, "4"]}, "its own description is damaged"),
        ({"encoder": None}, "its own description is damaged"),
        ({"grid_hw": ["a", "b"]}, "its own description is damaged"),
        ({"grid_hw": [4, 4, 4]}, "its own description is damaged"),
        ({"qkv_bias": "yes"}, "its own description is damaged"),
        ({"encoder": [64, 2, 4]}, "the architecture recorded in the file does not match its tensors"),
        ({"grid_hw": [5, 5]}, "instead of"),
    ):
        damaged = {**source.metadata, "architecture": {**good, **change}}
        weight_files.write_pdparams(tmp_path / "d.pdparams", source.tensors, damaged)
        with pytest.raises(UserError, match=message):
            port(tmp_path / "d.pdparams", tmp_path / "e.pdparams")
        with pytest.raises(UserError):
            checkpoint.load_weights(build_transformer(get_config(tmp_path / "0.yaml")), tmp_path / "d.pdparams")
    assert not (tmp_path / "e.pdparams").exists()
    assert yaml.safe_load((tmp_path / "0.yaml").read_text())["MODEL"]["NUM_CLASSES"] == 0


@pytest.mark.parametrize(
    ("target", "result", "most"),
    [
        ("paddle", "b.pdparams", 0.5),
        ("official", "b.pth", 0.5),
        ("paddle", "b.safetensors", 1.5),
        ("transformers", "b", 2),
    ],
)
def test_memory(tmp_path, target, result, most):
    """Porting keeps a tensor or two in memory; the safetensors library wants all of them at once."""
    peaks = []
    for depth, name in ((1, "small"), (12, "large")):
        source = tmp_path / f"{name}.pth"
        source.write_bytes(torch_bytes(official_arrays(dim=64 if name == "small" else 512, depth=depth)))
        code = (
            "from port_weights import port; "
            f"port({str(source)!r}, {str(tmp_path / name / result)!r}, target={target!r}, heads=(4, None)); "
            "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
        )
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
        peaks.append(int(output.stdout) * 1024)
    assert peaks[1] - peaks[0] <= most * source.stat().st_size
