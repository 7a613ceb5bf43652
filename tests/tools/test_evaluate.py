"""Scores against hand calculations, and the whole tool on generated trees of the benchmarks' layouts."""

import csv
import json

import numpy as np
import paddle
import pytest
from PIL import Image

from errors import UserError
from measures import classification, robustness
from methods import dispatch
from tools import evaluate

pytestmark = pytest.mark.quick


def test_scores_by_hand():
    probabilities = np.array(
        [[0.7, 0.1, 0.1, 0.04, 0.03, 0.03], [0.2, 0.3, 0.5, 0, 0, 0], [0.9, 0.02, 0.02, 0.02, 0.02, 0.02]]
    )
    labels = np.array([0, 1, 5])
    scores = classification.score(probabilities, labels)
    assert scores["acc1"] == pytest.approx(100 / 3)
    assert scores["acc5"] == pytest.approx(200 / 3)  # the third: equal values are taken in order, and 5 is the last
    assert scores["nll"] == pytest.approx(-(np.log(0.7) + np.log(0.3) + np.log(0.02)) / 3)
    # three bins: confident 0.7 and right, 0.5 and wrong, 0.9 and wrong
    assert scores["calibration_error"] == pytest.approx(100 * (0.3 + 0.5 + 0.9) / 3)


def test_classes_and_confusion_by_hand():
    counts = classification.confusion_matrix(np.array([0, 0, 1, 2, 0]), np.array([0, 1, 1, 1, 0]), 3)
    assert counts.tolist() == [[2, 0, 0], [1, 1, 1], [0, 0, 0]]
    first, second = classification.per_class(counts, ["a", "b", "c"])
    assert first == {"class": "a", "images": 2, "acc1": 100.0, "precision": 200 / 3, "most often taken for": ""}
    assert second["acc1"] == pytest.approx(100 / 3)
    assert second["precision"] == 100.0
    assert second["most often taken for"] == "a (1)"


def test_mean_corruption_error_by_hand():
    """Twice AlexNet's error on one corruption, half on another, as much on the 13 others: (2 + 0.5 + 13) / 15."""
    errors = {name: [value] * 5 for name, value in robustness.ALEXNET_ERRORS.items()}
    errors["fog"] = [0.1, 0.2, 0.3, 0.4, 0.5]  # mean 0.3
    expected = (14 + 0.3 / 0.819324) / 15
    assert robustness.mean_corruption_error(errors)["mce"] == pytest.approx(100 * expected, rel=1e-12)
    plain = (sum(robustness.ALEXNET_ERRORS.values()) - 0.819324 + 0.3) / 15
    assert robustness.mean_corruption_error(errors)["error"] == pytest.approx(100 * plain, rel=1e-12)


def test_classes_of_imagenet():
    classes = robustness.imagenet_classes()
    assert len(classes) == len({wnid for wnid, _ in classes}) == 1000
    assert classes[0] == ("n01440764", "tench")
    assert [wnid for wnid, _ in classes] == sorted(wnid for wnid, _ in classes)


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
