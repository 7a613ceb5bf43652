"""Logistic regression on a few labelled images of each class, as in MAE-CT."""

import numpy as np

from errors import UserError

_INVERSE_PENALTY = 4000.0


def fit_and_score(train: dict[str, np.ndarray], chosen: np.ndarray, val: dict[str, np.ndarray]) -> float:
    """Return the accuracy in percent on `val` of a regression that was fitted on the chosen images of `train`."""
    from sklearn.linear_model import LogisticRegression

    features, labels = _prepare(train["features"][chosen]), train["labels"][chosen]
    if len(np.unique(labels)) < 2:
        raise UserError("logistic regression needs images of at least two classes")
    model = LogisticRegression(C=_INVERSE_PENALTY, fit_intercept=False, max_iter=1000).fit(features, labels)
    correct = 0
    for first in range(0, len(val["labels"]), 4096):
        part = slice(first, first + 4096)
        correct += int((model.predict(_prepare(val["features"][part])) == val["labels"][part]).sum())
    return 100.0 * correct / len(val["labels"])


def _prepare(features: np.ndarray) -> np.ndarray:
    centred = np.asarray(features, np.float64)
    centred = centred - centred.mean(axis=1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def draw(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Choose `shots` images of each class at random."""
    rng = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < shots:
            raise UserError(f"-shots {shots}: class {label} has {len(members)} training images")
        chosen.append(rng.choice(members, shots, replace=False))
    return np.sort(np.concatenate(chosen))
