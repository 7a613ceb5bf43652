"""Scores of segmentation from one confusion matrix over all pixels of a split."""

import numpy as np


def confusion(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pixels by truth (rows) and prediction (columns), [K, K + 1] int64; those without a class are left out.

    Args:
        truth: integers of any shape, negative where there is no class.
        predicted: of the same shape; negative, which the last column counts, is wrong.
    """
    valid, columns = truth >= 0, num_classes + 1
    found = np.where(predicted[valid] < 0, num_classes, predicted[valid])
    places = truth[valid].astype(np.int64) * columns + found
    return np.bincount(places, minlength=num_classes * columns).reshape(num_classes, columns)


def confusion_matrix(pred: np.ndarray, truth: np.ndarray, num_classes: int, ignore: int = 255) -> np.ndarray:
    """Count pixels by truth (rows) and prediction (columns), [K, K] int64.

    Args:
        pred, truth: integers of one shape, from 0 to K - 1.
        ignore: value of truth that stands for none.

    Raises:
        ValueError: naming other values, or shapes that differ.
    """
    pred, truth = np.asarray(pred), np.asarray(truth)
    if pred.dtype.kind not in "bui" or truth.dtype.kind not in "bui":
        raise ValueError(f"classes are integers, not {pred.dtype} and {truth.dtype}")
    if pred.shape != truth.shape:
        raise ValueError(f"the predictions have the shape {list(pred.shape)}, and the truth {list(truth.shape)}")
    is_valid = truth != ignore
    for name, values in (("prediction", pred[is_valid]), ("truth", truth[is_valid])):
        if values.size and not 0 <= values.min() <= values.max() < num_classes:
            raise ValueError(f"the {name} holds {values.min()} to {values.max()}; classes are 0 to {num_classes - 1}")
    return confusion(truth[is_valid], pred[is_valid], num_classes)[:, :num_classes]


def iou_by_class(counts: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each class in percent, [K]; NaN for one that is nowhere.

    Args:
        counts: confusion [K, K + 1], or [K, K].
    """
    hits = np.diag(counts)
    union = counts.sum(axis=0)[: len(counts)] + counts.sum(axis=1) - hits
    return 100.0 * np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def scores(counts: np.ndarray) -> dict[str, object]:
    """Return `means`, and `iou_by_class` as "iou"."""
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[1] - counts.shape[0] not in (0, 1):
        raise ValueError(f"a confusion is [K, K] or [K, K + 1], not {list(counts.shape)}")
    return means(counts) | {"iou": iou_by_class(counts)}


def means(counts: np.ndarray) -> dict[str, float]:
    """Return mIoU, mean accuracy of classes, and accuracy of pixels, in percent, of a confusion [K, K + 1] or [K, K].

    The mean IoU is over the classes that are in the truth or in the prediction, as mmseg and torchmetrics' macro
    average have it; the mean accuracy is over those in the truth.
    """
    hits, truth = np.diag(counts), counts.sum(axis=1)
    occurs = truth > 0
    recall = hits[occurs] / truth[occurs]
    return {
        "miou": float(np.nanmean(iou_by_class(counts))) if counts.any() else float("nan"),
        "macc": 100.0 * float(recall.mean()) if occurs.any() else float("nan"),
        "aacc": 100.0 * float(hits.sum() / counts.sum()) if counts.any() else float("nan"),
    }
