"""Scores of classifiers: accuracy, calibration, each class, confusion."""

from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F

from errors import UserError
from measures import robustness
from methods import class_scores, multi_label
from pipeline.loading import with_progress

_BINS = 15  # confidence bins of the calibration error


@paddle.no_grad()
def class_probabilities(
    model, images: paddle.Tensor, columns: np.ndarray | None = None, is_multi_label: bool = False
) -> np.ndarray:
    """Return the probabilities [B, K] of a batch of images; further arguments as of `predict`."""
    logits = model(images).astype("float32")
    if columns is not None:
        logits = logits[:, paddle.to_tensor(columns)]
    if not bool(paddle.isfinite(logits).all()):
        raise UserError("the model's outputs are not finite; are its weights whole?")
    return (F.sigmoid(logits) if is_multi_label else F.softmax(logits, axis=-1)).numpy()


@paddle.no_grad()
def predict(
    model, loader, columns: np.ndarray | None = None, is_multi_label: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities [N, K] of all images of a loader, and their labels [N].

    Args:
        columns: [K] labels among which to choose; None: all classes of the model.
        is_multi_label: probabilities are those of K binary classifiers, and labels are the classes [N, K] bool of each
            image.
    """
    probabilities, labels, indices = [], [], []
    for batch in with_progress(loader, len(loader.source), "evaluated"):
        probabilities.append(class_probabilities(model, batch.images, columns, is_multi_label))
        labels.append(batch.host_labels)
        indices.append(batch.host_indices)
    if not labels:
        raise UserError(f"{loader.source.origin}: none of its images can be read")
    probabilities = np.concatenate(probabilities)
    if is_multi_label:
        is_class = multi_label.label_matrix(loader.source.label_lists(), probabilities.shape[1])
        return probabilities, is_class[np.concatenate(indices)]
    return probabilities, np.concatenate(labels)


def score(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the scores of a classifier: accuracies, F1 and AUC in percent.

    Top-1 and top-5 accuracy, negative log-likelihood, expected calibration error; and scores in which each class counts
    alike: balanced accuracy, macro F1, and macro AUC where a class has one, see `methods.class_scores`.

    The calibration error is the mean over 15 equal bins of confidence, weighted by their images, of the difference
    between confidence and accuracy, in percent (Guo et al., arXiv 1706.04599).

    Args:
        probabilities: [N, K].
        labels: [N], columns of `probabilities`.
    """
    blocks = np.array_split(probabilities, max(1, len(probabilities) // 1024))  # all at once would take much memory
    order = np.concatenate([np.argsort(-block, axis=1, kind="stable")[:, :5] for block in blocks])
    is_right = order[:, 0] == labels
    confidence = probabilities.max(axis=1)
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    gaps = [abs(confidence[bins == b].sum() - is_right[bins == b].sum()) for b in range(_BINS)]
    likelihood = probabilities[np.arange(len(labels)), labels]
    counts = confusion_matrix(order[:, 0], labels, probabilities.shape[1])
    right, images, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    auc = class_scores.macro_auc(probabilities, labels)
    return {
        "images": len(labels),
        "acc1": 100.0 * float(is_right.mean()),
        "acc5": 100.0 * float((order == labels[:, None]).any(axis=1).mean()),
        "nll": float(-np.log(np.maximum(likelihood, 1e-30)).mean()),
        "calibration_error": 100.0 * float(sum(gaps)) / len(labels),
        "balanced": class_scores.balanced_accuracy(right, images),
        "f1": class_scores.macro_f1(right, images, predicted),
        **({} if np.isnan(auc) else {"auc": auc}),
    }


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Count [K, K] how often a class (row) was taken for one (column)."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def per_class(counts: np.ndarray, names: list[str]) -> list[dict[str, object]]:
    """Return images, accuracy (recall), precision and F1 in percent of each class with images, and its worst mix-up."""
    rows = []
    for label in np.flatnonzero(counts.sum(axis=1)):
        others = counts[label].copy()
        right, others[label] = int(others[label]), 0
        predicted, images = int(counts[:, label].sum()), int(counts[label].sum())
        worst = int(others.argmax())
        rows.append(
            {
                "class": names[label],
                "images": images,
                "acc1": 100.0 * right / images,
                "precision": 100.0 * right / predicted if predicted else 0.0,
                "f1": 200.0 * right / (images + predicted),
                "most often taken for": f"{names[worst]} ({others[worst]})" if others[worst] else "",
            }
        )
    return rows


def per_label(probabilities: np.ndarray, is_class: np.ndarray, names: list[str]) -> list[dict[str, object]]:
    """Return images, average precision, and at a probability of 0.5 recall, precision and F1 in percent of each class.

    Args:
        probabilities: [N, K] of binary classifiers.
        is_class: [N, K] bool, the classes of each image; those of no image are left out.
    """
    rows, is_found = [], probabilities >= multi_label.THRESHOLD
    for label in np.flatnonzero(is_class.any(axis=0)):
        own, found = is_class[:, label], is_found[:, label]
        right, images, predicted = int((own & found).sum()), int(own.sum()), int(found.sum())
        one = slice(label, label + 1)
        rows.append(
            {
                "class": names[label],
                "images": images,
                "ap": class_scores.mean_average_precision(probabilities[:, one], is_class[:, one]),
                "recall": 100.0 * right / images,
                "precision": 100.0 * right / predicted if predicted else 0.0,
                "f1": 200.0 * right / (images + predicted),
            }
        )
    return rows


def class_names(own: Sequence[str] | None, num_classes: int) -> list[str]:
    """Return names by label: the run's or the data set's own, ImageNet's for 1,000 classes, or numbers."""
    if own is not None:
        return [*own, *map(str, range(len(own), num_classes))]
    if num_classes == 1000:
        return [f"{wnid} {name}" for wnid, name in robustness.imagenet_classes()]
    return [str(label) for label in range(num_classes)]
