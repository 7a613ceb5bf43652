"""Semantic segmentation: a linear classifier of patches, on a frozen encoder or finetuned with it.

The frozen head is the linear evaluation of DINOv2 (arXiv 2304.07193, Sec. 7.4): its crops, windows and head. The
learning rate falls along a cosine, as DINOv3's, and the loss is over the pixels that have a class.
"""

import numpy as np
import paddle
from paddle import nn

import checkpoint
import runtime
from config import image_size_hw, replaced
from errors import UserError
from layers import across_ranks, cross_entropy
from methods import classifier, segmentation_scores, start
from methods.method import Method
from methods.segmentation_scores import confusion_matrix as confusion_matrix
from methods.segmentation_scores import scores as scores
from methods.segmenter import Segmenter, build_segmenter, segment, upsample
from optim import param_groups
from pipeline import mask_augment
from pipeline.loading import Batch
from pipeline.sources import Source
from pipeline.transforms import Transform
from pipeline.whole_images import WholeImages
from training import loaders
from training.optimizers import configured_optimizer, weight_average
from training.run import Run
from training.task import Cost, Evaluation, Task

TARGET = "mask"  # what each image needs
_HEAD_STD = 0.01


def build(run: Run) -> Task:
    """Build the network, and the loss over the pixels that have a class.

    Raises:
        UserError: for settings of classifiers that a segmenter cannot have.
    """
    config = run.config
    _check(config)
    if run.resume_from is not None and not _reads_alike(config, run.resume_from):
        raise UserError(f"SEG.LAYERS={config.SEG.LAYERS}: the resumed run has others")
    paddle.seed(config.SEED)
    model = build_segmenter(config)
    if start.has_weights_to_load(run):
        head = [name for name in model.state_dict() if name.startswith("classifier.")]
        upper = checkpoint.upper_blocks(config.MODEL.ENCODER.DEPTH, config.MODEL.PRETRAINED_BLOCKS)
        options = {"allow_missing": head, "allow_mismatched": head, "adapt": config.MODEL.ADAPT_CHANNELS}
        allowed = (*checkpoint.NAMES_BESIDE_ENCODER, *upper)
        report = checkpoint.load_weights(model, config.MODEL.PRETRAINED, allow_unexpected=allowed, **options)
        run.log.say(str(report))
        names = checkpoint.recorded_class_names(config.MODEL.PRETRAINED)
        is_new = any(name in (*report.missing, *report.mismatched) for name in head)
        is_other = None not in (names, config.DATA.CLASS_NAMES) and names != config.DATA.CLASS_NAMES
        if not is_new and (is_other or not _reads_alike(config, config.MODEL.PRETRAINED)):
            run.log.say("the head of these weights is for other classes or blocks, and is drawn at random")
            is_new = True
        if is_new:
            _draw_head(model)
    else:
        _draw_head(model)
    if config.SEG.FREEZE:
        _freeze(model)

    def loss(model: nn.Layer, batch: Batch, rng: np.random.Generator):
        logits = upsample(model(batch.images), batch.masks.shape[1:])
        return pixel_cross_entropy(logits, batch.masks, over_ranks=True), {}

    return Task(
        "segmentation",
        model,
        configured_optimizer(config, param_groups(model, config.TRAIN.WEIGHT_DECAY, config.TRAIN.LAYER_DECAY)),
        loss,
        evaluation=evaluation(run),
        ema=weight_average(config, model),
        cost=Cost(trained_blocks=_trained_blocks(config)),
    )


def _check(config) -> None:
    model, frozen = config.MODEL, config.SEG.FREEZE
    if model.GLOBAL_POOL:
        raise UserError("MODEL.GLOBAL_POOL=True: a segmenter reads each patch behind the last norm; set it to False")
    if not config.SEG.LAYERS or not all(type(number) is int for number in config.SEG.LAYERS):
        raise UserError(f"SEG.LAYERS={config.SEG.LAYERS}: must name at least one block by its number; -1 is the last")
    for key in ("DROPPATH", "DROPOUT", "ATTENTION_DROPOUT"):
        if frozen and model[key]:
            raise UserError(f"MODEL.{key}={model[key]}: SEG.FREEZE keeps the encoder as it is; set it to 0")
    scale = config.SEG.SCALE
    if len(scale) != 2 or not all(type(end) in (int, float) for end in scale) or not 0 < scale[0] <= scale[1] < 100:
        raise UserError(
            f"SEG.SCALE={config.SEG.SCALE}: must be two factors above 0 and below 100, the smaller one first"
        )


def transform(config) -> Transform:
    """Return crops, flips and colours of images with their masks, see `mask_augment`."""
    _check(config)
    return mask_augment.train_transform(config)


def check_classes(config, source: Source) -> Source:
    """Raise UserError if masks have more classes than MODEL.NUM_CLASSES; returns the source."""
    found, wanted = source.count_classes(), config.MODEL.NUM_CLASSES
    if found > wanted:
        raise UserError(f"MODEL.NUM_CLASSES={wanted}: the masks of {source.origin} have {found} classes")
    return source


