"""Configuration: keys and defaults, YAML files with BASE, KEY VALUE overrides, validation. No Paddle here.

    config = get_config("configs/vit_base_patch16_224_finetune.yaml", ["TRAIN.NUM_EPOCHS", "50"])

The order is defaults < BASE files < file < overrides. The result is a frozen yacs node. Keys that PaddleViT's MAE has
keep their names and their meaning; a comment marks what is new. Keys that belong to one method only are in
configs/methods/NAME.yaml; a configuration has those of the method that its MODEL.TYPE names.
"""

import dataclasses
import fnmatch
import math
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

from yacs.config import CfgNode

from errors import UserError
from strict_config import Merger, Rule, read_assignments, read_yaml

_METHODS_FOLDER = Path(__file__).resolve().parent / "configs" / "methods"
NETWORKS = ("autoencoder", "encoder", "classifier", "probe", "clip")


@dataclasses.dataclass(frozen=True)
class MethodKeys:
    """The content of configs/methods/NAME.yaml; the MODEL.TYPE of the method is its name in capitals.

    Attributes:
        network: what the weights of its runs are, one of NETWORKS. An autoencoder has a decoder; a probe is a
            classifier behind a batch norm.
        defaults: {full key: value} of the keys that belong to this method alone.
        rules: {full key: rule} of the same keys.
        is_default: MODEL.TYPE names this method where a configuration names none.
        unused: patterns of the names of shared keys that have no effect on this method.
    """

    network: str
    defaults: Mapping[str, object] = dataclasses.field(default_factory=dict)
    rules: Mapping[str, Rule] = dataclasses.field(default_factory=dict)
    is_default: bool = False
    unused: tuple[str, ...] = ()


def read_method_keys(path: Path) -> MethodKeys:
    """Read a file of configs/methods/; configs/methods/README.md describes its entries.

    Raises:
        ValueError: if an entry is missing or unknown, or a default breaks its own rule.
    """
    values = read_yaml(path)
    keys = values.pop("KEYS", None) or {}
    network, is_default = values.pop("NETWORK", None), values.pop("DEFAULT", False)
    unused = tuple(values.pop("UNUSED", None) or ())
    if network not in NETWORKS or values:
        raise ValueError(f"{path}: needs NETWORK, one of {', '.join(NETWORKS)}, and may have DEFAULT, UNUSED and KEYS")
    defaults, rules = {}, {}
    for key, entry in keys.items():
        if not isinstance(entry, dict) or not {"default", "about"} <= set(entry) <= {"default", "rule", "about"}:
            raise ValueError(f"{path}: {key} needs default and about, and may have rule")
        default = None if entry["default"] == "None" else entry["default"]  # YAML's own word is null
        defaults[key], rules[key] = default, Rule(default, entry.get("rule", ""))
        if rules[key].problem(default):
            raise ValueError(f"{path}: the default of {key} {rules[key].problem(default)}")
    return MethodKeys(network, defaults, rules, bool(is_default), unused)


# The methods by MODEL.TYPE; the other half of this table, with what each method does, is methods.dispatch.METHODS.
METHODS = {path.stem.upper(): read_method_keys(path) for path in sorted(_METHODS_FOLDER.glob("*.yaml"))}

DATASETS = (
    *("imagenet2012", "folder", "cifar10", "cifar100", "digits", "synthetic"),
    *("lists", "webdataset"),
    *("flowers102", "pets", "cars", "aircraft", "inat2017", "inat2018", "inat2019", "places205", "places365"),
)

DEFAULT_DATA_PATH = "/dataset/imagenet/"  # PaddleViT's
_C = CfgNode()
_RULES: dict[str, Rule] = {}


def _key(name: str, default: object, rule: str = "") -> None:
    """Add a key, its default, and its rule (see `strict_config.Rule`), to the keys of all methods."""
    _add(_C, name, default)
    _RULES[name] = Rule(default, rule)


def _add(config: CfgNode, name: str, value: object) -> None:
    *parents, leaf = name.split(".")
    for part in parents:
        config = config.setdefault(part, CfgNode())
    config[leaf] = value


_key("BASE", [""])  # YAML files to load first, relative to the file that names them

