"""The classifier of finetuning and linear probing: building, weights, evaluation."""

import math
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

import checkpoint
from config import network_kind
from errors import UserError, one_name
from layers import across_ranks
from layers.cross_entropy import cross_entropy
from methods import class_scores, multi_label, start
from pipeline.loading import Batch
from training.device import is_on_gpu
from training.engine import evaluate
from training.loaders import build_eval_loader, open_once
from training.run import Run
from training.task import Evaluation
from transformer import VisionTransformer, build_transformer

METRICS = ("acc1", "acc5", "loss")
_TITLES = {"acc1": "Acc@1", "acc5": "Acc@5", "map": "mAP"}


def build_classifier(run: Run, head_std: float) -> VisionTransformer:
    """Build the classifier and load -pretrained; a head is kept where it fits, and drawn at random elsewhere.

    A head fits if it has as many classes, and their names are those of the data, where both are known.

    Args:
        head_std: standard deviation of a new head over loaded weights; MODEL.HEAD_INIT_STD goes first.
    """
    config = run.config
    paddle.seed(config.SEED)
    model = build_transformer(config)
    if not start.has_weights_to_load(run):
        return model
    head = [name for name in model.state_dict() if name.startswith(("classifier.", "distill_classifier.", "pooler."))]
    # A pretrained encoder's last norm is replaced where the patches are pooled, as in the official code.
    replaced = [] if model.architecture.has_last_norm else ["encoder.norm.*"]
    upper = checkpoint.upper_blocks(config.MODEL.ENCODER.DEPTH, config.MODEL.PRETRAINED_BLOCKS)
    added = checkpoint.ADDED_TO_FINETUNE if network_kind(config) == "classifier" else ()  # a probe would not train them
    report = checkpoint.load_weights(
        model,
        config.MODEL.PRETRAINED,
        adapt=config.MODEL.ADAPT_CHANNELS,
        allow_missing=(*head, "encoder_norm.*", *added),
        allow_mismatched=head,
        allow_unexpected=(*checkpoint.NAMES_BESIDE_ENCODER, *replaced, *upper),
    )
    run.log.say(str(report))
    std = head_std if config.MODEL.HEAD_INIT_STD is None else config.MODEL.HEAD_INIT_STD
    new = [*report.missing, *report.mismatched]
    trained = checkpoint.recorded_class_names(config.MODEL.PRETRAINED)
    if None not in (trained, config.DATA.CLASS_NAMES) and trained != config.DATA.CLASS_NAMES:
        run.log.say("the classifier of these weights is for other classes, and is drawn at random")
        new += head
    for prefix, classifier in (("classifier.", model.head), ("distill_classifier.", model.distill_classifier)):
        if any(name.startswith(prefix) for name in new):
            nn.initializer.Normal(std=std)(classifier.weight)
            nn.initializer.Constant(0.0)(classifier.bias)
    return model


