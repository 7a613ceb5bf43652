"""Several labels per image: loss against torch, scores against scikit-learn, lists, and whole runs."""

import json

import numpy as np
import paddle
import pytest
from PIL import Image
from sklearn import metrics

from errors import UserError
from measures import classification, image_sets, prediction
from methods import class_balance, dispatch, load_models, multi_label
from pages.evaluation import evaluate_source
from pipeline.image_lists import ListedImages
from pipeline.labels import RaggedLists
from pipeline.mixup import Mixup, smooth_one_hot
from tests.conftest import assert_close

pytestmark = pytest.mark.quick
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255))


def write_photos(folder, count, seed, write_line):
    """Write photos of 16 pixels whose quarters are bright or dark, by label, and a list of them."""
    rng = np.random.default_rng(seed)
    (folder / "photos").mkdir(exist_ok=True)
    lines = []
    for number in range(count):
        is_class = rng.random(4) < 0.4
        pixels = np.zeros((2, 2, 3), np.uint8)
        for label in np.flatnonzero(is_class):
            pixels[label // 2, label % 2] = COLOURS[label]
        name = f"photos/{seed}-{number}.png"
        Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST).save(folder / name)
        lines.append(write_line(name, is_class))
    return lines


def with_labels(name, is_class):
    return json.dumps({"image": name, "labels": np.flatnonzero(is_class).tolist()})


@pytest.fixture
def photos(tmp_path):
    for split, count, seed in (("train", 64, 0), ("val", 30, 1)):
        lines = write_photos(tmp_path, count, seed, with_labels)
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return ["DATA.DATASET", "lists", "DATA.DATA_PATH", str(tmp_path), "TRAIN.MULTI_LABEL", True]


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    is_class = rng.random((200, 5)) < [0.5, 0.2, 0.05, 0.9, 0.0]
    return rng.random((200, 5)) * 0.6 + 0.4 * is_class * rng.random((200, 5)), is_class


def test_scores_are_scikit_learns(predictions):
    probabilities, is_class = predictions
    found, used = multi_label.score(probabilities, is_class), is_class.any(axis=0)
    probabilities, is_class = probabilities[:, used], is_class[:, used]
    assert found["map"] == pytest.approx(100 * metrics.average_precision_score(is_class, probabilities), abs=1e-6)
    assert found["auc"] == pytest.approx(100 * metrics.roc_auc_score(is_class, probabilities), abs=1e-6)
    # A class of no image that is predicted somewhere counts as 0.
    f1 = [*metrics.f1_score(is_class, probabilities >= 0.5, average=None, zero_division=0), 0.0]
    assert found["f1"] == pytest.approx(100 * np.mean(f1), abs=1e-6)


def test_loss_is_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, targets = rng.standard_normal((7, 4)).astype(np.float32) * 5, rng.random((7, 4)).astype(np.float32)
    weights = np.array([0.5, 1, 2, 30], np.float32)
    ours = multi_label.binary_cross_entropy(*map(paddle.to_tensor, (logits, targets)))
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(*map(torch.tensor, (logits, targets)))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
    ours = multi_label.binary_cross_entropy(*map(paddle.to_tensor, (logits, targets, weights)))
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        *map(torch.tensor, (logits, targets)), pos_weight=torch.tensor(weights)
    )
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def test_targets_have_a_one_at_each_label():
    labels = paddle.to_tensor([[2, 0, -1], [-1, -1, -1], [1, 1, -1]])
    expected = [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert_close(smooth_one_hot(labels, 4, 0.0), expected, 0)
    assert_close(smooth_one_hot(labels, 4, 0.2), np.array(expected) * 0.8 + 0.05, 1e-7)
    images, targets = Mixup(4, cutmix_alpha=0.0, smoothing=0.0)(
        paddle.to_tensor(np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)), labels, np.random.default_rng(0)
    )
    share = images[0, 0].item()  # the first image's in itself; the last has the rest
    assert_close(targets[0], share * np.array(expected[0]) + (1 - share) * np.array(expected[2]), 1e-6)


def test_balanced_weights_are_negatives_over_positives(tiny_run):
    run = tiny_run("finetune", "TRAIN.MULTI_LABEL", True, "TRAIN.CLASS_WEIGHTS", "balanced")
    source = dispatch.build_train_loader(run).source
    source.labels = RaggedLists.of([[0, 0], [0, 1], [], [0]])
    assert_close(class_balance.class_weights(run), [1 / 3, 3, 1, 1], 1e-6)


