"""Rare classes, against scikit-learn and torch: draws, weights, scores, and the choice of the best checkpoint."""

import json

import numpy as np
import paddle
import pytest
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight

from errors import UserError
from layers.cross_entropy import cross_entropy
from measures import classification
from methods import class_balance, dispatch
from methods.classifier import soft_cross_entropy
from pipeline.sources import ArrayImages
from tests.conftest import assert_close

pytestmark = pytest.mark.quick


def random_predictions(classes, count=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.4, count) - 1, classes - 1)  # rare classes
    logits = rng.standard_normal((count, classes)) + 1.5 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, labels


@pytest.mark.parametrize("classes", [2, 5, 12])
def test_scores_are_scikit_learns(classes):
    probabilities, labels = random_predictions(classes)
    best = probabilities.argmax(axis=1)
    found = classification.score(probabilities, labels)
    assert found["balanced"] == pytest.approx(100 * metrics.balanced_accuracy_score(labels, best), abs=1e-6)
    assert found["f1"] == pytest.approx(100 * metrics.f1_score(labels, best, average="macro"), abs=1e-6)
    present = np.unique(labels)
    areas = [metrics.roc_auc_score(labels == label, probabilities[:, label]) for label in present]
    assert found["auc"] == pytest.approx(100 * np.mean(areas), abs=1e-6)
    if len(present) == classes > 2:
        theirs = metrics.roc_auc_score(labels, probabilities, multi_class="ovr")
        assert found["auc"] == pytest.approx(100 * theirs, abs=1e-6)


def test_one_class_has_no_auc():
    assert "auc" not in classification.score(np.full((3, 2), 0.5), np.zeros(3, np.int64))


def test_draws_over_ten_thousand_images():
    """Repeats are floor(w + u), whose mean is w and variance f (1 - f), f the fraction of w."""
    labels = np.repeat([0, 1, 2], [8500, 1000, 500])
    source = ArrayImages(np.zeros((10_000, 1, 1), np.uint8), labels, "x")
    found = class_balance.repeat_rare(source, 0.5, 20, 0, "TRAIN.CLASS_BALANCE")
    for label, count in enumerate((8500, 1000, 500)):
        wanted = max(1.0, (10_000 / 3 / count) ** 0.5)
        deviation = np.sqrt(count * (wanted % 1) * (1 - wanted % 1))
        assert abs((found.labels == label).sum() - count * wanted) <= 3 * deviation


# ---- weights


def test_balanced_weights_are_scikit_learns(tiny_run):
    run = tiny_run("finetune", "TRAIN.CLASS_WEIGHTS", "balanced")
    labels = np.array([0] * 5 + [1] * 3 + [2] * 1 + [3] * 1)
    key = (run.config.DATA.DATASET, run.config.DATA.DATA_PATH, "train", "label")
    run.sources[key] = ArrayImages(np.zeros((10, 1, 1), np.uint8), labels, "x")
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    assert_close(class_balance.class_weights(run).numpy(), expected, 1e-6)


@pytest.mark.parametrize("value", [[1.0, 2.0], [1.0, -1.0, 0.0, 0.0], "rare", ["a"] * 4])
def test_bad_weights_are_named(tiny_run, value):
    with pytest.raises(UserError, match=r"TRAIN\.CLASS_WEIGHTS="):
        class_balance.class_weights(tiny_run("finetune", "TRAIN.CLASS_WEIGHTS", value))