class ClassifierEvaluator:
    """Measures a classifier, and warns if it gives every image the same class.

    Args:
        run: gets the warning.
    """

    def __init__(self, run: Run):
        self._run, self._first, self._is_one = run, None, None
        train = run.config.TRAIN
        self._per_class = train.BEST in ("balanced", "f1") or train.CLASS_BALANCE > 0 or train.CLASS_WEIGHTS is not None
        self._with_auc = train.BEST == "auc"
        self._counts: paddle.Tensor | None = None  # [3, K], see `_count`
        self._probabilities = class_scores.Probabilities()

    def evaluation(self) -> Evaluation:
        """Return top-1 and top-5 accuracy and loss on the val split; TRAIN.BEST chooses the best, "acc1" if None.

        Where classes are rare (TRAIN.CLASS_BALANCE, CLASS_WEIGHTS, BEST), also balanced accuracy, F1 or AUC.

        Raises:
            UserError: if TRAIN.BEST is a score for several labels per image.
        """
        best = self._run.config.TRAIN.BEST or "acc1"
        if best == "map":
            raise UserError("TRAIN.BEST=map: is for several labels per image; set TRAIN.MULTI_LABEL True, too")
        direction = "min" if best == "loss" else "max"
        return Evaluation(METRICS, self._measure, (best, direction), self._begin, self._summarise)

    def _begin(self) -> None:
        self._first = self._is_one = self._counts = None
        self._probabilities.clear()

    def _measure(self, model: nn.Layer, batch: Batch) -> list[paddle.Tensor]:
        """Return the sums over a batch of the metrics."""
        logits = model(batch.images).astype("float32")
        best = logits.argmax(axis=-1)
        self._first = best[:1] if self._first is None else self._first
        is_one = (best == self._first).all()  # stays on the device
        self._is_one = is_one if self._is_one is None else self._is_one & is_one
        if self._per_class:
            counts = _count(best, batch.labels, logits.shape[-1])
            self._counts = counts if self._counts is None else self._counts + counts
        if self._with_auc:
            self._probabilities.add(batch.host_indices, F.softmax(logits, axis=-1).numpy())
        return score(logits, batch.labels)

    def _rare_scores(self) -> dict[str, float]:
        """Return the scores in which each class counts alike, over all ranks."""
        scores, num_classes = {}, self._run.config.MODEL.NUM_CLASSES
        if self._per_class:
            own = np.zeros([3, num_classes]) if self._counts is None else self._counts.numpy().astype(np.float64)
            right, images, predicted = across_ranks.sum_across_ranks(own)
            scores["balanced"] = class_scores.balanced_accuracy(right, images)
            scores["f1"] = class_scores.macro_f1(right, images, predicted)
        if self._with_auc:
            labels = open_once(self._run, "val", "label").single_labels()
            images, probabilities = self._probabilities.gather(len(labels), num_classes)
            scores["auc"] = class_scores.macro_auc(probabilities, labels[images])
            if not scores["auc"] >= 0:
                raise UserError("TRAIN.BEST=auc: the val split has images of one class only; choose another score")
        return scores

    def _one_class(self) -> int | None:
        """Return the class for which all ranks have taken all their images; None if there are several."""
        has, label = self._first is not None, 0 if self._first is None else self._first.item()
        is_one = not has or bool(self._is_one)
        own = np.array([has, label, label**2, not is_one], np.float64)
        count, total, squares, others = across_ranks.sum_across_ranks(own)
        is_same = count > 0 and others == 0 and count * squares == total**2
        return int(total / count) if is_same else None

    def _summarise(self, scores: dict[str, float]) -> dict[str, float]:
        label = self._one_class()
        if label is not None and scores["acc1"] < 100.0:
            names = self._run.config.DATA.CLASS_NAMES or []
            name = one_name(names[label]) if label < len(names) else str(label)
            self._run.log.say(
                f"warning: every image is taken for the class {name}: it does not tell them apart yet; train for more "
                "updates, or start from pretrained weights"
            )
        return scores | self._rare_scores()


def target(config) -> str:
    """Return what each image must have, see `Method.target`."""
    return multi_label.TARGET if config.TRAIN.MULTI_LABEL else "label"


def evaluation(run: Run) -> Evaluation:
    """Return how the run's classifier is evaluated: by one label per image, or by several (TRAIN.MULTI_LABEL)."""
    return (multi_label.MultiLabelEvaluator if run.config.TRAIN.MULTI_LABEL else ClassifierEvaluator)(run).evaluation()


def _count(best: paddle.Tensor, labels: paddle.Tensor, num_classes: int) -> paddle.Tensor:
    """Return how many images of a batch are right, have, and are taken for each class, [3, K]."""
    found, own = (F.one_hot(values, num_classes) for values in (best, labels))  # [B, K]
    return paddle.stack([(found * own).sum(axis=0), own.sum(axis=0), found.sum(axis=0)])


