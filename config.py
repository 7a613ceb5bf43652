"""Configuration: defaults, YAML files with BASE, KEY VALUE overrides, validation. No Paddle here.

    config = get_config("configs/vit_base_patch16_224_finetune.yaml", ["TRAIN.NUM_EPOCHS", "50"])

The order is defaults < BASE files < file < overrides. The result is a frozen yacs node. Keys that
PaddleViT's MAE has keep their names and their meaning; a comment marks what is new.
"""

import math
import resource
from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from errors import UserError
from strict_config import Merger

_C = CfgNode()
_C.BASE = [""]  # YAML files to load first, relative to the file that names them

_C.DATA = CfgNode()
_C.DATA.BATCH_SIZE = 256  # images per process and micro-step
_C.DATA.BATCH_SIZE_EVAL = None  # None: BATCH_SIZE
_C.DATA.DATA_PATH = "/dataset/imagenet/"
_C.DATA.DATASET = "imagenet2012"  # one of DATASETS
_C.DATA.IMAGE_SIZE = 224  # pixels: side, or [height, width]
_C.DATA.IMAGE_CHANNELS = 3  # 1: grey, 3: RGB, 4: RGBA
_C.DATA.CROP_PCT = None  # evaluation: share of the resized side that is kept; None: 0.875 up to 224 px, then 1.0
_C.DATA.NUM_WORKERS = 4  # loader processes per process; 0: load in the training process
_C.DATA.IMAGENET_MEAN = [0.485, 0.456, 0.406]  # per channel, of pixels in [0, 1]
_C.DATA.IMAGENET_STD = [0.229, 0.224, 0.225]
_C.DATA.LIST_OUTSIDE = False  # new: list files may name files outside DATA_PATH
_C.DATA.BAD_IMAGES = "error"  # new: error | skip those that cannot be read, and list them in the run directory
_C.DATA.FAST_DECODE = False  # new: decode training JPEGs by simplejpeg and OpenCV, with slightly other pixels
_C.DATA.DROP_LAST = False  # new: True drops the images that do not fill an epoch's last update; False: a small step
_C.DATA.EXIF_TRANSPOSE = True  # new: turn photos as their EXIF note says; the official code does not

_C.MODEL = CfgNode()
_C.MODEL.TYPE = "PRETRAIN"  # PRETRAIN | FINETUNE | LINEARPROBE
_C.MODEL.NAME = "MAE"
_C.MODEL.RESUME = None  # checkpoint or run directory to continue, or "auto"
_C.MODEL.PRETRAINED = None  # weights to start from
_C.MODEL.NUM_CLASSES = 1000  # new: 0 builds the encoder alone, from Python; None: as many as the data has
_C.MODEL.DROPOUT = 0.0
_C.MODEL.DROPPATH = 0.0  # of the last block; grows linearly from 0 at the first
_C.MODEL.ATTENTION_DROPOUT = 0.0
_C.MODEL.GLOBAL_POOL = False  # classifier reads the mean patch token instead of the class token
_C.MODEL.PATCH_SIZE = 16  # pixels
_C.MODEL.MLP_RATIO = 4.0
_C.MODEL.QKV_BIAS = True
_C.MODEL.MASK_RATIO = 0.75
_C.MODEL.NORM_PIX_LOSS = True  # reconstruct pixels normalised per patch
_C.MODEL.HEAD_INIT_STD = None  # new: head over loaded weights; None: 2e-5 to finetune, 0.01 to probe
_C.MODEL.ENCODER = CfgNode()
_C.MODEL.ENCODER.DEPTH = 12
_C.MODEL.ENCODER.EMBED_DIM = 768
_C.MODEL.ENCODER.NUM_HEADS = 12
_C.MODEL.DECODER = CfgNode()
_C.MODEL.DECODER.DEPTH = 8
_C.MODEL.DECODER.EMBED_DIM = 512
_C.MODEL.DECODER.NUM_HEADS = 16

