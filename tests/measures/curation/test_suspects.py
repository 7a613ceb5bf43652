"""Doubtful labels and outliers where it is known which are wrong; balanced choices where it is known what is rare."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from measures.curation import balance, suspects
from measures.curation.similar_rows import Rows, nearest

pytestmark = pytest.mark.quick


def digits():
    images, labels = load_digits(return_X_y=True)
    images = images - images.mean(axis=1, keepdims=True)
    return (images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32), labels.astype(np.int64)


def doubts_of(unit, labels):
    places, cosines = nearest(Rows(unit), suspects.LABEL_NEIGHBOURS)
    return suspects.doubtful_labels(labels, suspects.votes(labels, places, cosines, 10))


def test_flipped_labels_of_digits_are_named():
    unit, true = digits()
    measured = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        flipped = rng.permutation(len(true))[: round(0.05 * len(true))]
        labels = true.copy()
        labels[flipped] = (true[flipped] + rng.integers(1, 10, len(flipped))) % 10
        found = doubts_of(unit, labels)
        named = {doubt.image for doubt in found}
        hits = named & set(flipped.tolist())
        measured.append((len(hits) / len(named), len(hits) / len(flipped)))
        right = [doubt.proposed == true[doubt.image] for doubt in found if doubt.image in hits]
        assert np.mean(right) >= 0.9
        assert [doubt.score for doubt in found] == sorted(doubt.score for doubt in found)
    precision, recall = np.mean(measured, axis=0)
    assert precision >= 0.9
    assert recall >= 0.85
    assert len(doubts_of(unit, true)) < 0.02 * len(true), "few of the true labels are doubted"


def test_votes_leave_out_images_without_a_label_or_a_neighbour():
    labels = np.array([0, 1, -1, 1])
    places = np.array([[1, 2], [0, 3], [-1, -1], [2, 2]])
    cosines = np.array([[0.9, 0.8], [0.5, 0.5], [-2, -2], [0.1, 0.1]], np.float32)
    found = suspects.votes(labels, places, cosines, 2)
    np.testing.assert_allclose(found, [[0, 1], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    assert suspects.doubtful_labels(labels, found)[0][0::2] == (0, 1)


def test_confident_joint_by_hand():
    # Two classes of 4 images; image 3 is surely of class 1, image 7 is between both.
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    ones = np.array([0.1, 0.1, 0.1, 0.95, 0.9, 0.9, 0.9, 0.5])
    (doubt,) = suspects.doubtful_labels(labels, np.stack([1 - ones, ones], axis=1))
    assert doubt.image == 3
    assert doubt.proposed == 1
    assert doubt.score == pytest.approx((0.05 - 0.95 + 1) / 2)


def test_outliers_are_beyond_the_fence_and_the_farthest_comes_first():
    rng = np.random.default_rng(0)
    cosines = np.clip(0.9 + 0.01 * rng.standard_normal((200, 10)), -1, 1).astype(np.float32)
    cosines[17], cosines[42], cosines[99] = 0.2, 0.4, -2.0
    far, typicality = suspects.outliers(cosines)
    assert far[:2].tolist() == [17, 42]
    assert 99 not in far, "an image without neighbours has no distance"
    assert len(far) < 6
    assert np.median(typicality) == pytest.approx(np.exp(-1), abs=0.02)


def test_shares_are_equal_up_to_what_each_group_has():
    rng = np.random.default_rng(0)
    given = balance.shares(np.array([5, 100, 1, 100]), 60, rng)
    assert given.tolist() in ([5, 27, 1, 27],)
    for target in (0, 1, 3, 7, 206):
        assert balance.shares(np.array([5, 100, 1, 100]), target, rng).sum() == target
    assert (balance.shares(np.array([5, 100, 1, 100]), 500, rng) == [5, 100, 1, 100]).all()


def test_a_balanced_choice_takes_more_of_what_is_rare():
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, 16))
    counts = [1000] + [100] * 4 + [20] * 5
    classes = np.repeat(np.arange(10), counts)
    points = centres[classes] + 0.2 * rng.standard_normal((len(classes), 16))
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    chosen = balance.balanced(points, 300)
    assert len(np.unique(chosen)) == 300
    taken = np.bincount(classes[chosen], minlength=10)
    at_random = 300 * np.array(counts) / len(classes)
    assert taken[0] < 0.6 * at_random[0]
    assert taken[5:].sum() > 2 * at_random[5:].sum()
    np.testing.assert_array_equal(chosen, balance.balanced(points, 300))
    assert balance.balanced(points, 5000).tolist() == list(range(len(points)))