_key("DATA.BATCH_SIZE", 256, "from 1 to 1_000_000")  # images per process and micro-step
_key("DATA.BATCH_FIT", "few", "one of few, auto, none")  # new: a smaller batch: where images are few, always, never
_key("DATA.BATCH_SIZE_EVAL", None, "int or None, from 1 to 1_000_000")  # None: BATCH_SIZE
_key("DATA.DATA_PATH", DEFAULT_DATA_PATH)
_key("DATA.DATASET", "imagenet2012", f"one of {', '.join(DATASETS)}")
_key("DATA.IMAGE_SIZE", 224, "int or list")  # pixels: side, or [height, width]
_key("DATA.IMAGE_CHANNELS", 3, "at least 1")  # 1: grey, 3: RGB, 4: RGBA
# Evaluation: share of the resized side that is kept; None: 0.875 up to 224 px, then 1.0.
_key("DATA.CROP_PCT", None, "float or None, above 0 and at most 1")
# New: how evaluation brings images to size: the shorter side and a crop of the middle; or both sides, and no crop.
_key("DATA.EVAL_RESIZE", "crop", "one of crop, squash")
_key("DATA.NUM_WORKERS", 4, "from 0 to 1024")  # loader processes per process; 0: load in the training process
_key("DATA.IMAGENET_MEAN", [0.485, 0.456, 0.406])  # per channel, of pixels in [0, 1]
_key("DATA.IMAGENET_STD", [0.229, 0.224, 0.225])
_key("DATA.TRAIN_LIST", None, "str or None")  # new: file with the names of the images to train on, one per line
_key("DATA.LIST_OUTSIDE", False)  # new: list files may name files outside DATA_PATH
# New: what happens at an image that cannot be read; skip lists it in the run directory.
_key("DATA.BAD_IMAGES", "error", "one of error, skip")
_key("DATA.FAST_DECODE", False)  # new: decode training JPEGs by simplejpeg and OpenCV, with slightly other pixels
_key("DATA.MAX_PIXELS", None, "int or None, from 1 to 1_000_000_000_000")  # new: of an image; None: 178,956,970
_key("DATA.CLASS_NAMES", None, "list or None")  # new: in label order; a run records those of its folders
_key("DATA.DROP_LAST", False)  # new: True drops the images that do not fill an epoch's last update; False: a small step
_key("DATA.EXIF_TRANSPOSE", True)  # new: turn photos as their EXIF note says; the official code does not

_key("MODEL.TYPE", next(name for name, keys in METHODS.items() if keys.is_default))  # one of METHODS
_key("MODEL.NAME", "MAE")
_key("MODEL.RESUME", None, "str or None")  # checkpoint or run directory to continue, or "auto"
_key("MODEL.PRETRAINED", None, "str or None")  # weights to start from
# New: 0 builds the encoder alone, from Python; None: as many as the data has.
_key("MODEL.NUM_CLASSES", 1000, "int or None, from 0 to 10_000_000")
_key("MODEL.DROPOUT", 0.0, "at least 0 and below 1")
_key("MODEL.DROPPATH", 0.0, "at least 0 and below 1")  # of the last block; grows linearly from 0 at the first
_key("MODEL.ATTENTION_DROPOUT", 0.0, "at least 0 and below 1")
_key("MODEL.GLOBAL_POOL", False)  # classifier reads the mean patch token instead of the class token
_key("MODEL.POOL_AFTER_NORM", False)  # new: it reads the mean of the patches after the last norm, as MAE-CT's ViT-B
_key("MODEL.DISTILL_HEAD", False)  # new: a second classifier, on the class token, that learns from a teacher (DeiT)
_key("MODEL.DTYPE", "float32", "one of float32, bfloat16")  # new: of the weights; bfloat16 to evaluate only
_key("MODEL.PATCH_SIZE", 16, "from 1 to 4096")  # pixels
_key("MODEL.MLP_RATIO", 4.0, "above 0 and at most 64")
_key("MODEL.QKV_BIAS", True)
_key("MODEL.MASK_RATIO", 0.75, "at least 0 and below 1")
_key("MODEL.NORM_PIX_LOSS", True)  # reconstruct pixels normalised per patch
# New: head over loaded weights; None: 2e-5 to finetune, 0.01 to probe.
_key("MODEL.HEAD_INIT_STD", None, "float or None, from 0 to 100")
_key("MODEL.ENCODER.DEPTH", 12, "from 1 to 1000")
_key("MODEL.ENCODER.EMBED_DIM", 768, "from 1 to 65_536")
_key("MODEL.ENCODER.NUM_HEADS", 12, "from 1 to 4096")
# New: learned biases of the attention scores by relative position, in each block or shared by all; to finetune.
_key("MODEL.ENCODER.RELATIVE_POSITION_BIAS", False, "bool or str, one of False, True, shared")
_key("MODEL.ENCODER.LAYER_SCALE", None, "float or None, above 0 and at most 1")  # new: first factor of each branch
_key("MODEL.DECODER.DEPTH", 8, "at most 1000")
_key("MODEL.DECODER.EMBED_DIM", 512, "at most 65_536")
_key("MODEL.DECODER.NUM_HEADS", 16, "at most 4096")