def test_weighted_losses_are_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((7, 4)).astype(np.float32), rng.integers(0, 4, 7)
    targets, weights = rng.dirichlet(np.ones(4), 7).astype(np.float32), np.array([0.5, 1, 2, 3], np.float32)
    ours = soft_cross_entropy(paddle.to_tensor(logits), paddle.to_tensor(targets * weights))
    theirs = torch.nn.functional.cross_entropy(*map(torch.tensor, (logits, targets)), weight=torch.tensor(weights))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
    ours = class_balance.label_loss(*map(paddle.to_tensor, (logits, labels, weights)))
    own = torch.nn.functional.cross_entropy(
        *map(torch.tensor, (logits, labels)), weight=torch.tensor(weights), reduction="none"
    )
    assert float(ours) == pytest.approx(float(own.mean()), rel=1e-6)
    plain = class_balance.label_loss(*map(paddle.to_tensor, (logits, labels)), None)
    assert float(plain) == pytest.approx(
        float(cross_entropy(paddle.to_tensor(logits), paddle.to_tensor(labels)).mean())
    )


# ---- runs


@pytest.mark.parametrize(
    ("mode", "best"), [("finetune", "balanced"), ("linearprobe", "f1"), ("finetune", "auc"), ("linearprobe", "loss")]
)
def test_the_best_checkpoint_is_chosen_by_the_score(tiny_run, mode, best):
    opts = ["TRAIN.BEST", best, "TRAIN.NUM_EPOCHS", 3, "TRAIN.CLASS_BALANCE", 0.5, "TRAIN.CLASS_WEIGHTS", "balanced"]
    run = tiny_run(mode, *opts)
    dispatch.train_or_evaluate(run)
    lines = [json.loads(line) for line in (run.directory / "log.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["event"] == "eval"]
    values = [line[best] for line in evaluations]
    chosen = min(values) if best == "loss" else max(values)
    name = (run.directory / "best").resolve().name
    assert int(name.removeprefix("step-")) == evaluations[values.index(chosen)]["step"]


def test_scores_of_a_run_are_those_of_its_predictions(tiny_run):
    """Against scikit-learn on the predictions of the weights that the run has saved."""
    from measures import image_sets
    from methods import load_models

    run = tiny_run("finetune", "TRAIN.NUM_EPOCHS", 2, "TRAIN.BEST", "f1")
    scores = dispatch.train_or_evaluate(run)
    model, config = load_models.load_classifier(run.directory / "latest", run.config)
    probabilities, labels = classification.predict(
        model, image_sets.open_loader(config, image_sets.open_images(config, "val"))
    )
    best = probabilities.argmax(axis=1)
    assert scores["f1"] == pytest.approx(100 * metrics.f1_score(labels, best, average="macro"), abs=1e-4)
    assert scores["balanced"] == pytest.approx(100 * metrics.balanced_accuracy_score(labels, best), abs=1e-4)
    assert "auc" not in scores


def test_a_best_of_another_score_is_forgotten(tiny_run):
    first = tiny_run("finetune", "TRAIN.NUM_EPOCHS", 1)
    dispatch.train_or_evaluate(first)
    opts = ["TRAIN.NUM_EPOCHS", 2, "TRAIN.BEST", "loss"]  # which is below any accuracy that is better
    resumed = tiny_run("finetune", *opts, directory=first.directory, resume_from=first.directory / "latest")
    dispatch.train_or_evaluate(resumed)
    assert "the best acc1 is forgotten" in (first.directory / "log.txt").read_text()
    state = json.loads((first.directory / "latest" / "state.json").read_text())
    assert state["best_metric"] == "loss"
    records = [json.loads(line) for line in (first.directory / "log.jsonl").read_text().splitlines()]
    assert state["best"] == [record["loss"] for record in records if record["event"] == "eval"][-1]


def test_one_class_in_val_has_no_auc_to_choose_by(tiny_run):
    run = tiny_run("finetune", "TRAIN.NUM_EPOCHS", 1, "TRAIN.BEST", "auc")
    key = (run.config.DATA.DATASET, run.config.DATA.DATA_PATH, "val", "label")
    run.sources[key] = ArrayImages(np.zeros((4, 16, 16, 3), np.uint8), np.zeros(4, np.int64), "x")
    with pytest.raises(UserError, match="images of one class only"):
        dispatch.train_or_evaluate(run)
