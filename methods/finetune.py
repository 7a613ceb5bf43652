"""End-to-end finetuning (Table 9): soft targets from mixup or label smoothing, layer-wise learning rates."""

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from PIL import Image

from config import image_size_hw
from errors import UserError
from layers.cross_entropy import mean_cross_entropy
from layers.lora import Adapters
from methods import classifier, multi_label, teachers
from methods.class_balance import balance, class_weights
from methods.classifier import build_classifier, soft_cross_entropy
from methods.method import Method
from optim import param_groups
from pipeline import augment
from pipeline.fast_jpeg import LazyJpeg
from pipeline.loading import Batch
from pipeline.mixup import Mixup, random_erase, smooth_one_hot
from pipeline.transforms import Transform, crop_and_flip, then_turn, train_transform
from training.optimizers import configured_optimizer, weight_average
from training.run import Run
from training.task import Cost, Task
from transformer import VisionTransformer

_HEAD_STD = 2e-5  # official code, over loaded weights
_CROP_SCALE = [0.08, 1.0]


def build(run: Run) -> Task:
    """Build the classifier, and the loss on mixed images."""
    config, train = run.config, run.config.TRAIN
    model = build_classifier(run, _HEAD_STD)
    freeze_blocks(model, train.FREEZE_BLOCKS)
    adapted = add_adapters(model, train) if train.LORA_RANK else None
    teacher, weights = _open_teacher(run), class_weights(run)
    soft_loss = multi_label.binary_cross_entropy if train.MULTI_LABEL else soft_cross_entropy
    mixup = Mixup(
        config.MODEL.NUM_CLASSES,
        train.MIXUP_ALPHA,
        train.CUTMIX_ALPHA,
        train.CUTMIX_MINMAX,
        train.MIXUP_PROB,
        train.MIXUP_SWITCH_PROB,
        train.MIXUP_MODE,
        train.SMOOTHING,
    )

    def loss(model: nn.Layer, batch: Batch, rng: np.random.Generator):
        erase = (train.RANDOM_ERASE_PROB, train.RANDOM_ERASE_MODE, train.RANDOM_ERASE_COUNT)
        images = random_erase(batch.images, rng, *erase)
        if mixup.prob > 0:
            images, targets = mixup(images, batch.labels, rng)
        else:
            targets = smooth_one_hot(batch.labels, config.MODEL.NUM_CLASSES, train.SMOOTHING)
        if teacher is None:
            return soft_loss(model(images), targets, weights), {}
        return distilled_loss(model(images), targets, teacher.logits(images), config.DISTILL, weights)

    groups = param_groups(model, train.WEIGHT_DECAY, train.LAYER_DECAY)
    if adapted is not None:
        groups += param_groups(adapted.adapters, train.WEIGHT_DECAY)
    return Task(
        "finetune" if teacher is None else "finetune_distilled",
        model if adapted is None else adapted,
        configured_optimizer(config, groups),
        loss,
        saved=model,
        merged=dict if adapted is None else adapted.adapters.merged,
        evaluation=classifier.evaluation(run),
        ema=weight_average(config, model),
        can_be_traced=teacher is None and adapted is None,
        external_id=None if teacher is None else teacher.sha256,
        cost=Cost(trained_blocks=_trained_blocks(config)),
    )


def freeze_blocks(model: VisionTransformer, count: int) -> None:
    """Exclude the embeddings and the first blocks from training; 0 leaves all as it is.

    Raises:
        UserError: if the encoder has fewer blocks.
    """
    depth = len(model.encoder.layers)
    if count > depth:
        raise UserError(f"TRAIN.FREEZE_BLOCKS={count}: the encoder has {depth} blocks")
    for name, parameter in model.named_parameters():
        if count and model.layer_index(name) <= count:
            parameter.stop_gradient = True


class AdaptedClassifier(nn.Layer):
    """A classifier whose encoder is frozen but for low-rank adapters.

    Args:
        network: its head, and norms behind the last block, train.
        adapters: of the network's blocks.
    """

    def __init__(self, network: VisionTransformer, adapters: Adapters):
        super().__init__()
        self.network, self.adapters = network, adapters

    def forward(self, images: paddle.Tensor) -> paddle.Tensor | tuple[paddle.Tensor, paddle.Tensor]:
        """Classify images [B, C, H, W]."""
        return self.network(images)


def add_adapters(model: VisionTransformer, train) -> AdaptedClassifier:
    """Freeze the encoder, and add adapters of TRAIN.LORA_RANK to the blocks that TRAIN.FREEZE_BLOCKS leaves.

    Raises:
        UserError: with TRAIN.EMA_DECAY, as weights are averaged by name.
    """
    if train.EMA_DECAY is not None:
        raise UserError(f"TRAIN.EMA_DECAY={train.EMA_DECAY}: adapters are not averaged; set it to None")
    layers = model.encoder.layers
    freeze_blocks(model, len(layers))
    attentions = {number: layers[number].attn for number in range(train.FREEZE_BLOCKS, len(layers))}
    return AdaptedClassifier(model, Adapters(attentions, train.LORA_RANK))


def _trained_blocks(config) -> int | None:
    frozen = config.TRAIN.FREEZE_BLOCKS
    return config.MODEL.ENCODER.DEPTH - frozen if frozen else None


