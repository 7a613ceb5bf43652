"""Scores in which every class counts alike, where some are rare."""

import numpy as np

from layers import across_ranks


class Probabilities:
    """The probabilities of a split's images, batch by batch, on all ranks."""

    def __init__(self):
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def clear(self) -> None:
        """Forget all of them."""
        self._parts.clear()

    def add(self, indices: np.ndarray, probabilities: np.ndarray) -> None:
        """Add those of a batch: indices [B] of its images, probabilities [B, K]."""
        self._parts.append((indices, probabilities))

    def gather(self, num_images: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the images [N] that all ranks have read, and their probabilities [N, K]; every rank must call it."""
        found = np.zeros((num_images, num_classes + 1), np.float32)  # the last column: 1 where it is there
        for indices, probabilities in self._parts:
            found[indices] = np.pad(probabilities, ((0, 0), (0, 1)), constant_values=1.0)
        across_ranks.exchange_rows(found)
        images = np.flatnonzero(found[:, -1])
        return images, found[images, :-1]


def balanced_accuracy(right: np.ndarray, images: np.ndarray) -> float:
    """Return the mean recall of the classes that have images, in percent.

    Args:
        right: [K], images of each class that are taken for it.
        images: [K], of each class.
    """
    has_images = images > 0
    return 100.0 * float((right[has_images] / images[has_images]).mean()) if has_images.any() else float("nan")


def macro_f1(right: np.ndarray, images: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean F1 score, in percent, of the classes that an image has or is taken for.

    Args:
        right, images: as of `balanced_accuracy`.
        predicted: [K], images that are taken for each class.
    """
    total = images + predicted
    counted = total > 0
    return 100.0 * float((2 * right[counted] / total[counted]).mean()) if counted.any() else float("nan")


def macro_auc(probabilities: np.ndarray, is_class: np.ndarray) -> float:
    """Return the mean area under the ROC curve in percent, of each class against the others.

    A class of all images or of none has no curve. NaN if no class has one.

    Args:
        probabilities: [N, K].
        is_class: [N, K] bool, the classes that each image has; or [N], the label of each.
    """
    from sklearn.metrics import roc_auc_score  # takes most of a second

    return _macro(roc_auc_score, probabilities, is_class)


def mean_average_precision(probabilities: np.ndarray, is_class: np.ndarray) -> float:
    """Return the mean over the classes that some image has of the average precision, in percent; NaN if none has.

    The average precision is the sum over thresholds of precision times the gain in recall, without interpolation.

    Args:
        probabilities, is_class: as of `macro_auc`.
    """
    from sklearn.metrics import average_precision_score

    return _macro(average_precision_score, probabilities, is_class, of_all=True)


def _macro(score, probabilities: np.ndarray, is_class: np.ndarray, of_all: bool = False) -> float:
    """Return the mean of a score over the classes that some images have; `of_all`: also of those that all have."""
    values = []
    for label in range(probabilities.shape[1]):
        own = is_class[:, label] if is_class.ndim == 2 else is_class == label
        if own.any() and (of_all or not own.all()):
            values.append(score(own, probabilities[:, label]))
    return 100.0 * float(np.mean(values)) if values else float("nan")