_key("TRAIN.LAST_EPOCH", 0, "from 0 to 1_000_000")  # epochs that count as done already
_key("TRAIN.NUM_EPOCHS", 800, "from 0 to 1_000_000")  # 0 saves the initial weights
_key("TRAIN.WARMUP_EPOCHS", 40, "int or float, from 0 to 1_000_000")  # new: parts of an epoch, too
_key("TRAIN.WEIGHT_DECAY", 0.05, "from 0 to 1e6")
_key("TRAIN.BASE_LR", 1.5e-4, "from 0 to 1e6")  # for LINEAR_SCALED_LR images per update
_key("TRAIN.WARMUP_START_LR", 0.0, "from 0 to 1e6")  # not scaled by the batch
_key("TRAIN.END_LR", 0.0, "from 0 to 1e6")  # not scaled by the batch
_key("TRAIN.GRAD_CLIP", None, "float or None, above 0")  # largest global gradient norm
# New: stop | skip the update, if loss or gradient is infinite or not a number.
_key("TRAIN.NONFINITE", "stop", "one of stop, skip")
_key("TRAIN.MAX_SKIPS", 10, "from 0 to 1_000_000")  # new: updates in a row that NONFINITE skip may leave out
# Micro-steps per update; new: None takes what TOTAL_BATCH_SIZE needs.
_key("TRAIN.ACCUM_ITER", 1, "int or None, from 1 to 1_000_000")
_key("TRAIN.LINEAR_SCALED_LR", 256, "from 1 to 100_000_000")  # peak lr = BASE_LR * images per update / this
# New: images per update that the recipe was tuned for; another number warns.
_key("TRAIN.TOTAL_BATCH_SIZE", None, "int or None, from 1 to 100_000_000")
_key("TRAIN.LAYER_DECAY", None, "float or None, above 0 and at most 1")  # lr factor from a layer to the one below
_key("TRAIN.EMA_DECAY", None, "float or None, above 0 and below 1")  # new: keep and evaluate an average of the weights
_key("TRAIN.OPTIMIZER.NAME", "AdamW", "one of AdamW, AdamWDL, LARS, SGD")  # AdamWDL is AdamW with LAYER_DECAY
_key("TRAIN.OPTIMIZER.EPS", 1e-8, "above 0")
_key("TRAIN.OPTIMIZER.BETAS", [0.9, 0.95])
_key("TRAIN.OPTIMIZER.NESTEROV", False)  # new: of SGD
_key("TRAIN.CROP_SCALE", None, "list or None")  # new: area of a random crop; None: [0.2, 1] to pretrain, else [0.08, 1]
# New: how crops to pretrain are resized; random: bilinear or bicubic, drawn for each. Not with DATA.FAST_DECODE.
_key("TRAIN.INTERPOLATION", "bicubic", "one of bicubic, random")
_key("TRAIN.FLIP_PROB", 0.5, "from 0 to 1")  # new
_key("TRAIN.SMOOTHING", 0.1, "at least 0 and below 1")
_key("TRAIN.COLOR_JITTER", 0.0, "from 0 to 1e6")  # strength; used where neither AUTO_AUGMENT nor RAND_AUGMENT is
_key("TRAIN.RECOMPUTE", False)  # new: less memory and more time: blocks are computed again in the backward pass
_key("TRAIN.SHARD_OPTIMIZER", False)  # new: share the optimizer's state out among the ranks (ZeRO stage 1)
_key("TRAIN.BF16_ALLREDUCE", False)  # new: send gradients between ranks as bfloat16
# New: True | "cinn": train on a static graph, where Paddle can make one.
_key("TRAIN.TO_STATIC", False, "bool or str, one of False, True, cinn")
# New: repeated augmentation: an epoch uses 1/N of the images, each N times.
_key("TRAIN.AUG_REPEATS", 1, "from 1 to 1000")
_key("TRAIN.AUTO_AUGMENT", False)  # takes the place of RAND_AUGMENT
_key("TRAIN.RAND_AUGMENT", True)
_key("TRAIN.RAND_AUGMENT_LAYERS", 2, "from 1 to 100")
_key("TRAIN.RAND_AUGMENT_MAGNITUDE", 9, "from 0 to 100")  # of 10
_key("TRAIN.MIXUP_ALPHA", 0.8, "from 0 to 1e6")
_key("TRAIN.MIXUP_PROB", 1.0, "from 0 to 1")  # of mixup or cutmix
_key("TRAIN.MIXUP_SWITCH_PROB", 0.5, "from 0 to 1")  # of cutmix where both are on
_key("TRAIN.MIXUP_MODE", "batch", "one of batch, pair, elem")
_key("TRAIN.CUTMIX_ALPHA", 1.0, "from 0 to 1e6")
_key("TRAIN.CUTMIX_MINMAX", None, "list or None")  # [smallest, largest] side of the box as a share of the image
_key("TRAIN.RANDOM_ERASE_PROB", 0.25, "from 0 to 1")
_key("TRAIN.RANDOM_ERASE_MODE", "pixel", "one of pixel, rand, const")
_key("TRAIN.RANDOM_ERASE_COUNT", 1, "from 0 to 1000")
_key("TRAIN.RANDOM_ERASE_SPLIT", False)  # accepted for old files; there are no augmentation splits here

