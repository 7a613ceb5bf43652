"""Nearest neighbours against scikit-learn."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from errors import UserError
from measures import neighbours

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("standardise", [False, True])
def test_nearest_neighbours_are_those_of_scikit_learn(digits, standardise):
    train, val = digits
    ours = neighbours.classify(train["features"], train["labels"], val["features"], [1, 7, 20, 1000], 0.07, standardise)
    bank, queries = (part["features"].astype(np.float64) for part in digits)
    if standardise:
        mean, scale = bank.mean(axis=0), bank.std(axis=0, ddof=1) + 1e-5
        bank, queries = (bank - mean) / scale, (queries - mean) / scale
    for k, classes in ours.items():
        theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        expected = theirs.fit(bank, train["labels"]).predict(queries)
        assert np.mean(classes == val["labels"]) == np.mean(expected == val["labels"])
        assert np.mean(classes == expected) > 0.998  # equal votes to the last bit of float32


@pytest.mark.parametrize(("columns", "count"), [(5000, 20), (4999, 1), (640, 20), (20, 20), (64, 3)])
def test_the_largest_values_of_rows(columns, count):
    values = np.random.default_rng(0).standard_normal((30, columns)).astype(np.float32)
    places = np.sort(neighbours._largest(values, count), axis=1)
    assert np.array_equal(places, np.sort(np.argsort(-values, axis=1)[:, :count], axis=1))


def test_neighbours_that_cannot_be(digits):
    train, val = digits
    with pytest.raises(UserError, match="from 1 to the number of training images, 1000"):
        neighbours.classify(train["features"], train["labels"], val["features"], [1001])