_C.TRAIN = CfgNode()
_C.TRAIN.LAST_EPOCH = 0  # epochs that count as done already
_C.TRAIN.NUM_EPOCHS = 800  # 0 saves the initial weights
_C.TRAIN.WARMUP_EPOCHS = 40
_C.TRAIN.WEIGHT_DECAY = 0.05
_C.TRAIN.BASE_LR = 1.5e-4  # for LINEAR_SCALED_LR images per update
_C.TRAIN.WARMUP_START_LR = 0.0  # not scaled by the batch
_C.TRAIN.END_LR = 0.0  # not scaled by the batch
_C.TRAIN.GRAD_CLIP = None  # largest global gradient norm
_C.TRAIN.NONFINITE = "stop"  # new: stop | skip the update, if loss or gradient is infinite or not a number
_C.TRAIN.MAX_SKIPS = 10  # new: updates in a row that NONFINITE skip may leave out
_C.TRAIN.ACCUM_ITER = 1  # micro-steps per update; new: None takes what TOTAL_BATCH_SIZE needs
_C.TRAIN.LINEAR_SCALED_LR = 256  # peak lr = BASE_LR * images per update / this
_C.TRAIN.TOTAL_BATCH_SIZE = None  # new: images per update that the recipe was tuned for; another number warns
_C.TRAIN.LAYER_DECAY = None  # lr factor from a layer to the one below
_C.TRAIN.EMA_DECAY = None  # new: keep and evaluate an average of the weights
_C.TRAIN.OPTIMIZER = CfgNode()
_C.TRAIN.OPTIMIZER.NAME = "AdamW"  # AdamW | LARS; PaddleViT's AdamWDL is AdamW with LAYER_DECAY
_C.TRAIN.OPTIMIZER.EPS = 1e-8
_C.TRAIN.OPTIMIZER.BETAS = [0.9, 0.95]
_C.TRAIN.CROP_SCALE = None  # new: area of a random crop; None: [0.2, 1] to pretrain, else [0.08, 1]
_C.TRAIN.FLIP_PROB = 0.5  # new
_C.TRAIN.SMOOTHING = 0.1
_C.TRAIN.COLOR_JITTER = 0.0  # strength; used where neither AUTO_AUGMENT nor RAND_AUGMENT is
_C.TRAIN.RECOMPUTE = False  # new: less memory and more time: blocks are computed again in the backward pass
_C.TRAIN.SHARD_OPTIMIZER = False  # new: share the optimizer's state out among the ranks (ZeRO stage 1)
_C.TRAIN.BF16_ALLREDUCE = False  # new: send gradients between ranks as bfloat16
_C.TRAIN.TO_STATIC = False  # new: True | "cinn": train on a static graph, where Paddle can make one
_C.TRAIN.AUG_REPEATS = 1  # new: draw an epoch's images from a part of the set, each so often, augmented anew
_C.TRAIN.AUTO_AUGMENT = False  # takes the place of RAND_AUGMENT
_C.TRAIN.RAND_AUGMENT = True
_C.TRAIN.RAND_AUGMENT_LAYERS = 2
_C.TRAIN.RAND_AUGMENT_MAGNITUDE = 9  # of 10
_C.TRAIN.MIXUP_ALPHA = 0.8
_C.TRAIN.MIXUP_PROB = 1.0  # of mixup or cutmix
_C.TRAIN.MIXUP_SWITCH_PROB = 0.5  # of cutmix where both are on
_C.TRAIN.MIXUP_MODE = "batch"  # batch | pair | elem
_C.TRAIN.CUTMIX_ALPHA = 1.0
_C.TRAIN.CUTMIX_MINMAX = None  # [smallest, largest] side of the box as a share of the image
_C.TRAIN.RANDOM_ERASE_PROB = 0.25
_C.TRAIN.RANDOM_ERASE_MODE = "pixel"  # pixel | rand | const
_C.TRAIN.RANDOM_ERASE_COUNT = 1
_C.TRAIN.RANDOM_ERASE_SPLIT = False  # accepted for old files; there are no augmentation splits here

_C.SAVE = "./output"  # runs go to SAVE/<mode>-<time>
_C.RUN = ""  # new: name of the run's directory below SAVE instead of <mode>-<time>
_C.SAVE_FREQ = 10  # epochs
_C.SAVE_FREQ_STEPS = None  # new: save every this many updates, too
_C.SAVE_EVERY_MINUTES = None  # new: save when so much time has passed since the last checkpoint, too
_C.KEEP_LAST = 3  # new: checkpoints kept, besides the best
_C.REPORT_FREQ = 20  # updates
_C.VALIDATE_FREQ = 1  # epochs
_C.SEED = 0
_C.DETERMINISTIC = False  # new: on GPU, the slower algorithms that give the same bits each time; on CPU all do
_C.EVAL = False
_C.AMP = False  # False | True or "fp16" | "bf16"
_C.REPORT = True  # new: write report.html into the run directory when the run ends
_C.VISUALDL = False  # new: write VisualDL scalars into the run directory

