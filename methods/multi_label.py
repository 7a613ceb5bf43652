"""Several labels per image, or none: a binary classifier for each class, and mean average precision.

The loss is that of timm's `BinaryCrossEntropy`; the score is that of PASCAL VOC (since 2010) and COCO classification.
"""

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from errors import UserError
from methods import class_scores
from pipeline.labels import RaggedLists
from pipeline.loading import Batch
from pipeline.mixup import smooth_one_hot
from training.loaders import open_once
from training.run import Run
from training.task import Evaluation

TARGET = "label set"  # see `Method.target`
THRESHOLD = 0.5  # probability from which an image is taken for a class


def binary_cross_entropy(
    logits: paddle.Tensor, targets: paddle.Tensor, weights: paddle.Tensor | None = None
) -> paddle.Tensor:
    """Return the mean over B images and K classes of the binary cross-entropy, in float32.

    Args:
        logits: [B, K].
        targets: [B, K] from 0 to 1.
        weights: [K], of the part of the loss that is for a class (torch's `pos_weight`); None: 1.
    """
    logits = logits.astype("float32")
    positive = F.softplus(-logits) * targets
    if weights is not None:
        positive = positive * weights
    return (positive + F.softplus(logits) * (1.0 - targets)).mean()


def label_matrix(lists: RaggedLists, num_classes: int) -> np.ndarray:
    """Return the classes [N, K] bool that each image has, of lists of labels."""
    matrix = np.zeros((len(lists), num_classes), bool)
    is_label = lists.flat >= 0
    matrix[lists.owners[is_label], lists.flat[is_label]] = True
    return matrix


def score(probabilities: np.ndarray, is_class: np.ndarray) -> dict[str, float]:
    """Return mean average precision, macro F1 at a probability of 0.5, and macro AUC where a class has one, in percent.

    Args:
        probabilities: [N, K].
        is_class: [N, K] bool.
    """
    is_found = probabilities >= THRESHOLD
    right, images, found = (values.sum(axis=0) for values in (is_found & is_class, is_class, is_found))
    scores = {
        "map": class_scores.mean_average_precision(probabilities, is_class),
        "f1": class_scores.macro_f1(right, images, found),
        "auc": class_scores.macro_auc(probabilities, is_class),
    }
    return {name: value for name, value in scores.items() if not np.isnan(value)}


class MultiLabelEvaluator:
    """Measures a classifier of several labels per image.

    Args:
        run: its val split is measured, and its log gets warnings.
    """

    def __init__(self, run: Run):
        self._run, self._found = run, class_scores.Probabilities()

    def evaluation(self) -> Evaluation:
        """Return the loss, and the scores of `score`, on the val split; TRAIN.BEST chooses the best, "map" if None.

        Raises:
            UserError: if TRAIN.BEST is a score for one label per image.
        """
        best = self._run.config.TRAIN.BEST or "map"
        if best not in ("map", "f1", "auc", "loss"):
            raise UserError(f"TRAIN.BEST={best}: is not for TRAIN.MULTI_LABEL; choose map, f1, auc or loss")
        direction = "min" if best == "loss" else "max"
        return Evaluation(("loss",), self._measure, (best, direction), self._found.clear, self._summarise)

    def _measure(self, model: nn.Layer, batch: Batch) -> list[paddle.Tensor]:
        """Return the sum over a batch of the loss."""
        logits = model(batch.images).astype("float32")
        self._found.add(batch.host_indices, F.sigmoid(logits).numpy())
        targets = smooth_one_hot(batch.labels, logits.shape[-1], 0.0)
        return [binary_cross_entropy(logits, targets) * len(batch)]

    def _summarise(self, scores: dict[str, float]) -> dict[str, float]:
        source, num_classes = open_once(self._run, "val", TARGET), self._run.config.MODEL.NUM_CLASSES
        images, probabilities = self._found.gather(len(source), num_classes)
        if not np.isfinite(probabilities).all():
            return scores | dict.fromkeys(("map", "f1", "auc"), float("nan"))
        more = score(probabilities, label_matrix(source.label_lists(), num_classes)[images])
        missing = {"map", "f1", "auc"} - more.keys()
        if self._run.config.TRAIN.BEST in missing or "map" in missing:
            raise UserError(f"{source.origin}: no class has images with and without it, so there is no score")
        if not (probabilities >= THRESHOLD).any():
            say = "no image has a class with a probability of 0.5 or more, so F1 is 0; train for more updates"
            self._run.log.say(f"warning: {say}")
        return more | scores