_key("SAVE", "./output")  # runs go to SAVE/<mode>-<time>
_key("RUN", "")  # new: name of the run's directory below SAVE instead of <mode>-<time>
_key("SAVE_FREQ", 10, "from 1 to 1_000_000_000")  # epochs
_key("SAVE_FREQ_STEPS", None, "int or None, from 1 to 1_000_000_000")  # new: save every this many updates, too
# New: save when so much time has passed since the last checkpoint, too; None: by epochs and updates only.
_key("SAVE_EVERY_MINUTES", 30.0, "float or None, from 0 to 1_000_000")
_key("KEEP_LAST", 3, "from 1 to 1_000_000")  # new: checkpoints kept, besides the best
_key("REPORT_FREQ", 20, "from 1 to 1_000_000_000")  # updates
_key("VALIDATE_FREQ", 1, "from 1 to 1_000_000_000")  # epochs
_key("SEED", 0, "from 0 to 2_147_483_647")
_key("DETERMINISTIC", False)  # new: on GPU, the slower algorithms that give the same bits each time; on CPU all do
_key("EVAL", False)
_key("AMP", False, "bool or str, one of False, True, fp16, bf16")  # True is fp16
_key("REPORT", True)  # new: write report.html into the run directory when the run ends
_key("VISUALDL", False)  # new: write VisualDL scalars into the run directory


def get_config(cfg_file: str | Path | None = None, opts: Sequence[object] | None = None) -> CfgNode:
    """Merge defaults, a YAML file and overrides, check the result, and freeze it.

    Args:
        cfg_file: a .yaml file, which may name BASE files.
        opts: flat list `[KEY, VALUE, KEY, VALUE, ...]`; text values are read as Python literals.

    Raises:
        UserError: (a ValueError) naming the key and the value, if a key is unknown, or a value has the
            wrong type or is impossible.
    """
    opts = list(opts or [])
    if len(opts) % 2:
        raise UserError(f"-opts takes KEY VALUE pairs, but got {len(opts)} words: {' '.join(map(str, opts))}")
    assignments = [] if cfg_file is None else read_assignments(Path(cfg_file))
    assignments += [(str(key), value, "-opts") for key, value in zip(opts[::2], opts[1::2], strict=True)]
    types = [value for key, value, _ in assignments if key == "MODEL.TYPE"]
    method = str(types[-1]) if types else _C.MODEL.TYPE
    if method not in METHODS:
        raise UserError(f"MODEL.TYPE={types[-1]!r}: must be one of {', '.join(METHODS)}")
    config, rules = _C.clone(), {**_RULES, **METHODS[method].rules}
    for key, value in METHODS[method].defaults.items():
        _add(config, key, value)
    others: dict[str, list[str]] = {}
    for name, keys in METHODS.items():
        for key in keys.rules.keys() - rules.keys():
            others.setdefault(key, []).append(name)
    hints = {key: f"it is for MODEL.TYPE {' and '.join(types)}" for key, types in others.items()}
    merger = Merger(config.clone(), rules, hints)
    top = (None if cfg_file is None else str(Path(cfg_file).resolve()), "-opts")
    for key, value, source in assignments:
        if source in top or key not in others:  # a BASE of another method may set its own keys
            merger.set(config, key, value, source)
    _validate(config, rules)
    for key in unused_settings(config):
        if any(source == "-opts" and name == key for name, _, source in assignments):
            raise UserError(f"{key}={get_value(config, key)!r}: MODEL.TYPE {method} does not use it; leave it out")
    config.freeze()
    return config