DATASETS = (
    *("imagenet2012", "folder", "cifar10", "cifar100", "digits", "synthetic"),
    *("flowers102", "pets", "cars", "aircraft", "inat2017", "inat2018", "inat2019", "places205", "places365"),
)
MODES = ("PRETRAIN", "FINETUNE", "LINEARPROBE")
OPTIMIZERS = ("AdamW", "AdamWDL", "LARS")

_ALTERNATIVE_TYPES = {  # where the default's own type does not say it all
    "DATA.BATCH_SIZE_EVAL": (int, None),
    "DATA.IMAGE_SIZE": (int, list),
    "DATA.CROP_PCT": (float, None),
    "MODEL.NUM_CLASSES": (int, None),
    "MODEL.RESUME": (str, None),
    "MODEL.PRETRAINED": (str, None),
    "MODEL.HEAD_INIT_STD": (float, None),
    "TRAIN.GRAD_CLIP": (float, None),
    "TRAIN.ACCUM_ITER": (int, None),
    "TRAIN.TOTAL_BATCH_SIZE": (int, None),
    "TRAIN.LAYER_DECAY": (float, None),
    "TRAIN.EMA_DECAY": (float, None),
    "TRAIN.CROP_SCALE": (list, None),
    "TRAIN.CUTMIX_MINMAX": (list, None),
    "TRAIN.TO_STATIC": (bool, str),
    "SAVE_FREQ_STEPS": (int, None),
    "SAVE_EVERY_MINUTES": (float, None),
    "AMP": (bool, str),
}


def get_config(cfg_file: str | Path | None = None, opts: Sequence[object] | None = None) -> CfgNode:
    """Merge defaults, a YAML file and overrides, check the result, and freeze it.

    Args:
        cfg_file: a .yaml file, which may name BASE files.
        opts: flat list `[KEY, VALUE, KEY, VALUE, ...]`; text values are read as Python literals.

    Raises:
        UserError: (a ValueError) naming the key and the value, if a key is unknown, or a value has the
            wrong type or is impossible.
    """
    config, merger = _C.clone(), Merger(_C, _ALTERNATIVE_TYPES)
    if cfg_file is not None:
        merger.merge_file(config, Path(cfg_file))
    opts = list(opts or [])
    if len(opts) % 2:
        raise UserError(f"-opts takes KEY VALUE pairs, but got {len(opts)} words: {' '.join(map(str, opts))}")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        merger.set(config, str(key), value, source="-opts")
    _validate(config)
    config.freeze()
    return config


def image_size_hw(config: CfgNode) -> tuple[int, int]:
    """Return DATA.IMAGE_SIZE as (height, width) in pixels."""
    size = config.DATA.IMAGE_SIZE
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def amp_dtype(config: CfgNode) -> str | None:
    """Return the low precision that AMP asks for ("float16", "bfloat16"), or None for float32."""
    if config.AMP is False:
        return None
    return "bfloat16" if config.AMP == "bf16" else "float16"


def _validate(config: CfgNode) -> None:
    def require(holds: bool, key: str, what: str) -> None:
        if not holds:
            value = config
            for part in key.split("."):
                value = value[part]
            raise UserError(f"{key}={value!r}: {what}")

    _check_bounds(config, require)
    _check_top(config, require)
    _check_data(config.DATA, require)
    _check_model(config, require)
    _check_train(config.TRAIN, require)


