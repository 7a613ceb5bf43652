"""Masked autoencoding (arXiv 2111.06377, Sec. 3 and Table 8)."""

import dataclasses

import numpy as np
import paddle
from paddle import nn

import checkpoint
from errors import UserError
from layers.patches import patchify
from mae import MAEPretrain, build_mae_pretrain, num_visible
from methods import teachers
from methods.attention_distillation import AttentionDistillation, Matches
from methods.method import Method
from optim import param_groups
from pipeline.loading import Batch
from pipeline.transforms import Transform, crop_and_flip, train_transform
from training import resolution
from training.flops import forward_macs
from training.optimizers import configured_optimizer, weight_average
from training.run import Run
from training.task import Cost, Task

_CROP_SCALE = [0.2, 1.0]


def build(run: Run) -> Task:
    """Build the autoencoder and its loss."""
    config = run.config
    paddle.seed(config.SEED)
    model = network = build_mae_pretrain(config)
    model.has_missing = _has_missing(config)
    if config.MODEL.PRETRAINED and run.resume_from is None:
        run.log.say(str(checkpoint.load_weights(model, config.MODEL.PRETRAINED, adapt=config.MODEL.ADAPT_CHANNELS)))

    if config.DISTILL.TEACHER is not None:
        return _distilled(run, model)
    if config.DISTILL.EXTRA_BLOCK or config.DISTILL.DECODE_LAYER or config.DISTILL.STUDENT_SCORES:
        raise UserError("DISTILL.*: is set, but there is no teacher; name it with -teacher")

    logs_channels = model.has_missing and not config.TRAIN.TO_STATIC  # a static graph keeps no masks
    num_masks, all_stages = config.TRAIN.MASKS, resolution.stages(config)

    def loss(model: nn.Layer, batch: Batch, rng: np.random.Generator):
        # Masks are drawn from Paddle's generator, which the engine seeds; each view has its own.
        images = batch.images if len(batch.views) == 1 else paddle.concat(batch.views)
        if num_masks == 1:
            loss, pred, _ = model(images)
            return loss, channel_losses(network, images, pred) if logs_channels else {}
        num_patches = network.num_masked
        num_kept = num_visible(num_patches, network.mask_ratio)
        noise = complementary_noise(paddle.rand([len(images), num_patches]), num_masks, num_kept)
        return model(paddle.concat([images] * num_masks), noise=noise)[0], {}

    def begin_epoch(epoch: int) -> None:
        stage = all_stages[resolution.stage_at(all_stages, epoch)]
        network.use_stage(stage.grid_hw, stage.config.MODEL.MASK_RATIO)

    optimizer = configured_optimizer(config, param_groups(model, config.TRAIN.WEIGHT_DECAY, config.TRAIN.LAYER_DECAY))
    cost = Cost(views=config.TRAIN.VIEWS * num_masks)
    options = {"ema": weight_average(config, model), "can_be_traced": num_masks == 1, "begin_epoch": begin_epoch}
    return Task("pretrain", model, optimizer, loss, cost=cost, **options)


@paddle.no_grad()
def channel_losses(network: MAEPretrain, images: paddle.Tensor, pred: paddle.Tensor) -> dict[str, paddle.Tensor]:
    """Return the mean squared error of each channel over its known pixels that the last call predicted.

    A band that carries nothing shows at once. In the units of the loss.

    Args:
        images, pred: of that call.
    """
    images, valid = network.split_missing(images)
    patch_px = network.patch_embedding.patch_size
    target = patchify(images.astype("float32"), patch_px)
    if network.norm_pix_loss:
        mean, std = network.groups.statistics(target, valid)
        target = (target - mean) / std
    weight = network.groups.hidden(network.predicted.astype("float32"), patch_px)
    weight = weight if valid is None else weight * valid
    squares, channels = (pred.astype("float32") - target).square() * weight, network.architecture.channels
    sums, counts = (values.reshape([-1, channels]).sum(axis=0) for values in (squares, weight))
    means = sums / counts.clip(min=1.0)
    return {f"loss_channel_{channel}": means[channel] for channel in range(channels)}


def complementary_noise(noise: paddle.Tensor, num_masks: int, num_kept: int) -> paddle.Tensor:
    """Turn the noise of images into that of several masks, no two of which show the same patch.

    The first mask shows the K patches with the smallest noise, the second one the K after these, and so on.

    Args:
        noise: [B, N].
        num_masks: M.
        num_kept: K, at most N / M.

    Returns:
        [M * B, N], all images with the first mask, then all with the second, and so on.
    """
    ranks, num_patches = noise.argsort(axis=1).argsort(axis=1), noise.shape[1]
    shifted = [(ranks + (num_patches - mask * num_kept)) % num_patches for mask in range(num_masks)]
    return paddle.concat(shifted).astype("float32")


