"""Exported models, run by Paddle Inference and onnxruntime, and what happens where they differ or cannot be made."""

import importlib.util
import subprocess

import numpy as np
import paddle
import pytest
import yaml
from PIL import Image

import tools.evaluate
import tools.export
import tools.features
import tools.visualise
from errors import UserError
from methods import dispatch, load_models
from methods.segmenter import label_map
from pipeline import scenes
from pipeline.transforms import eval_transform
from tests.methods.test_segmentation import SEG
from tools import export
from transformer import build_transformer

pytestmark = pytest.mark.quick
HAS_PADDLE_3 = int(paddle.__version__.split(".")[0]) >= 3


@pytest.mark.parametrize("mode", ["pretrain", "finetune", "linearprobe"])
def test_paddle_inference_gives_the_same(trained, tmp_path, mode):
    found = export.main([str(trained(mode)), "-out", str(tmp_path / "out"), "-format", "paddle"])
    assert 0 <= found["paddle"] < 1e-5
    assert (tmp_path / "out" / "config.yaml").is_file()


def test_labels_and_steps_are_those_of_the_model(tiny_config, tmp_path):
    """PaddleClas's steps, by Pillow and NumPy, give what the evaluation transform gives."""
    opts = ["DATA.IMAGE_SIZE", 32, "DATA.CROP_PCT", 0.8, "DATA.CLASS_NAMES", ["a", "b", "c", "d"]]
    config = tiny_config("finetune", *opts)
    export.write_labels(config, tmp_path)
    assert (tmp_path / "labels.txt").read_text() == "a\nb\nc\nd\n"
    about = yaml.safe_load((tmp_path / "inference.yml").read_text())
    assert about["PostProcess"] == {"Topk": {"topk": 4, "label_list": ["a", "b", "c", "d"]}}
    resize, crop, normal, _ = about["PreProcess"]["transform_ops"]
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8))
    short, side = resize["ResizeImage"]["resize_short"], crop["CropImage"]["size"]
    small = photo.resize((short * 90 // 60, short), Image.Resampling.BICUBIC)
    left, top = (small.width - side) // 2, (small.height - side) // 2
    pixels = np.asarray(small.crop((left, top, left + side, top + side)), np.float32)
    normal = normal["NormalizeImage"]
    found = (pixels * normal["scale"] - normal["mean"]) / normal["std"]
    expected = eval_transform(config)(photo, np.random.default_rng(0))
    np.testing.assert_allclose(found.transpose(2, 0, 1), expected, atol=1e-5)


@pytest.mark.skipif(not HAS_PADDLE_3, reason="paddle2onnx 2 reads models of Paddle 3")
@pytest.mark.parametrize("mode", ["finetune", "linearprobe"])
def test_onnx_gives_the_same_and_nothing_gets_installed(trained, tmp_path, monkeypatch, mode):
    pytest.importorskip("paddle2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *command, **options: started.append(command))
    found = export.main([str(trained(mode)), "-out", str(tmp_path), "-image_size", "32", "-format", "onnx"])
    assert 0 <= found["onnx"] < 1e-5
    assert not started
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert session.run(None, {"images": np.zeros((5, 3, 32, 32), np.float32)})[0].shape == (5, 4)
    assert not list(tmp_path.glob("*.pdiparams"))


def test_a_segmenter_gives_logits_of_each_pixel(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "_NUM_IMAGES", {"train": 24, "val": 3})
    options = [*SEG, "SEG.LAYERS", [1, 2], "DATA.IMAGE_SIZE", [16, 24]]
    run = tiny_run("pretrain", *options, "TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0)
    dispatch.train_or_evaluate(run)
    has_onnx = HAS_PADDLE_3 and all(importlib.util.find_spec(name) for name in ("paddle2onnx", "onnxruntime"))
    formats = ["paddle", "onnx"] if has_onnx else ["paddle"]
    found = export.main([str(run.directory), "-out", str(tmp_path / "out"), "-format", *formats])
    assert set(found) == set(formats)
    assert max(found.values()) < 1e-5
    assert (tmp_path / "out" / "labels.txt").read_text().splitlines() == scenes.CLASSES
    assert not (tmp_path / "out" / "inference.yml").exists()
    program = tmp_path / "out" / ("model.json" if HAS_PADDLE_3 else "model.pdmodel")
    export.main([str(run.directory), "-out", str(tmp_path / "out"), "-format", "paddle", "-encoder"])
    assert not {"labels.txt", "model.onnx"} & {file.name for file in (tmp_path / "out").iterdir()}, "of the segmenter"
    export.main([str(run.directory), "-out", str(tmp_path / "out"), "-format", "paddle"])
    images = np.random.default_rng(0).standard_normal((3, 3, 16, 24), dtype=np.float32)
    logits = export.run_paddle(program)(images)
    assert logits.shape == (3, 8, 16, 24)
    model, config = load_models.load_segmenter(run.directory)
    labels = [label_map(model, config, paddle.to_tensor(image), (16, 24)) for image in images]
    assert np.mean(logits.argmax(axis=1) == np.stack(labels)) > 0.999  # but for ties


def test_a_probes_batch_norm_becomes_part_of_its_linear_layer(tiny_config):
    model = build_transformer(tiny_config("linearprobe"))
    norm, head = model.classifier
    norm._mean.set_value(paddle.randn([32]))
    norm._variance.set_value(paddle.rand([32]) + 0.1)
    head.weight.set_value(paddle.randn([32, 4]))
    model.eval()
    features = paddle.randn([5, 32])
    folded = export.fold_batch_norm(model).classifier
    assert isinstance(folded, paddle.nn.Linear)
    np.testing.assert_allclose(folded(features).numpy(), model.classifier(features).numpy(), rtol=1e-4, atol=1e-5)
    assert isinstance(model.classifier, paddle.nn.Sequential)


def test_a_difference_is_an_error(trained):
    model = paddle.nn.Flatten()
    with pytest.raises(UserError, match=r"differs by a relative 1\.0e-04"):
        export.compare(model, lambda images: images.reshape(len(images), -1) * 1.0001, (1, 2, 2))
    with pytest.raises(UserError, match="gives"):
        export.compare(model, lambda images: images[:1].reshape(1, -1), (1, 2, 2))


def test_without_the_converter_the_error_says_what_to_install(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; pip install -r requirements/export\.txt"):
        export.main([str(trained("finetune")), "-out", str(tmp_path / "out"), "-format", "onnx"])


def test_an_export_needs_room(run_dir, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(tools.export.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="the disk has 1,000 bytes left"):
        tools.export.main([str(run_dir), "-out", str(tmp_path / "exported"), "-format", "paddle"])
    assert not list((tmp_path / "exported").iterdir())