# Numbers above these are mistakes, and would take memory or time without end.
_LARGEST = {
    "DATA.BATCH_SIZE": 1_000_000,
    "DATA.BATCH_SIZE_EVAL": 1_000_000,
    "DATA.NUM_WORKERS": 1024,
    "MODEL.NUM_CLASSES": 10_000_000,
    "MODEL.PATCH_SIZE": 4096,
    "MODEL.MLP_RATIO": 64,
    "MODEL.HEAD_INIT_STD": 100,
    **{f"MODEL.{part}.DEPTH": 1000 for part in ("ENCODER", "DECODER")},
    **{f"MODEL.{part}.EMBED_DIM": 65_536 for part in ("ENCODER", "DECODER")},
    **{f"MODEL.{part}.NUM_HEADS": 4096 for part in ("ENCODER", "DECODER")},
    **{f"TRAIN.{key}": 1_000_000 for key in ("NUM_EPOCHS", "LAST_EPOCH", "WARMUP_EPOCHS", "ACCUM_ITER", "MAX_SKIPS")},
    **{f"TRAIN.{key}": 1e6 for key in ("BASE_LR", "WARMUP_START_LR", "END_LR", "WEIGHT_DECAY", "COLOR_JITTER")},
    **{f"TRAIN.{key}": 1e6 for key in ("MIXUP_ALPHA", "CUTMIX_ALPHA")},
    "TRAIN.TOTAL_BATCH_SIZE": 100_000_000,
    "TRAIN.LINEAR_SCALED_LR": 100_000_000,
    "TRAIN.AUG_REPEATS": 1000,
    "TRAIN.RAND_AUGMENT_LAYERS": 100,
    "TRAIN.RAND_AUGMENT_MAGNITUDE": 100,
    "TRAIN.RANDOM_ERASE_COUNT": 1000,
    "SAVE_FREQ": 1_000_000_000,
    "SAVE_FREQ_STEPS": 1_000_000_000,
    "SAVE_EVERY_MINUTES": 1_000_000,
    "KEEP_LAST": 1_000_000,
    "REPORT_FREQ": 1_000_000_000,
    "VALIDATE_FREQ": 1_000_000_000,
}
_LARGEST_IMAGE_PX = 1 << 26  # in all
_MOST_PATCHES = 1 << 16


def _check_bounds(config: CfgNode, require) -> None:
    for key, largest in _LARGEST.items():
        value = config
        for part in key.split("."):
            value = value[part]
        require(value is None or value <= largest, key, f"must be at most {largest:,}")
    sides = config.DATA.IMAGE_SIZE if isinstance(config.DATA.IMAGE_SIZE, list) else [config.DATA.IMAGE_SIZE] * 2
    is_small = all(isinstance(side, int) for side in sides) and math.prod(sides) <= _LARGEST_IMAGE_PX
    require(is_small, "DATA.IMAGE_SIZE", f"must be whole numbers of pixels, at most {_LARGEST_IMAGE_PX:,} in all")
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    fits = processes == resource.RLIM_INFINITY or processes > config.DATA.NUM_WORKERS
    require(fits, "DATA.NUM_WORKERS", f"must be below the {processes} processes that this user may have (ulimit -u)")
    minutes = config.SAVE_EVERY_MINUTES
    require(minutes is None or minutes >= 0, "SAVE_EVERY_MINUTES", "must not be negative, or None")


def _check_top(config: CfgNode, require) -> None:
    require(config.MODEL.TYPE in MODES, "MODEL.TYPE", f"must be one of {', '.join(MODES)}")
    require(config.AMP in (False, True, "fp16", "bf16"), "AMP", "must be False, True, fp16 or bf16")
    for key in ("SAVE_FREQ", "KEEP_LAST", "REPORT_FREQ", "VALIDATE_FREQ"):
        require(config[key] >= 1, key, "must be at least 1")
    require(
        config.SAVE_FREQ_STEPS is None or config.SAVE_FREQ_STEPS >= 1, "SAVE_FREQ_STEPS", "must be at least 1, or None"
    )
    require(0 <= config.SEED < 2**31, "SEED", "must be from 0 to 2**31 - 1")
    is_name = Path(config.RUN).name == config.RUN != ".." and config.RUN.isprintable() and len(config.RUN) <= 200
    require(is_name, "RUN", "must be a plain directory name; SAVE takes the path")
    require(config.SAVE != "", "SAVE", "must be a directory; . is the working directory")