def score(logits: paddle.Tensor, labels: paddle.Tensor) -> list[paddle.Tensor]:
    """Return the sums over a batch of `METRICS`, of logits [B, K] and labels [B]."""
    top1, top5 = count_correct(logits, labels, (1, 5))
    loss = cross_entropy(logits, labels).sum()
    # Paddle's loss of an infinite logit is a number.
    loss = paddle.where(logits.isfinite().all(), loss, paddle.full_like(loss, float("nan")))
    return [top1 * 100.0, top5 * 100.0, loss]


def evaluate_only(run: Run) -> dict[str, float]:
    """Evaluate the classifier of -pretrained (or -resume) on the val split; every tensor must fit."""
    config, source = run.config, weights_to_evaluate(run)
    trained = checkpoint.recorded_setting(source, "TRAIN", "MULTI_LABEL")
    if trained not in (None, config.TRAIN.MULTI_LABEL):
        raise UserError(f"TRAIN.MULTI_LABEL={config.TRAIN.MULTI_LABEL}: {source} was trained with {trained}")
    model = _build_to_evaluate(config)
    return evaluate_weights(run, model, build_eval_loader(run, needs=target(config)), evaluation(run))


def weights_to_evaluate(run: Run) -> Path | str:
    """Return what -pretrained or -resume names; raise UserError without either."""
    source = run.resume_from or run.config.MODEL.PRETRAINED
    if source is None:
        raise UserError("-eval needs weights: -pretrained FILE, or a run or checkpoint directory")
    return source


def evaluate_weights(run: Run, model: nn.Layer, val_loader, evaluation: Evaluation) -> dict[str, float]:
    """Load the weights of -pretrained (or -resume), of which every tensor must fit, and evaluate them."""
    source = weights_to_evaluate(run)
    if run.dry_run:
        return {}
    report = checkpoint.load_weights(model, source, allow_unexpected=checkpoint.UNUSED_PROBE_NORM)
    run.log.say(str(report))
    scores = evaluate(evaluation, model, val_loader, run)
    run.log.record("eval", 0, scores)
    if not math.isfinite(scores["loss"]):
        raise UserError(
            f"{source}: the loss is {scores['loss']}; the model's outputs are not finite numbers on these images. "
            "Without -amp fp16 they may be; else take another checkpoint"
        )
    named = ", ".join(f"{_TITLES.get(name, name)} {value:.3f}" for name, value in scores.items())
    run.log.say(f"{named} on {len(val_loader.source):,} images{val_loader.source.limited_by}")
    return scores


def _build_to_evaluate(config) -> VisionTransformer:
    """Build the classifier with weights of MODEL.DTYPE, without those of another type in between.

    Raises:
        UserError: where Paddle cannot compute with them.
    """
    dtype = config.MODEL.DTYPE
    if dtype == "bfloat16" and not is_on_gpu():
        raise UserError("MODEL.DTYPE=bfloat16: Paddle computes with such weights on GPUs only; set it to float32")
    default = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        return build_transformer(config)
    finally:
        paddle.set_default_dtype(default)


def count_correct(logits: paddle.Tensor, labels: paddle.Tensor, ks: tuple[int, ...] = (1, 5)) -> list[paddle.Tensor]:
    """Count the images whose label is among the k highest logits, for each k; k is cut to the number of classes.

    Args:
        logits: [B, K].
        labels: [B] int64.

    Returns:
        One float32 scalar per k, on the device.
    """
    num_classes = logits.shape[-1]
    best = paddle.topk(logits, min(max(ks), num_classes), axis=-1)[1]  # [B, max k]
    hits = (best == labels.unsqueeze(-1)).astype("float32")
    return [hits[:, : min(k, num_classes)].sum() for k in ks]


def soft_cross_entropy(
    logits: paddle.Tensor, targets: paddle.Tensor, weights: paddle.Tensor | None = None
) -> paddle.Tensor:
    """Average cross-entropy of logits [B, K] against soft targets [B, K], in float32; weights [K] of the classes."""
    targets = targets if weights is None else targets * weights
    return -(targets * F.log_softmax(logits.astype("float32"), axis=-1)).sum(axis=-1).mean()