def _open_teacher(run: Run) -> teachers.Teacher | None:
    config = run.config
    if config.DISTILL.TEACHER is None:
        if config.MODEL.DISTILL_HEAD:
            raise UserError(
                "MODEL.DISTILL_HEAD=True: the second classifier learns from a teacher; name it with -teacher"
            )
        return None
    if config.TRAIN.MULTI_LABEL:
        raise UserError("-teacher: is for one label per image; with TRAIN.MULTI_LABEL train without it")
    teacher = teachers.open_classifier(config.DISTILL.TEACHER, config)
    run.log.say(teacher.description)
    reader = "the second classifier, on the class token," if config.MODEL.DISTILL_HEAD else "the classifier"
    run.log.say(f"{config.DISTILL.KIND} distillation: {reader} follows the teacher, weight {config.DISTILL.ALPHA:g}")
    return teacher


def distilled_loss(
    outputs: paddle.Tensor | tuple[paddle.Tensor, paddle.Tensor],
    targets: paddle.Tensor,
    teacher_logits: paddle.Tensor,
    distill,
    weights: paddle.Tensor | None = None,
) -> tuple[paddle.Tensor, dict[str, paddle.Tensor]]:
    """Return the loss of DeiT's distillation (arXiv 2012.12877, Sec. 4), and its parts.

    Args:
        outputs: logits [B, K] of the one classifier, or of both.
        targets: [B, K], soft.
        teacher_logits: [B, K].
        distill: KIND hard (the teacher's class is the target) or soft (Kullback-Leibler divergence at TEMPERATURE,
            times its square, over all B K elements, as in DeiT's code); ALPHA, the weight of this part.
        weights: [K], of the classes in the part of the labels.
    """
    logits, distilled = outputs if isinstance(outputs, tuple) else (outputs, outputs)
    distilled, teacher_logits = distilled.astype("float32"), teacher_logits.astype("float32")
    own = soft_cross_entropy(logits, targets, weights)
    if distill.KIND == "hard":
        follows = mean_cross_entropy(distilled, teacher_logits.argmax(axis=-1))
    else:
        wanted = F.log_softmax(teacher_logits / distill.TEMPERATURE, axis=-1)
        difference = wanted - F.log_softmax(distilled / distill.TEMPERATURE, axis=-1)
        follows = (wanted.exp() * difference).mean() * distill.TEMPERATURE**2
    loss = (1 - distill.ALPHA) * own + distill.ALPHA * follows
    return loss, {"loss_labels": own, "loss_teacher": follows}


def transform(config) -> Transform:
    """Return a random crop, a flip, and RandAugment, AutoAugment or colour jitter; random erasing is in the loss."""
    size_hw, train, channels = image_size_hw(config), config.TRAIN, config.DATA.IMAGE_CHANNELS
    scale = train.CROP_SCALE or _CROP_SCALE
    changes_colours = train.RAND_AUGMENT or train.AUTO_AUGMENT or train.COLOR_JITTER > 0
    if config.DATA.PIXELS == "array":
        if changes_colours:
            raise UserError(
                "TRAIN.RAND_AUGMENT, AUTO_AUGMENT and COLOR_JITTER are for photos, and DATA.PIXELS is array: set them "
                "False, False and 0; TRAIN.CHANNEL_GAIN, VERTICAL_FLIP_PROB and ROTATE_90 are for arrays, too"
            )
        return train_transform(config, crop_and_flip(config, _CROP_SCALE))
    if channels not in (1, 3) and (train.RAND_AUGMENT or train.AUTO_AUGMENT):
        raise UserError(
            f"TRAIN.RAND_AUGMENT and TRAIN.AUTO_AUGMENT work on 1 or 3 channels; DATA.IMAGE_CHANNELS is {channels}; "
            "set both False"
        )
    fill = tuple(round(255 * mean) for mean in config.DATA.IMAGENET_MEAN)
    fill = fill[0] if len(fill) == 1 else fill

    def view(image: Image.Image | LazyJpeg, rng: np.random.Generator) -> np.ndarray:
        image = augment.random_resized_crop(image, size_hw, rng, scale)
        image = augment.as_image(augment.random_flip(image, rng, train.FLIP_PROB))
        if train.AUTO_AUGMENT:
            image = augment.auto_augment(image, rng, fill)
        elif train.RAND_AUGMENT:
            image = augment.rand_augment(image, rng, train.RAND_AUGMENT_LAYERS, train.RAND_AUGMENT_MAGNITUDE, fill=fill)
        elif train.COLOR_JITTER > 0:
            image = augment.color_jitter(image, rng, train.COLOR_JITTER)
        return augment.as_pixels(image)

    return train_transform(config, then_turn(config, view))


def _variant(config) -> str:
    kinds = {"distilled": config.DISTILL.TEACHER is not None, "lora": config.TRAIN.LORA_RANK > 0}
    return "_".join(kind for kind, is_on in kinds.items() if is_on)


METHOD = Method(
    "finetune",
    build,
    transform,
    target=classifier.target,
    evaluate=classifier.evaluate_only,
    prepare_source=balance,
    trained_blocks=_trained_blocks,
    variant=_variant,
)