def _check_data(data: CfgNode, require) -> None:
    require(data.DATASET in DATASETS, "DATA.DATASET", f"must be one of {', '.join(DATASETS)}")
    require(data.BATCH_SIZE >= 1, "DATA.BATCH_SIZE", "must be at least 1")
    require(
        data.BATCH_SIZE_EVAL is None or data.BATCH_SIZE_EVAL >= 1, "DATA.BATCH_SIZE_EVAL", "must be at least 1, or None"
    )
    require(data.BAD_IMAGES in ("error", "skip"), "DATA.BAD_IMAGES", "must be error or skip")
    require(data.NUM_WORKERS >= 0, "DATA.NUM_WORKERS", "must not be negative")
    sides = data.IMAGE_SIZE if isinstance(data.IMAGE_SIZE, list) else [data.IMAGE_SIZE] * 2
    is_size = len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)
    require(is_size, "DATA.IMAGE_SIZE", "must be a side in pixels, or [height, width]")
    require(data.IMAGE_CHANNELS >= 1, "DATA.IMAGE_CHANNELS", "must be at least 1")
    require(data.CROP_PCT is None or 0 < data.CROP_PCT <= 1, "DATA.CROP_PCT", "must be above 0 and at most 1, or None")
    for key in ("IMAGENET_MEAN", "IMAGENET_STD"):
        values = data[key]
        are_numbers = all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
        require(are_numbers, f"DATA.{key}", "must be a list of numbers")
        what = f"needs one number per channel, and DATA.IMAGE_CHANNELS is {data.IMAGE_CHANNELS}"
        require(len(values) == data.IMAGE_CHANNELS, f"DATA.{key}", what)
    require(all(value > 0 for value in data.IMAGENET_STD), "DATA.IMAGENET_STD", "must be above 0")