def get_value(config: CfgNode, key: str) -> object:
    """Return the value of a full key."""
    for part in key.split("."):
        config = config[part]
    return config


def unused_settings(config: CfgNode) -> list[str]:
    """Return the keys that a configuration sets to another value than the default, and its method does not use."""
    patterns = METHODS[config.MODEL.TYPE].unused
    keys = [key for key in _RULES if any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)]
    return [key for key in keys if get_value(config, key) != get_value(_C, key)]


def replaced(config: CfgNode, key: str, value: object) -> CfgNode:
    """Return a copy of a configuration with another value of one key; the copy is frozen, and not checked."""
    copy = config.clone()
    copy.defrost()
    _add(copy, key, value)
    copy.freeze()
    return copy


def network_kind(config: CfgNode) -> str:
    """Return what the weights of a configuration's method are, one of NETWORKS."""
    return METHODS[config.MODEL.TYPE].network


def default_type(network: str) -> str:
    """Return the MODEL.TYPE of a method whose weights are one of NETWORKS."""
    types = sorted(METHODS, key=lambda name: not METHODS[name].is_default)
    return next(name for name in types if METHODS[name].network == network)


def image_size_hw(config: CfgNode) -> tuple[int, int]:
    """Return DATA.IMAGE_SIZE as (height, width) in pixels."""
    size = config.DATA.IMAGE_SIZE
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def amp_dtype(config: CfgNode) -> str | None:
    """Return the low precision that AMP asks for ("float16", "bfloat16"), or None for float32."""
    if config.AMP is False:
        return None
    return "bfloat16" if config.AMP == "bf16" else "float16"


_LARGEST_IMAGE_PX = 1 << 26  # in all
_MOST_PATCHES = 1 << 16


def _validate(config: CfgNode, rules: Mapping[str, Rule]) -> None:
    def require(holds: bool, key: str, what: str) -> None:
        if not holds:
            raise UserError(f"{key}={get_value(config, key)!r}: {what}")

    for key, rule in rules.items():
        problem = rule.problem(get_value(config, key))
        require(problem is None, key, problem)
    _check_top(config, require)
    _check_data(config.DATA, require)
    _check_model(config, require)
    _check_train(config.TRAIN, require)


def _check_top(config: CfgNode, require) -> None:
    is_name = Path(config.RUN).name == config.RUN != ".." and config.RUN.isprintable() and len(config.RUN) <= 200
    require(is_name, "RUN", "must be a plain directory name; SAVE takes the path")
    require(config.SAVE != "", "SAVE", "must be a directory; . is the working directory")
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    fits = processes == resource.RLIM_INFINITY or processes > config.DATA.NUM_WORKERS
    require(fits, "DATA.NUM_WORKERS", f"must be below the {processes} processes that this user may have (ulimit -u)")


def _check_data(data: CfgNode, require) -> None:
    sides = data.IMAGE_SIZE if isinstance(data.IMAGE_SIZE, list) else [data.IMAGE_SIZE] * 2
    is_size = len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)
    require(is_size, "DATA.IMAGE_SIZE", "must be a side in pixels, or [height, width]")
    is_small = math.prod(sides) <= _LARGEST_IMAGE_PX
    require(is_small, "DATA.IMAGE_SIZE", f"must be whole numbers of pixels, at most {_LARGEST_IMAGE_PX:,} in all")
    for key in ("IMAGENET_MEAN", "IMAGENET_STD"):
        values = data[key]
        are_numbers = all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)
        require(are_numbers, f"DATA.{key}", "must be a list of numbers")
        what = f"needs one number per channel, and DATA.IMAGE_CHANNELS is {data.IMAGE_CHANNELS}"
        require(len(values) == data.IMAGE_CHANNELS, f"DATA.{key}", what)
    require(all(value > 0 for value in data.IMAGENET_STD), "DATA.IMAGENET_STD", "must be above 0")
    names = data.CLASS_NAMES
    are_names = names is None or (all(isinstance(name, str) for name in names) and len(set(names)) == len(names) > 0)
    require(are_names, "DATA.CLASS_NAMES", "must be a list of different names, or None")