@pytest.mark.parametrize("mode", ["finetune", "linearprobe"])
def test_a_run_learns_and_its_scores_are_those_of_its_predictions(tiny_run, photos, mode, tmp_path):
    opts = ["TRAIN.NUM_EPOCHS", 12, "TRAIN.CLASS_WEIGHTS", "balanced", "TRAIN.CLASS_BALANCE", 0.5]
    run = tiny_run(mode, *photos, *opts)
    scores = dispatch.train_or_evaluate(run)
    lines = [json.loads(line) for line in (run.directory / "log.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["event"] == "eval"]
    assert evaluations[-1]["map"] > max(evaluations[0]["map"], 55)  # 40 % of the images have each class
    chosen = max(evaluations, key=lambda line: line["map"])["step"]
    assert (run.directory / "best").resolve().name == f"step-{chosen:08d}"

    model, config = load_models.load_classifier(run.directory / "latest", run.config)
    source = image_sets.open_images(config, "val", multi_label.TARGET, num_classes=4)
    probabilities, is_class = classification.predict(model, image_sets.open_loader(config, source), is_multi_label=True)
    assert is_class.sum() == sum(map(len, (source.labels[index] for index in range(30))))
    assert scores["map"] == pytest.approx(100 * metrics.average_precision_score(is_class, probabilities), abs=1e-3)
    loss = -np.where(is_class, np.log(probabilities), np.log(1 - probabilities)).mean()
    assert scores["loss"] == pytest.approx(loss, abs=1e-4)
    (tmp_path / "out").mkdir()
    found = evaluate_source(model, config, source, tmp_path / "out")
    assert found["map"] == pytest.approx(scores["map"], abs=1e-3)
    assert not (tmp_path / "out" / "confusion.csv").exists()
    assert "average precision" in (tmp_path / "out" / "report.html").read_text()


def test_evaluation_and_predictions_of_a_run(tiny_run, photos):
    run = tiny_run("finetune", *photos, "TRAIN.NUM_EPOCHS", 2)
    scores = dispatch.train_or_evaluate(run)
    evaluated = tiny_run("finetune", *photos, "MODEL.PRETRAINED", str(run.directory / "latest"), "EVAL", True)
    again = dispatch.train_or_evaluate(evaluated)
    assert again == pytest.approx(scores, abs=1e-4)
    assert f"mAP {again['map']:.3f}" in (evaluated.directory / "log.txt").read_text()
    (row,) = prediction.predict(prediction.load(run.directory), f"{photos[3]}/photos/1-0.png", topk=4)
    assert row.probabilities == sorted(row.probabilities, reverse=True)
    assert abs(sum(row.probabilities) - 1) > 1e-3  # each is of its own


@pytest.mark.parametrize(
    ("lists", "columns", "expected"),
    [
        (["a.jpg 0,1,0", "b.jpg 0,0,0", "c.jpg 1,0,1"], 3, [[1], [], [0, 2]]),
        (["a.jpg\t0,1", "b.jpg\t0,0"], 2, [[1], []]),
        (["a.jpg 0,1", "b.jpg 1,0"], 2, [[1], [0]]),  # as labels, every image would have both
        (["a.jpg 0,1", "b.jpg 1"], 0, [[0, 1], [1]]),
        (["a.jpg 0,1,2", "b.jpg 1,0,1"], 0, [[0, 1, 2], [1, 0, 1]]),
    ],
)
def test_lists_of_zeros_and_ones(tmp_path, lists, columns, expected):
    file = tmp_path / "train_list.txt"
    file.write_text("\n".join(lists) + "\n")
    source = ListedImages(file, multi_label.TARGET)
    assert [source.labels[index] for index in range(len(source))] == expected
    assert bool(columns) == any("zeros and ones" in note for note in source.notes)
    assert source.count_classes() == (columns or max(max(own, default=0) for own in expected) + 1)


@pytest.mark.parametrize("odd", ["1,0,0,1", "1,0"])
def test_another_number_of_zeros_and_ones_is_named(tmp_path, odd):
    file = tmp_path / "train_list.txt"
    file.write_text(f"a.jpg 0,1,0\nb.jpg {odd}\nc.jpg 0,0,1\n")
    with pytest.raises(UserError, match=r"3 zeros and ones per image, but .*b\.jpg has"):
        ListedImages(file, multi_label.TARGET)


def test_settings_for_one_label_are_named(tiny_run, photos):
    for opts, what in (
        (["TRAIN.BEST", "acc1"], r"TRAIN\.BEST=acc1: is not for TRAIN\.MULTI_LABEL"),
        (["DISTILL.TEACHER", "x"], "-teacher: is for one label per image"),
    ):
        with pytest.raises(UserError, match=what):
            dispatch.train_or_evaluate(tiny_run("finetune", *photos, *opts))
    with pytest.raises(UserError, match=r"TRAIN\.LR_SWEEP chooses among its heads by acc1"):
        dispatch.train_or_evaluate(tiny_run("linearprobe", *photos, "TRAIN.LR_SWEEP", [0.1, 1.0]))
    one = [*photos[:4], "TRAIN.BEST", "map"]
    with pytest.raises(UserError, match="for several labels per image: -opts TRAIN.MULTI_LABEL True"):
        dispatch.train_or_evaluate(tiny_run("finetune", *one))
    with pytest.raises(UserError, match=r"TRAIN\.BEST=map: is for several labels"):
        dispatch.train_or_evaluate(tiny_run("finetune", "TRAIN.BEST", "map"))


def test_weights_of_the_other_kind_are_not_evaluated(tiny_run, photos):
    run = tiny_run("finetune", *photos, "TRAIN.NUM_EPOCHS", 1)
    (run.directory / "config.yaml").write_text(run.config.dump())
    dispatch.train_or_evaluate(run)
    opts = [*photos[:4], "MODEL.PRETRAINED", str(run.directory), "EVAL", True]
    with pytest.raises(UserError, match=r"TRAIN\.MULTI_LABEL=False: .* was trained with True"):
        dispatch.train_or_evaluate(tiny_run("finetune", *opts))


def test_a_val_split_without_a_label_has_no_score(tiny_run, photos, tmp_path):
    (tmp_path / "val.jsonl").write_text("\n".join(write_photos(tmp_path, 4, 1, lambda name, _: with_labels(name, []))))
    with pytest.raises(UserError, match="none of its images has a label"):
        dispatch.train_or_evaluate(tiny_run("finetune", *photos))