def _check_model(config: CfgNode, require) -> None:
    model = config.MODEL
    for key in ("PATCH_SIZE", "MLP_RATIO"):
        require(model[key] > 0, f"MODEL.{key}", "must be above 0")
    require(model.NUM_CLASSES is None or model.NUM_CLASSES >= 0, "MODEL.NUM_CLASSES", "must not be negative")
    for key in ("DROPOUT", "DROPPATH", "ATTENTION_DROPOUT", "MASK_RATIO"):
        require(0 <= model[key] < 1, f"MODEL.{key}", "must be at least 0 and below 1")
    require(model.HEAD_INIT_STD is None or model.HEAD_INIT_STD >= 0, "MODEL.HEAD_INIT_STD", "must not be negative")
    for side in image_size_hw(config):
        what = f"{side} pixels are not a whole number of patches; MODEL.PATCH_SIZE is {model.PATCH_SIZE}"
        require(side % model.PATCH_SIZE == 0, "DATA.IMAGE_SIZE", what)
    for section in ("ENCODER", "DECODER") if model.TYPE == "PRETRAIN" else ("ENCODER",):
        part = model[section]
        for key in ("DEPTH", "EMBED_DIM", "NUM_HEADS"):
            require(part[key] >= 1, f"MODEL.{section}.{key}", "must be at least 1")
        what = f"must be divisible by MODEL.{section}.NUM_HEADS={part.NUM_HEADS}"
        require(part.EMBED_DIM % part.NUM_HEADS == 0, f"MODEL.{section}.EMBED_DIM", what)
        require(int(part.EMBED_DIM * model.MLP_RATIO) >= 1, "MODEL.MLP_RATIO", "leaves the MLP without hidden units")
        require(part.EMBED_DIM % 4 == 0, f"MODEL.{section}.EMBED_DIM", "must be divisible by 4 (2-D sine-cosine table)")
    height, width = image_size_hw(config)
    num_patches = (height // model.PATCH_SIZE) * (width // model.PATCH_SIZE)
    what = f"makes {num_patches:,} patches of {model.PATCH_SIZE} pixels, and attention takes at most {_MOST_PATCHES:,}"
    require(num_patches <= _MOST_PATCHES, "DATA.IMAGE_SIZE", what)
    if model.TYPE == "PRETRAIN":
        require(model.MASK_RATIO > 0, "MODEL.MASK_RATIO", "pretraining needs hidden patches, so it must be above 0")
        num_kept = int(num_patches * (1 - model.MASK_RATIO) + 1e-6)
        require(num_kept >= 1, "MODEL.MASK_RATIO", f"keeps none of {num_patches} patches")


def _check_train(train: CfgNode, require) -> None:
    require(train.OPTIMIZER.NAME in OPTIMIZERS, "TRAIN.OPTIMIZER.NAME", f"must be one of {', '.join(OPTIMIZERS)}")
    for key in ("LINEAR_SCALED_LR", "RAND_AUGMENT_LAYERS", "AUG_REPEATS"):
        require(train[key] >= 1, f"TRAIN.{key}", "must be at least 1")
    for key in (
        "NUM_EPOCHS",
        "LAST_EPOCH",
        "WARMUP_EPOCHS",
        "WEIGHT_DECAY",
        "BASE_LR",
        "WARMUP_START_LR",
        "END_LR",
        "COLOR_JITTER",
        "RAND_AUGMENT_MAGNITUDE",
        "MIXUP_ALPHA",
        "CUTMIX_ALPHA",
        "RANDOM_ERASE_COUNT",
    ):
        require(train[key] >= 0, f"TRAIN.{key}", "must not be negative")
    for key in ("MIXUP_PROB", "MIXUP_SWITCH_PROB", "RANDOM_ERASE_PROB", "FLIP_PROB"):
        require(0 <= train[key] <= 1, f"TRAIN.{key}", "must be a probability from 0 to 1")
    require(train.ACCUM_ITER is None or train.ACCUM_ITER >= 1, "TRAIN.ACCUM_ITER", "must be at least 1, or None")
    needs_total = train.ACCUM_ITER is None and train.TOTAL_BATCH_SIZE is None
    require(
        not needs_total, "TRAIN.ACCUM_ITER", "None means as many as TRAIN.TOTAL_BATCH_SIZE needs, which is None, too"
    )
    require(
        train.WARMUP_EPOCHS <= train.NUM_EPOCHS, "TRAIN.WARMUP_EPOCHS", f"exceeds TRAIN.NUM_EPOCHS={train.NUM_EPOCHS}"
    )
    require(train.LAST_EPOCH <= train.NUM_EPOCHS, "TRAIN.LAST_EPOCH", f"exceeds TRAIN.NUM_EPOCHS={train.NUM_EPOCHS}")
    require(train.TO_STATIC in (False, True, "cinn"), "TRAIN.TO_STATIC", "must be False, True or cinn")
    require(
        not (train.TO_STATIC and train.RECOMPUTE),
        "TRAIN.RECOMPUTE",
        "Paddle cannot recompute in a static graph; choose one",
    )
    require(0 <= train.SMOOTHING < 1, "TRAIN.SMOOTHING", "must be at least 0 and below 1")
    require(train.NONFINITE in ("stop", "skip"), "TRAIN.NONFINITE", "must be stop or skip")
    require(train.MAX_SKIPS >= 0, "TRAIN.MAX_SKIPS", "must not be negative")
    require(train.MIXUP_MODE in ("batch", "pair", "elem"), "TRAIN.MIXUP_MODE", "must be batch, pair or elem")
    require(
        train.RANDOM_ERASE_MODE in ("pixel", "rand", "const"), "TRAIN.RANDOM_ERASE_MODE", "must be pixel, rand or const"
    )
    for key, limit in (("GRAD_CLIP", float("inf")), ("TOTAL_BATCH_SIZE", float("inf")), ("LAYER_DECAY", 1.0)):
        require(
            train[key] is None or 0 < train[key] <= limit,
            f"TRAIN.{key}",
            f"must be above 0 and at most {limit}, or None",
        )
    require(train.EMA_DECAY is None or 0 < train.EMA_DECAY < 1, "TRAIN.EMA_DECAY", "must be between 0 and 1, or None")
    require(train.OPTIMIZER.EPS > 0, "TRAIN.OPTIMIZER.EPS", "must be above 0")
    betas = train.OPTIMIZER.BETAS
    are_betas = len(betas) == 2 and all(isinstance(beta, (int, float)) and 0 <= beta < 1 for beta in betas)
    require(are_betas, "TRAIN.OPTIMIZER.BETAS", "must be two numbers from 0 to below 1")
    for key in ("CROP_SCALE", "CUTMIX_MINMAX"):
        pair = train[key]
        is_range = pair is None or (
            len(pair) == 2 and all(isinstance(end, (int, float)) for end in pair) and 0 < pair[0] <= pair[1] <= 1
        )
        require(is_range, f"TRAIN.{key}", "must be [smallest, largest], above 0 and at most 1, or None")
