"""Scores against hand calculations, and the whole tool on generated trees of the benchmarks' layouts."""

import csv
import json

import numpy as np
import paddle
import pytest
from PIL import Image

from errors import UserError
from measures import robustness
from methods import dispatch
from tools import evaluate

pytestmark = pytest.mark.quick


def write_image(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(path)


@pytest.fixture
def imagenet_run(tiny_run):
    """Return a run of the tiny model with ImageNet's classes, whose logits depend on the label alone: the smaller, the
    higher; so among some classes it always says the first one."""
    run = tiny_run("finetune", "MODEL.NUM_CLASSES", 1000, "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    dispatch.train_or_evaluate(run)
    weights = run.directory / "latest" / "model.pdparams"
    state = paddle.load(str(weights))
    state["classifier.weight"] = paddle.zeros(state["classifier.weight"].shape)
    state["classifier.bias"] = paddle.arange(1000, 0, -1).astype("float32") / 100
    folder = run.directory.parent / "imagenet"
    folder.mkdir()
    paddle.save(state, str(folder / "model.pdparams"))
    (folder / "model.yaml").write_text(run.config.dump())
    return folder / "model.pdparams"


@pytest.mark.parametrize("outer", ["", "imagenet-a"])
def test_the_logits_of_the_benchmarks_own_classes_are_compared(imagenet_run, tmp_path, outer):
    """Classes 6, 11 and 13 exist with 1, 2 and 1 images: the model says 6 among them, and 0 among all."""
    wnids = [wnid for wnid, _ in robustness.imagenet_classes()]
    for label, count in ((6, 1), (11, 2), (13, 1)):
        for index in range(count):
            write_image(tmp_path / "data" / outer / wnids[label] / f"{index}.png", 10 * label)
    flags = [str(imagenet_run), "-data_path", str(tmp_path / "data"), "-out", str(tmp_path / "out")]
    scores = evaluate.main([*flags, "-benchmark", "a"])
    assert scores["acc1"] == 25.0
    assert scores["acc5"] == 100.0
    rows = list(csv.DictReader((tmp_path / "out" / "classes.csv").open()))
    assert [row["class"][:9] for row in rows] == [wnids[label] for label in (6, 11, 13)]
    assert rows[1]["most often taken for"] == f"{' '.join(robustness.imagenet_classes()[6])} (2)"
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == scores
    assert evaluate.main([*flags, "-benchmark", "sketch"])["acc1"] == 0.0


def test_folders_named_by_label_are_sorted_as_numbers(imagenet_run, tmp_path):
    for label in (0, 2, 10):
        write_image(tmp_path / "v2" / str(label) / "0.png", label)
    flags = [str(imagenet_run), "-benchmark", "v2", "-data_path", str(tmp_path / "v2"), "-out", str(tmp_path / "out")]
    assert evaluate.main(flags)["acc1"] == pytest.approx(100 / 3)
    (tmp_path / "v2" / "cats").mkdir()
    with pytest.raises(UserError, match="neither wnids nor labels of ImageNet: cats"):
        evaluate.main(flags)


def test_corruptions(imagenet_run, tmp_path, monkeypatch):
    """One of two images is of class 0, which the model always says; of severity 5 of fog both are."""
    wnids = [wnid for wnid, _ in robustness.imagenet_classes()]
    for name in robustness.ALEXNET_ERRORS:
        for severity in robustness.SEVERITIES:
            folder = tmp_path / "c" / ("weather" if name == "fog" else "") / name / severity
            other = 0 if (name, severity) == ("fog", "5") else 1
            write_image(folder / wnids[0] / "0.png", 0)
            write_image(folder / wnids[other] / "1.png", 9)
    flags = [str(imagenet_run), "-benchmark", "c", "-data_path", str(tmp_path / "c"), "-out", str(tmp_path / "out")]
    scores = evaluate.main(flags)
    expected = [(0.4 if name == "fog" else 0.5) / value for name, value in robustness.ALEXNET_ERRORS.items()]
    assert scores["mce"] == pytest.approx(100 * np.mean(expected), rel=1e-12)
    assert scores["error"] == pytest.approx(100 * (14 * 0.5 + 0.4) / 15)
    rows = {row["corruption"]: row for row in csv.DictReader((tmp_path / "out" / "corruptions.csv").open())}
    assert float(rows["fog"]["severity 5"]) == 0.0
    (tmp_path / "c" / "snow" / "3").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="not a whole ImageNet-C, missing: .*snow/3"):
        evaluate.main(flags)


def test_any_data_set_at_another_size(tiny_run, image_folder, tmp_path):
    run = tiny_run("finetune", "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    dispatch.train_or_evaluate(run)
    flags = [str(run.directory), "-dataset", "folder", "-data_path", str(image_folder), "-out", str(tmp_path / "out")]
    scores = evaluate.main([*flags, "-image_size", "32"])
    assert scores["images"] == 12
    page = (tmp_path / "out" / "report.html").read_text()
    assert "red fox" in page
    with pytest.raises(UserError, match="needs a classifier of ImageNet's 1,000 classes"):
        evaluate.main([*flags, "-benchmark", "r"])


def test_outputs_that_are_no_numbers_are_an_error(imagenet_run, tmp_path):
    state = paddle.load(str(imagenet_run))
    state["classifier.bias"] = paddle.full([1000], float("nan"))
    paddle.save(state, str(imagenet_run))
    with pytest.raises(UserError, match="not finite"):
        evaluate.main([str(imagenet_run), "-out", str(tmp_path / "out")])


def test_an_encoder_is_refused(tiny_run, tmp_path):
    run = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    dispatch.train_or_evaluate(run)
    with pytest.raises(UserError, match="an encoder without a classifier"):
        evaluate.main([str(run.directory), "-out", str(tmp_path / "out")])
