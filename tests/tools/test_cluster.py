"""k-means against scikit-learn, and the accuracy of clusters."""

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.preprocessing import normalize

from tools import cluster

pytestmark = pytest.mark.quick


def test_clusters_are_scikit_learns(digits):
    train, _ = digits
    clusters = cluster.cluster(train["features"], 10, seed=1)
    expected = KMeans(10, n_init=1, random_state=1).fit_predict(normalize(train["features"]))
    scores = cluster.score(clusters, train["labels"])
    assert scores["nmi"] == pytest.approx(normalized_mutual_info_score(train["labels"], expected), abs=1e-6)
    assert scores["ari"] == pytest.approx(adjusted_rand_score(train["labels"], expected), abs=1e-6)


def test_accuracy_of_clusters_is_that_of_the_best_assignment():
    labels = np.array([0, 0, 0, 1, 1, 2])
    assert cluster.score(np.array([5, 5, 7, 7, 7, 9]), labels)["acc"] == pytest.approx(500 / 6)
