"""Train and val loader of a run: the data set is opened, checked, and split into batches."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import datasets
import runtime
from config import image_size_hw, network_kind, replaced
from errors import UserError, one_name
from pipeline import array_source, decoding, loading, mask_check, name_lists, sources
from pipeline.samplers import EvalSampler, TrainSampler
from pipeline.transforms import Transform, eval_transform
from storage.clip_architecture import of_any_config
from storage.run_state import read_state
from training import device, memory
from training.run import Run
from training.task import ONE_PASS, Cost

_SMALLEST_BATCH, _UPDATES_PER_EPOCH = 8, 4  # when the batch size is fitted to few images
_USED_MEMORY = 0.8  # share that a fitted batch may take by the estimate, which was not measured on GPUs
_NUM_TRIED = 8  # images that are decoded before all are needed


def build_train_loader(
    run: Run,
    transform: Transform,
    target: str,
    prepare_source: Callable[[object, sources.Source], sources.Source] = lambda config, source: source,
    whole_batch: bool = False,
    stages: Sequence[tuple[int, Transform]] = (),
) -> loading.Loader:
    """Open and check the train split, and fit the batch of the run's configuration to it.

    Args:
        target: what each image must have, see `datasets.open_source`.
        prepare_source: returns what of the data set is trained on, see `methods.method.Method`.
        whole_batch: the loss is over all images of an update, so the batch is left as it is.
        stages: see `loading.Loader`.

    Raises:
        UserError: if the data set does not have it, or images cannot be read.
    """
    config = run.config
    source = open_split(run, "train", target)
    if target == "caption" and source.captions is None:
        raise UserError(f"{source.origin}: has no captions, which MODEL.TYPE {config.MODEL.TYPE} needs")
    source = prepare_source(config, source)
    if not whole_batch:
        config = fit_batch(config, len(source), run.log.say, _saved_images_per_update(run.resume_from))
        config = run.config = fit_memory(config, run.log.say, Cost(views=len(transform.views)))
    accum_iter = _accum_iter(config)
    sampler = TrainSampler(
        len(source),
        config.DATA.BATCH_SIZE,
        accum_iter,
        rank=runtime.rank(),
        world_size=runtime.world_size(),
        seed=config.SEED,
        drop_last=config.DATA.DROP_LAST,
        repeats=config.TRAIN.AUG_REPEATS,
        order=source.order,
    )
    options = {"fast_decode": config.DATA.FAST_DECODE, "with_captions": target == "caption", "stages": stages}
    return build_loader(config, source, transform, sampler, note_bad=run.bad_images.append, **options)


def _accum_iter(config) -> int:
    per_step = config.DATA.BATCH_SIZE * runtime.world_size()
    return config.TRAIN.ACCUM_ITER or max(1, round(config.TRAIN.TOTAL_BATCH_SIZE / per_step))


def _saved_images_per_update(resume_from: Path | None) -> int | None:
    return None if resume_from is None else read_state(resume_from).images_per_update


def fit_batch(config, num_images: int, say: Callable[[str], None], resumed: int | None = None):
    """Return a configuration with a smaller batch where DATA.BATCH_FIT asks for it: at least 4 updates an epoch.

    The learning rate of AdamW goes down with the square root of the batch (arXiv 2205.10287), others' with the batch.

    Args:
        resumed: images per update of the resumed run, which keeps them.
    """
    ranks, data = runtime.world_size(), config.DATA
    per_update = data.BATCH_SIZE * _accum_iter(config) * ranks
    is_wanted = data.BATCH_FIT == "auto" or (data.BATCH_FIT == "few" and num_images < per_update)
    fitting = max(_SMALLEST_BATCH, 2 ** int(math.log2(max(1, num_images / _UPDATES_PER_EPOCH / ranks))))
    if not is_wanted or fitting * ranks >= per_update or resumed == per_update:
        return config
    say(
        f"batch: {fitting} images per update and process instead of {per_update // ranks}, as there are "
        f"{num_images:,} images; -batch_size N keeps the size"
    )
    config = replaced(config, "DATA.BATCH_SIZE_EVAL", data.BATCH_SIZE_EVAL or data.BATCH_SIZE)
    # No larger micro-steps than the recipe's, which fit the memory.
    batch = next(size for size in range(min(fitting, data.BATCH_SIZE), 0, -1) if fitting % size == 0)
    config = replaced(replaced(config, "TRAIN.ACCUM_ITER", fitting // batch), "TRAIN.TOTAL_BATCH_SIZE", None)
    config = replaced(config, "DATA.DROP_LAST", False)
    if config.TRAIN.OPTIMIZER.NAME.startswith("AdamW") or config.TRAIN.OPTIMIZER.NAME == "Muon":
        config = replaced(config, "TRAIN.BASE_LR", config.TRAIN.BASE_LR * math.sqrt(per_update / (fitting * ranks)))
    return replaced(config, "DATA.BATCH_SIZE", batch)


def fit_memory(config, say: Callable[[str], None], cost: Cost = ONE_PASS):
    """Return a configuration with the micro-steps that memory is enough for where DATA.BATCH_FIT is auto.

    They are the largest on GPUs, and at most the recipe's on CPU, where larger ones are not faster. Each update has
    as many images as before.
    """
    there = device.memory_of_rank() if config.DATA.BATCH_FIT == "auto" else None
    if there is None:
        return config
    kind = "gpu" if device.is_on_gpu() else "cpu"
    old, images = config.DATA.BATCH_SIZE, config.DATA.BATCH_SIZE * _accum_iter(config)
    architecture = of_any_config(config, network_kind(config))
    options = {"device": kind, "ranks": runtime.world_size()}
    batch = memory.fitting_batch(architecture, config, images, _USED_MEMORY * there, cost, **options)
    if batch == old or (kind == "cpu" and batch > old):
        return config
    say(
        f"batch: {images // batch} micro-steps of {batch} images per update and process instead of {images // old} of "
        f"{old}, by an estimate for the {there / memory.GIB:,.0f} GiB of memory; -batch_size N keeps a size"
    )
    config = replaced(config, "DATA.BATCH_SIZE", batch)
    return config if batch * _accum_iter(config) == images else replaced(config, "TRAIN.ACCUM_ITER", images // batch)


def build_eval_loader(run: Run, config=None, needs: str = "label") -> loading.Loader:
    """Open and check the val split, whose images must have labels below MODEL.NUM_CLASSES.

    Args:
        config: names the data set; None: the run's own.
        needs: what each image must have, see `datasets.open_source`.
    """
    config = config or run.config
    source = open_split(run, "val", needs, config)
    batch_size = config.DATA.BATCH_SIZE_EVAL or config.DATA.BATCH_SIZE
    sampler = EvalSampler(len(source), batch_size, runtime.rank(), runtime.world_size())
    return build_loader(config, source, eval_transform(config), sampler, note_bad=run.bad_images.append)


def build_loader(
    config,
    source: sources.Source,
    transform: Transform,
    sampler: TrainSampler | EvalSampler,
    fast_decode: bool = False,
    note_bad: Callable[[str], None] = print,
    with_captions: bool = False,
    stages: Sequence[tuple[int, Transform]] = (),
) -> loading.Loader:
    """Build a loader with the settings of DATA and SEED; see `loading.Loader` for the arguments."""
    data = config.DATA
    return loading.Loader(
        source,
        transform,
        sampler,
        channels=data.IMAGE_CHANNELS,
        seed=config.SEED,
        num_workers=data.NUM_WORKERS,
        upright=data.EXIF_TRANSPOSE,
        fast_decode=fast_decode,
        bad_images=data.BAD_IMAGES,
        note_bad=note_bad,
        with_captions=with_captions,
        stages=stages,
    )


def open_source(config, split: str, needs: str) -> sources.Source:
    """Open one split of a configuration's data set, or what DATA.TRAIN_LIST or VAL_LIST chooses; reads no image.

    Args:
        needs: what each image must have, see `datasets.open_source`.
    """
    decoding.allow_pixels(config.DATA.MAX_PIXELS)
    decoding.allow_arrays(config.DATA.PIXELS == "array")
    source = datasets.open_source(
        config.DATA.DATASET,
        config.DATA.DATA_PATH,
        split,
        num_classes=config.MODEL.NUM_CLASSES,
        needs=needs,
        synthetic_hw=image_size_hw(config),
        list_outside=config.DATA.LIST_OUTSIDE,
        bad_images=config.DATA.BAD_IMAGES,
        class_names=config.DATA.CLASS_NAMES,
        val_split=config.DATA.VAL_SPLIT,
        val_fraction=config.DATA.VAL_FRACTION,
        val_seed=config.DATA.VAL_SEED,
        ignored=config.DATA.MASK_IGNORE,
        zero_is_other=config.DATA.MASK_ZERO_IS_OTHER,
    )
    key = f"{split.upper()}_LIST"
    return name_lists.limit(array_source.as_configured(config, source), split, config.DATA.get(key), f"DATA.{key}")


def open_once(run: Run, split: str, needs: str, config=None) -> sources.Source:
    """Return a split of the run's data set, or of that of another configuration; each is opened only once."""
    config = config or run.config
    key = (config.DATA.DATASET, config.DATA.DATA_PATH, split, needs)
    if key not in run.sources:
        run.sources[key] = open_source(config, split, needs)
    return run.sources[key]