def open_splits(config) -> tuple[Source, Source]:
    """Open train and val of a data set with masks for tools: a label stands for the same class in both.

    Raises:
        UserError: if val has classes that train has not.
    """
    train = loaders.open_source(config, "train", TARGET)
    val = loaders.open_source(replaced(config, "DATA.CLASS_NAMES", train.class_names), "val", TARGET)
    if val.count_classes() > train.count_classes():
        counts = f"{val.count_classes()} classes, and {train.origin} {train.count_classes()}"
        raise UserError(f"{val.origin}: has {counts}: name them in classes.txt or classes.json")
    return train, val


def _reads_alike(config, weights: str) -> bool:
    """Return True unless weights are known to be those of a segmenter that reads other blocks."""
    own, depth = checkpoint.recorded_setting(weights, "SEG", "LAYERS"), config.MODEL.ENCODER.DEPTH
    found = [[number % (depth + 1) for number in layers] for layers in (own or config.SEG.LAYERS, config.SEG.LAYERS)]
    return found[0] == found[1]


def _draw_head(model: Segmenter) -> None:
    nn.initializer.Normal(std=_HEAD_STD)(model.head.weight)
    nn.initializer.Constant(0.0)(model.head.bias)


def _freeze(model: Segmenter) -> None:
    """Leave the head alone to train."""
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = not name.startswith("classifier.")


def pixel_cross_entropy(logits: paddle.Tensor, labels: paddle.Tensor, over_ranks: bool = False) -> paddle.Tensor:
    """Average the cross-entropy of logits [B, K, H, W] over the pixels that have a label; 0 if none has.

    Args:
        labels: [B, H, W] integers, negative where there is none.
        over_ranks: divide by the mean number of such pixels over all ranks, so that the mean over the ranks' losses is
            that over all their pixels.
    """
    labels = labels.astype("int64")
    losses = cross_entropy.pixel_cross_entropy(logits.astype("float32"), labels.clip(min=0))
    weights = (labels >= 0).astype("float32")
    count = weights.sum()
    if over_ranks and runtime.world_size() > 1:
        count = across_ranks.sum_over_ranks(count) / runtime.world_size()
    return (losses * weights).sum() / count.clip(min=1.0)


class SegmentationEvaluator:
    """Counts the pixels of a split by truth and prediction, over all ranks.

    Args:
        run: gets a note on classes that do not occur.
    """

    def __init__(self, run: Run):
        self._run, self._config, self._said = run, run.config, False
        num_classes = run.config.MODEL.NUM_CLASSES
        self.counts = np.zeros((num_classes, num_classes + 1), np.int64)

    def evaluation(self) -> Evaluation:
        """Return mIoU, accuracies and loss; the best checkpoint has the largest mIoU."""
        return Evaluation(("loss",), self._measure, ("miou", "max"), self._begin, self._summarise)

    def _begin(self) -> None:
        self.counts[:] = 0

    def _measure(self, model: nn.Layer, batch: Batch) -> list[paddle.Tensor]:
        """Count the pixels of one whole image; return its loss."""
        logits = segment(model, batch.images[0], image_size_hw(self._config), self._config.SEG.STRIDE)
        logits = upsample(logits.unsqueeze(0), batch.masks.shape[1:])
        truth, predicted = batch.masks.numpy(), logits.argmax(axis=1).numpy()
        self.counts += segmentation_scores.confusion(truth, predicted, len(self.counts))
        return [pixel_cross_entropy(logits, batch.masks)]

    def _summarise(self, means: dict[str, float]) -> dict[str, float]:
        total = across_ranks.sum_across_ranks(self.counts.astype(np.float64)).astype(np.int64)  # exact below 2**53
        if not total.any():
            raise UserError("no pixel of the val split has a class; is DATA.MASK_IGNORE right?")
        absent = int((total.sum(axis=1) == 0).sum())
        if absent and not self._said:
            self._said = True
            self._run.log.say(
                f"{absent} of {len(total)} classes have no pixel in the val split; mIoU is over the others"
            )
        return segmentation_scores.means(total) | means


def evaluation(run: Run) -> Evaluation:
    """Return how the run's network is evaluated."""
    return SegmentationEvaluator(run).evaluation()


def build_eval_loader(run: Run) -> WholeImages:
    """Open the val split."""
    source = check_classes(run.config, loaders.open_split(run, "val", TARGET))
    own = range(runtime.rank(), len(source), runtime.world_size())
    return WholeImages(run.config, source, run.bad_images.append, own)


def evaluate_only(run: Run) -> dict[str, float]:
    """Evaluate the weights of -pretrained (or -resume) on the val split; every tensor must fit."""
    _check(run.config)
    weights = classifier.weights_to_evaluate(run)
    if not _reads_alike(run.config, weights):
        trained = checkpoint.recorded_setting(weights, "SEG", "LAYERS")
        raise UserError(f"SEG.LAYERS={run.config.SEG.LAYERS}: {weights} was trained with {trained}")
    return classifier.evaluate_weights(run, build_segmenter(run.config), build_eval_loader(run), evaluation(run))


def _trained_blocks(config) -> int:
    return 0 if config.SEG.FREEZE else config.MODEL.ENCODER.DEPTH


METHOD = Method(
    "finetune",
    build,
    transform,
    prepare_source=check_classes,
    target=lambda config: TARGET,
    evaluate=evaluate_only,
    build_eval_loader=build_eval_loader,
    trained_blocks=_trained_blocks,
    variant=lambda config: "frozen" if config.SEG.FREEZE else "",
)
