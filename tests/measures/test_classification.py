"""Scores of classifiers, by hand."""

import numpy as np
import pytest

from measures import classification

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
    assert first == {
        "class": "a",
        "images": 2,
        "acc1": 100.0,
        "precision": 200 / 3,
        "f1": 80.0,
        "most often taken for": "",
    }
    assert second["acc1"] == pytest.approx(100 / 3)
    assert second["precision"] == 100.0
    assert second["most often taken for"] == "a (1)"