def open_split(run: Run, split: str, needs: str, config=None) -> sources.Source:
    """Open and check one split, and decode a few of its images; see `open_once`."""
    source, config = open_once(run, split, needs, config), config or run.config
    channels, say = config.DATA.IMAGE_CHANNELS, run.log.say
    num_classes = config.MODEL.NUM_CLASSES if needs in sources.LABELLED else None
    for warning in source.check(num_classes=num_classes, channels=channels, is_val=split == "val"):
        say(f"warning: {one_name(warning)}")
    if needs == "mask":
        problems = mask_check.look_at_few(source, _spread(len(source)), channels, config.DATA.EXIF_TRANSPOSE)
    else:
        problems = [sources.why_unreadable(source, index, channels) for index in _spread(len(source))]
    for line in sources.describe_lost(source, _spread(len(source))):
        say(f"warning: {line}")
    problems = [problem for problem in problems if problem]
    if problems and config.DATA.BAD_IMAGES == "error":
        raise UserError(problems[0] + sources.SKIP_ADVICE)
    for problem in problems:
        say(f"warning: {problem}")
    say(f"{split}: {source.summary()}{source.limited_by}")
    return source


def _spread(count: int) -> list[int]:
    """Return the indices of a few images, evenly spread over a data set."""
    return sorted(set(np.linspace(0, count - 1, _NUM_TRIED).astype(int).tolist()))