def _check_model(config: CfgNode, require) -> None:
    model, has_decoder = config.MODEL, network_kind(config) == "autoencoder"
    height, width = image_size_hw(config)
    for side in (height, width):
        what = f"{side} pixels are not a whole number of patches; MODEL.PATCH_SIZE is {model.PATCH_SIZE}"
        require(side % model.PATCH_SIZE == 0, "DATA.IMAGE_SIZE", what)
    for section in ("ENCODER", "DECODER") if has_decoder else ("ENCODER",):
        part = model[section]
        for key in ("DEPTH", "EMBED_DIM", "NUM_HEADS"):
            require(part[key] >= 1, f"MODEL.{section}.{key}", "must be at least 1")
        what = f"must be divisible by MODEL.{section}.NUM_HEADS={part.NUM_HEADS}"
        require(part.EMBED_DIM % part.NUM_HEADS == 0, f"MODEL.{section}.EMBED_DIM", what)
        require(int(part.EMBED_DIM * model.MLP_RATIO) >= 1, "MODEL.MLP_RATIO", "leaves the MLP without hidden units")
        require(part.EMBED_DIM % 4 == 0, f"MODEL.{section}.EMBED_DIM", "must be divisible by 4 (2-D sine-cosine table)")
    is_evaluated = model.DTYPE == "float32" or (config.EVAL and amp_dtype(config) == "bfloat16")
    require(is_evaluated, "MODEL.DTYPE", "is to evaluate only, with -eval and -amp bf16")
    what = "is another mean of the patches than MODEL.GLOBAL_POOL, which is True, too; choose one"
    require(not (model.POOL_AFTER_NORM and model.GLOBAL_POOL), "MODEL.POOL_AFTER_NORM", what)
    what = "reads the class token, so the classifier must read the patches: set MODEL.GLOBAL_POOL True, too"
    require(model.GLOBAL_POOL or not model.DISTILL_HEAD, "MODEL.DISTILL_HEAD", what)
    is_finetuned = network_kind(config) == "classifier"
    require(is_finetuned or not model.DISTILL_HEAD, "MODEL.DISTILL_HEAD", f"is not for MODEL.TYPE {model.TYPE}")
    num_patches = (height // model.PATCH_SIZE) * (width // model.PATCH_SIZE)
    what = f"makes {num_patches:,} patches of {model.PATCH_SIZE} pixels, and attention takes at most {_MOST_PATCHES:,}"
    require(num_patches <= _MOST_PATCHES, "DATA.IMAGE_SIZE", what)
    if has_decoder:
        require(model.MASK_RATIO > 0, "MODEL.MASK_RATIO", "pretraining needs hidden patches, so it must be above 0")
        num_kept = int(num_patches * (1 - model.MASK_RATIO) + 1e-6)
        require(num_kept >= 1, "MODEL.MASK_RATIO", f"keeps none of {num_patches} patches")


def _check_train(train: CfgNode, require) -> None:
    needs_total = train.ACCUM_ITER is None and train.TOTAL_BATCH_SIZE is None
    what = "None means as many as TRAIN.TOTAL_BATCH_SIZE needs, which is None, too"
    require(not needs_total, "TRAIN.ACCUM_ITER", what)
    for key in ("WARMUP_EPOCHS", "LAST_EPOCH"):
        what = f"exceeds TRAIN.NUM_EPOCHS={train.NUM_EPOCHS}"
        require(train[key] <= train.NUM_EPOCHS, f"TRAIN.{key}", what)
    what = "Paddle cannot recompute in a static graph; choose one"
    require(not (train.TO_STATIC and train.RECOMPUTE), "TRAIN.RECOMPUTE", what)
    betas = train.OPTIMIZER.BETAS
    are_betas = len(betas) == 2 and all(isinstance(beta, (int, float)) and 0 <= beta < 1 for beta in betas)
    require(are_betas, "TRAIN.OPTIMIZER.BETAS", "must be two numbers from 0 to below 1")
    for key in ("CROP_SCALE", "CUTMIX_MINMAX"):
        pair = train[key]
        is_range = pair is None or (
            len(pair) == 2 and all(isinstance(end, (int, float)) for end in pair) and 0 < pair[0] <= pair[1] <= 1
        )
        require(is_range, f"TRAIN.{key}", "must be [smallest, largest], above 0 and at most 1, or None")
