"""Logistic regression on few images, against scikit-learn."""

import shutil

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from errors import UserError
from measures import few_shots, image_sets
from methods import dispatch
from tools import lowshot

pytestmark = pytest.mark.quick


NOTHING = ("TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)


def test_few_shots_are_scikit_learns_regression(digits):
    train, val = digits
    chosen = few_shots.draw(train["labels"], 5, seed=3)
    assert np.array_equal(np.bincount(train["labels"][chosen]), [5] * 10)

    def prepare(values):
        return normalize(values.astype(np.float64) - values.mean(axis=1, keepdims=True, dtype=np.float64))

    model = LogisticRegression(C=4000.0, fit_intercept=False, max_iter=1000)
    model.fit(prepare(train["features"][chosen]), train["labels"][chosen])
    expected = 100 * model.score(prepare(val["features"]), val["labels"])
    assert few_shots.fit_and_score(train, chosen, val) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(UserError, match="-shots 200: class"):
        few_shots.draw(train["labels"], 200, 0)


def damaged_copy(image_folder, root, count):
    """Copy the photos, and damage some of the first class."""
    shutil.copytree(image_folder, root)
    for path in sorted((root / "train" / "cat").iterdir())[:count]:
        path.write_bytes(b"no image")
    for split in ("train", "val"):
        (root / f"{split}_list.txt").unlink()
    return ["-dataset", "folder", "-data_path", str(root), "-opts", "DATA.BAD_IMAGES", "skip"]


def test_few_shots_are_drawn_from_what_can_be_read(tiny_run, image_folder, tmp_path):
    run = tiny_run("pretrain", *NOTHING)
    dispatch.train_or_evaluate(run)
    flags = damaged_copy(image_folder, tmp_path / "data", 3)
    lowshot.main([str(run.directory), "-shots", "5", *flags])
    with pytest.raises(UserError, match="-shots 6: class 0 has 5 training images"):
        lowshot.main([str(run.directory), "-shots", "6", *flags])
    (tmp_path / "list.txt").write_text("cat/6 0.jpg\ndog/1 1.jpg\n")
    with pytest.raises(UserError, match="3 training images were skipped"):
        lowshot.main([str(run.directory), "-list", str(tmp_path / "list.txt"), *flags])


def test_a_balanced_choice():
    labels = np.repeat([0, 1, 2], [50, 5, 3])
    chosen = image_sets.choose_balanced(labels, 12, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [4, 5, 3] or np.bincount(labels[chosen]).tolist() == [5, 4, 3]
    assert np.array_equal(chosen, image_sets.choose_balanced(labels, 12, seed=0))
    assert not np.array_equal(chosen, image_sets.choose_balanced(labels, 12, seed=1))
    assert len(image_sets.choose_balanced(labels, 100, seed=0)) == 58
