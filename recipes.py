"""What pretraining, finetuning and linear probing are: model, loss, optimizer, evaluation, transforms.

This is the only module that knows the three modes. Each `build_*` returns an `task.Task`.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from PIL import Image

import augment
import checkpoint
import datasets
import distributed
import loading
import output_files
from basic_layers import ONE_IMAGE_ADVICE
from config import image_size_hw
from engine import evaluate, fit
from errors import UserError
from fast_jpeg import LazyJpeg
from mae import build_mae_pretrain
from metrics import count_correct
from mixup import Mixup, random_erase, smooth_one_hot, soft_cross_entropy
from optim import WeightAverage, build_optimizer, param_groups
from samplers import EvalSampler, TrainSampler
from sharding import ShardedOptimizer
from task import Run, Task
from transformer import VisionTransformer, build_transformer

# What a pretraining file holds and a classifier does not.
DECODER = ("mask_token", "decoder_position_embedding", "decoder.*", "decoder_pred.*", "linear_projection.*")
# Paddle 2.2 saved the probe's batch norm with an unused affine part.
UNUSED_PROBE_NORM = ("classifier.0.weight", "classifier.0.bias")
_FINETUNE_HEAD_STD, _PROBE_HEAD_STD = 2e-5, 0.01  # official code, over loaded weights


# ---- pretraining -------------------------------------------------------------------------------


def build_pretrain(run: Run) -> Task:
    """Build masked autoencoding (arXiv 2111.06377, Sec. 3 and Table 8)."""
    config = run.config
    paddle.seed(config.SEED)
    model = build_mae_pretrain(config)
    if config.MODEL.PRETRAINED and run.resume_from is None:
        run.log.say(str(checkpoint.load_weights(model, config.MODEL.PRETRAINED)))

    def loss(model: nn.Layer, batch: list, rng: np.random.Generator) -> paddle.Tensor:
        return model(batch[0])[0]  # the mask is drawn from Paddle's generator, which the engine seeds

    return Task("pretrain", model, _build_optimizer(model, config), loss, ema=_build_ema(model, config))


# ---- finetuning --------------------------------------------------------------------------------


def build_finetune(run: Run) -> Task:
    """Build end-to-end finetuning (Table 9): soft targets from mixup or label smoothing, layer-wise decay."""
    config = run.config
    model = _build_classifier(run)
    train = config.TRAIN
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

    def loss(model: nn.Layer, batch: list, rng: np.random.Generator) -> paddle.Tensor:
        images, labels = batch
        images = random_erase(images, rng, train.RANDOM_ERASE_PROB, train.RANDOM_ERASE_MODE, train.RANDOM_ERASE_COUNT)
        if mixup.prob > 0:
            images, targets = mixup(images, labels, rng)
        else:
            targets = smooth_one_hot(labels, config.MODEL.NUM_CLASSES, train.SMOOTHING)
        return soft_cross_entropy(model(images), targets)

    return Task(
        "finetune",
        model,
        _build_optimizer(model, config),
        loss,
        _evaluate_classifier,
        _CLASSIFIER_METRICS,
        ema=_build_ema(model, config),
    )


# ---- linear probe ------------------------------------------------------------------------------


def build_linearprobe(run: Run) -> Task:
    """Build linear probing (Table 10): batch norm without affine parameters and a linear layer, encoder frozen."""
    config = run.config
    model = _build_classifier(run)
    for parameter in model.parameters():
        parameter.stop_gradient = True
    for parameter in model.head.parameters():
        parameter.stop_gradient = False

    def loss(model: nn.Layer, batch: list, rng: np.random.Generator) -> paddle.Tensor:
        images, labels = batch
        return F.cross_entropy(model(images).astype("float32"), labels)

    return Task("linearprobe", model, _build_optimizer(model, config), loss, _evaluate_classifier, _CLASSIFIER_METRICS)


# ---- evaluation --------------------------------------------------------------------------------

_CLASSIFIER_METRICS = ("acc1", "acc5", "loss")


def evaluate_only(run: Run) -> dict[str, float]:
    """Evaluate the weights of -pretrained (or -resume) on the val split; every tensor must fit."""
    config = run.config
    source = run.resume_from or config.MODEL.PRETRAINED
    if source is None:
        raise UserError("-eval needs weights: -pretrained FILE, or a run or checkpoint directory")
    model = build_transformer(config)
    val_loader = build_eval_loader(run)
    if run.dry_run:
        return {}
    report = checkpoint.load_weights(model, source, allow_unexpected=UNUSED_PROBE_NORM)
    run.log.say(str(report))
    scores = evaluate(Task("eval", model, None, None, _evaluate_classifier, _CLASSIFIER_METRICS), val_loader, run)
    run.log.record("eval", 0, scores)
    if not math.isfinite(scores["loss"]):
        raise UserError(
            f"{source}: the loss is {scores['loss']}; the model's outputs are not finite numbers on these images. "
            "Without -amp fp16 they may be; else take another checkpoint"
        )
    run.log.say(
        f"Acc@1 {scores['acc1']:.3f}, Acc@5 {scores['acc5']:.3f}, loss {scores['loss']:.3f} "
        f"on {len(val_loader.source):,} images"
    )
    return scores


def _evaluate_classifier(model: nn.Layer, batch: list) -> list[paddle.Tensor]:
    images, labels = batch
    logits = model(images).astype("float32")
    top1, top5 = count_correct(logits, labels, (1, 5))
    loss = F.cross_entropy(logits, labels, reduction="sum")
    # Paddle's loss of an infinite logit is a number.
    loss = paddle.where(logits.isfinite().all(), loss, paddle.full_like(loss, float("nan")))
    return [top1 * 100.0, top5 * 100.0, loss]


# ---- modes -------------------------------------------------------------------------------------

BUILDERS = {"PRETRAIN": build_pretrain, "FINETUNE": build_finetune, "LINEARPROBE": build_linearprobe}


def train_or_evaluate(run: Run) -> dict[str, float]:
    """Do what the run asks for, and return its last metrics."""
    try:
        return _train_or_evaluate(run)
    finally:
        run.log.close()


def _train_or_evaluate(run: Run) -> dict[str, float]:
    if run.config.MODEL.NUM_CLASSES is None:
        follow_classes(run)
    if run.config.MODEL.TYPE != "PRETRAIN" and run.config.MODEL.NUM_CLASSES == 0:
        raise UserError("MODEL.NUM_CLASSES=0: an encoder without a head; set it to the number of classes in the data")
    if run.config.EVAL:
        return evaluate_only(run)
    train_loader = build_train_loader(run)
    if run.config.MODEL.TYPE == "LINEARPROBE":
        check_micro_steps(train_loader.sampler)
    eval_loader = None if run.config.MODEL.TYPE == "PRETRAIN" else build_eval_loader(run)
    return fit(BUILDERS[run.config.MODEL.TYPE](run), train_loader, eval_loader, run)


def check_micro_steps(sampler: TrainSampler) -> None:
    """Raise UserError if a rank would get a micro-step of one image, which a batch norm cannot normalise."""
    updates = {0, sampler.updates_per_epoch - 1}  # all but the last have the same sizes
    for rank in range(sampler.world_size):
        if any(1 in sampler.micro_sizes(update, rank) for update in updates):
            raise UserError(
                f"DATA.BATCH_SIZE={sampler.batch_size}: {sampler.num_images} images leave a micro-step of one image, "
                f"which the probe's batch norm cannot normalise; {ONE_IMAGE_ADVICE}"
            )


def follow_classes(run: Run) -> None:
    """Set MODEL.NUM_CLASSES, which is None, to the number of classes in the data; 0 where a run needs none."""
    config = run.config.clone()
    config.defrost()
    config.MODEL.NUM_CLASSES = 0
    if config.MODEL.TYPE != "PRETRAIN":
        config.MODEL.NUM_CLASSES = datasets.count_classes(_open_source(config, "val" if config.EVAL else "train"))
        run.log.say(f"MODEL.NUM_CLASSES: {config.MODEL.NUM_CLASSES}, as the data has")
    config.freeze()
    run.config = config
    if run.directory is not None and (run.resume_from is None or config.EVAL):
        output_files.write_text(run.directory / "config.yaml", config.dump())


# ---- parts -------------------------------------------------------------------------------------


def _build_optimizer(model: nn.Layer, config):
    train = config.TRAIN
    groups = param_groups(model, train.WEIGHT_DECAY, train.LAYER_DECAY)
    build = functools.partial(
        build_optimizer,
        train.OPTIMIZER.NAME,
        betas=train.OPTIMIZER.BETAS,
        eps=train.OPTIMIZER.EPS,
        weight_decay=train.WEIGHT_DECAY,
    )
    return ShardedOptimizer(build, groups) if train.SHARD_OPTIMIZER else build(groups)


def _build_ema(model: nn.Layer, config) -> WeightAverage | None:
    return WeightAverage(model, config.TRAIN.EMA_DECAY) if config.TRAIN.EMA_DECAY is not None else None


def _build_classifier(run: Run) -> VisionTransformer:
    """Build the classifier and load -pretrained; a head is kept where it fits, and drawn anew elsewhere."""
    config = run.config
    paddle.seed(config.SEED)
    model = build_transformer(config)
    if run.resume_from is not None:
        return model  # the engine restores all of it
    if not config.MODEL.PRETRAINED:
        run.log.say("warning: no -pretrained weights, so the encoder starts from its initialisation")
        return model
    head = [name for name in model.state_dict() if name.startswith("classifier.")]
    report = checkpoint.load_weights(
        model,
        config.MODEL.PRETRAINED,
        allow_missing=(*head, "encoder_norm.*"),
        allow_mismatched=head,
        # A pretrained encoder's last norm is replaced where the patches are pooled, as in the official code.
        allow_unexpected=(*DECODER, "classifier.*", "encoder.norm.*" if config.MODEL.GLOBAL_POOL else ""),
    )
    run.log.say(str(report))
    if set(head) & {*report.missing, *report.mismatched}:
        default = _PROBE_HEAD_STD if config.MODEL.TYPE == "LINEARPROBE" else _FINETUNE_HEAD_STD
        std = default if config.MODEL.HEAD_INIT_STD is None else config.MODEL.HEAD_INIT_STD
        nn.initializer.Normal(std=std)(model.head.weight)
        nn.initializer.Constant(0.0)(model.head.bias)
    return model


# ---- data --------------------------------------------------------------------------------------


def build_train_loader(run: Run) -> loading.Loader:
    """Open and check the train split."""
    config = run.config
    source = open_split(config, "train", run.log.say)
    accum_iter = config.TRAIN.ACCUM_ITER
    if accum_iter is None:
        per_step = config.DATA.BATCH_SIZE * distributed.world_size()
        accum_iter = max(1, round(config.TRAIN.TOTAL_BATCH_SIZE / per_step))
    sampler = TrainSampler(
        len(source),
        config.DATA.BATCH_SIZE,
        accum_iter,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        seed=config.SEED,
        drop_last=config.DATA.DROP_LAST,
        repeats=config.TRAIN.AUG_REPEATS,
    )
    return _loader(run, source, train_transform(config), sampler)


def build_eval_loader(run: Run) -> loading.Loader:
    """Open and check the val split."""
    config = run.config
    source = open_split(config, "val", run.log.say)
    batch_size = config.DATA.BATCH_SIZE_EVAL or config.DATA.BATCH_SIZE
    sampler = EvalSampler(len(source), batch_size, distributed.rank(), distributed.world_size())
    return _loader(run, source, eval_transform(config), sampler)


def train_transform(config) -> loading.Transform:
    """Return the train transform of the config's mode; random erasing is the loss's, see `build_finetune`."""
    size_hw, train, data = image_size_hw(config), config.TRAIN, config.DATA
    mode = config.MODEL.TYPE
    scale = train.CROP_SCALE or ([0.2, 1.0] if mode == "PRETRAIN" else [0.08, 1.0])
    crop = augment.random_resized_crop_tf if mode == "LINEARPROBE" else augment.random_resized_crop
    if mode == "FINETUNE" and data.IMAGE_CHANNELS not in (1, 3) and (train.RAND_AUGMENT or train.AUTO_AUGMENT):
        raise UserError(
            f"TRAIN.RAND_AUGMENT and TRAIN.AUTO_AUGMENT work on 1 or 3 channels; DATA.IMAGE_CHANNELS is "
            f"{data.IMAGE_CHANNELS}; set both False"
        )
    fill = tuple(round(255 * mean) for mean in data.IMAGENET_MEAN)
    fill = fill[0] if len(fill) == 1 else fill

    def pixels(image: Image.Image | LazyJpeg, rng: np.random.Generator) -> np.ndarray:
        image = augment.random_flip(crop(image, size_hw, rng, scale), rng, train.FLIP_PROB)
        if mode != "FINETUNE":
            return augment.as_pixels(image)
        image = augment.as_image(image)
        if train.AUTO_AUGMENT:
            image = augment.auto_augment(image, rng, fill)
        elif train.RAND_AUGMENT:
            image = augment.rand_augment(image, rng, train.RAND_AUGMENT_LAYERS, train.RAND_AUGMENT_MAGNITUDE, fill=fill)
        elif train.COLOR_JITTER > 0:
            image = augment.color_jitter(image, rng, train.COLOR_JITTER)
        return augment.as_pixels(image)

    return loading.Transform(pixels, data.IMAGENET_MEAN, data.IMAGENET_STD, takes_jpegs=True)


def eval_transform(config) -> loading.Transform:
    """Return the evaluation transform: resize, centre crop, normalise."""
    size_hw, data = image_size_hw(config), config.DATA
    crop_pct = data.CROP_PCT or (0.875 if max(size_hw) <= 224 else 1.0)  # official rule

    def pixels(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        return augment.as_pixels(augment.resize_and_center_crop(image, size_hw, crop_pct))

    return loading.Transform(pixels, data.IMAGENET_MEAN, data.IMAGENET_STD)


_NUM_TRIED = 8


def open_split(config, split: str, say: Callable[[str], None]) -> datasets.Images:
    """Open and check one split of a config's data set, and decode a few of its images; `say` gets what was found."""
    source, needs_labels = _open_source(config, split), config.MODEL.TYPE != "PRETRAIN"
    num_classes = config.MODEL.NUM_CLASSES if needs_labels else None
    for warning in datasets.check_source(source, num_classes=num_classes, channels=config.DATA.IMAGE_CHANNELS):
        say(f"warning: {warning}")
    problems = [loading.why_unreadable(source, i, config.DATA.IMAGE_CHANNELS) for i in _spread(len(source))]
    problems = [problem for problem in problems if problem]
    if problems and config.DATA.BAD_IMAGES == "error":
        raise UserError(problems[0] + loading.SKIP_ADVICE)
    for problem in problems:
        say(f"warning: {problem}")
    say(f"{split}: {datasets.describe_source(source)}")
    return source


def _open_source(config, split: str) -> datasets.Images:
    return datasets.open_source(
        config.DATA.DATASET,
        config.DATA.DATA_PATH,
        split,
        num_classes=config.MODEL.NUM_CLASSES,
        needs_labels=config.MODEL.TYPE != "PRETRAIN",
        synthetic_hw=image_size_hw(config),
        list_outside=config.DATA.LIST_OUTSIDE,
    )


def _spread(count: int) -> list[int]:
    """Choose some images of a data set to look at before all are needed."""
    return sorted(set(np.linspace(0, count - 1, _NUM_TRIED).astype(int).tolist()))


def _loader(run: Run, source, transform: loading.Transform, sampler) -> loading.Loader:
    data = run.config.DATA
    return loading.Loader(
        source,
        transform,
        sampler,
        channels=data.IMAGE_CHANNELS,
        seed=run.config.SEED,
        num_workers=data.NUM_WORKERS,
        upright=data.EXIF_TRANSPOSE,
        fast_decode=data.FAST_DECODE,
        bad_images=data.BAD_IMAGES,
        note_bad=run.bad_images.append,
    )