def _distilled(run: Run, student: MAEPretrain) -> Task:
    """Return the task of an autoencoder that follows a teacher."""
    config, distill = run.config, run.config.DISTILL
    if student.is_cross or student.predict_ratio is not None:
        raise UserError(
            "DISTILL.TEACHER: the student's decoder is the ordinary one, which predicts all hidden patches; leave "
            "MODEL.DECODER.KIND and MODEL.PREDICT_RATIO out"
        )
    for key, usual in (("VIEWS", 1), ("MASKS", 1), ("RESOLUTION", None)):
        if config.TRAIN[key] != usual:
            raise UserError(
                f"TRAIN.{key}={config.TRAIN[key]}: with a teacher there is one view, mask and size; set it to {usual}"
            )
    teacher = teachers.open_encoder(distill.TEACHER, config)
    matches = build_matches(distill, config.MODEL.ENCODER.DEPTH, len(teacher.network.encoder.layers))
    model = AttentionDistillation(student, teacher.network, matches, distill.MAP_HEADS)
    run.log.say(teacher.description)
    run.log.say(model.describe())

    def loss(model: nn.Layer, batch: Batch, rng: np.random.Generator):
        return model(batch.images)

    groups = param_groups(student, config.TRAIN.WEIGHT_DECAY, config.TRAIN.LAYER_DECAY)
    for part in filter(None, (model.extra, model.head_maps, model.hidden_maps)):
        groups += param_groups(part, config.TRAIN.WEIGHT_DECAY)
    visible = 1.0 - config.MODEL.MASK_RATIO
    return Task(
        "pretrain_distilled",
        model,
        configured_optimizer(config, groups),
        loss,
        saved=student,
        ema=weight_average(config, student),
        cost=Cost(other_macs=visible * forward_macs(teacher.network.architecture)),
        external_id=f"{teacher.sha256[:16]} ({model.describe()})",
    )


def build_matches(distill, depth: int, teacher_depth: int) -> Matches:
    """Return what a configuration's section DISTILL matches; by default the scores of both last layers.

    With DISTILL.EXTRA_BLOCK, the student's last layer is the extra one.

    Raises:
        UserError: if one list is longer than the other.
    """
    last = depth + bool(distill.EXTRA_BLOCK)
    scores = (distill.STUDENT_SCORES or [last], distill.TEACHER_SCORES or [teacher_depth])
    hidden = (distill.STUDENT_HIDDEN or [], distill.TEACHER_HIDDEN or [])
    for name, (own, other) in (("SCORES", scores), ("HIDDEN", hidden)):
        if len(own) != len(other) or not all(type(layer) is int for layer in (*own, *other)):
            raise UserError(
                f"DISTILL.STUDENT_{name}={own} and DISTILL.TEACHER_{name}={other}: must be lists of as many layers, by "
                "their numbers"
            )
    if any(layer > depth for layer in scores[0]) and not distill.EXTRA_BLOCK:
        raise UserError(f"DISTILL.STUDENT_SCORES={scores[0]}: the student has {depth} layers; see DISTILL.EXTRA_BLOCK")
    if distill.EXTRA_BLOCK and last not in scores[0]:
        raise UserError(f"DISTILL.EXTRA_BLOCK=True: DISTILL.STUDENT_SCORES={scores[0]} must name it, as layer {last}")
    pairs = [tuple(zip(*lists, strict=True)) for lists in (scores, hidden)]
    return Matches(*pairs, distill.SCORES_WEIGHT, distill.HIDDEN_WEIGHT)


def transform(config) -> Transform:
    """Return a random crop and a flip, and nothing else (Sec. 4.1 "Data augmentation"), for each of TRAIN.VIEWS."""
    views = [crop_and_flip(config, _CROP_SCALE)] * config.TRAIN.VIEWS
    return dataclasses.replace(train_transform(config, *views), keeps_missing=_has_missing(config))


def _has_missing(config) -> bool:
    """Return True if images may have missing pixels, which the loss leaves out; with a teacher they are means."""
    return config.DATA.PIXELS == "array" and config.DISTILL.TEACHER is None


METHOD = Method(
    "pretrain", build, transform, variant=lambda config: "" if config.DISTILL.TEACHER is None else "distilled"
)
