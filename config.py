"""Configuration: keys and defaults, YAML files with BASE, KEY VALUE overrides, validation. No Paddle here.

    config = get_config("configs/vit_base_patch16_224_finetune.yaml", ["TRAIN.NUM_EPOCHS", "50"])

The order is defaults < BASE files < file < overrides. The result is a frozen yacs node. Keys that PaddleViT's MAE has
keep their names and their meaning. configs/defaults.yaml has the keys that all methods share, configs/methods/NAME.yaml
those of one method; a configuration has the keys of the method that its MODEL.TYPE names.
"""

import copy
import dataclasses
import fnmatch
import glob
import math
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path

from yacs.config import CfgNode

from errors import UserError
from layers.patch_counts import num_visible
from storage.architecture import CLASSIFIERS, SEGMENTER, SELF
from strict_config import Merger, Rule, read_assignments, read_pairs, read_yaml

_CONFIGS = Path(__file__).resolve().parent / "configs"
NETWORKS = ("autoencoder", "encoder", *CLASSIFIERS, SEGMENTER, "clip")


@dataclasses.dataclass(frozen=True)
class Key:
    """An entry of configs/defaults.yaml or configs/methods/NAME.yaml.

    Attributes:
        rule: the permitted values, and the same in words.
        about: meaning and unit.
        is_new: PaddleViT's MAE does not have this key.
    """

    default: object
    rule: Rule
    about: str
    is_new: bool


def read_keys(path: Path, entries: Mapping[str, Mapping]) -> dict[str, Key]:
    """Read `{full key: {default, rule, about, new}}`; configs/methods/README.md describes the entries.

    Raises:
        ValueError: if an entry is incomplete or unknown, or a default breaks its own rule.
    """
    keys = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not {"default", "about"} <= set(entry) <= {"default", "rule", "about", "new"}:
            raise ValueError(f"{path}: {name} needs default and about, and may have rule and new")
        default = None if entry["default"] == "None" else entry["default"]  # YAML's own word is null
        keys[name] = Key(default, Rule(default, entry.get("rule", "")), entry["about"], bool(entry.get("new", False)))
        if problem := keys[name].rule.problem(default):
            raise ValueError(f"{path}: the default of {name} {problem}")
    return keys


@dataclasses.dataclass(frozen=True)
class MethodKeys:
    """The content of configs/methods/NAME.yaml; the MODEL.TYPE of the method is its name in capitals.

    Attributes:
        network: what the weights of its runs are, one of NETWORKS. An autoencoder has a decoder; a probe is a
            classifier behind a batch norm.
        keys: those of this method alone.
        unused: patterns of the names of shared keys that have no effect on this method.
    """

    network: str
    keys: Mapping[str, Key] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()


def read_method_keys(path: Path) -> MethodKeys:
    """Read a file of configs/methods/; raise ValueError if an entry is missing, unknown or breaks its own rule."""
    values = read_yaml(path)
    keys, network = values.pop("KEYS", None) or {}, values.pop("NETWORK", None)
    unused = tuple(values.pop("UNUSED", None) or ())
    if network not in NETWORKS or values:
        raise ValueError(f"{path}: needs NETWORK, one of {', '.join(NETWORKS)}, and may have UNUSED and KEYS")
    return MethodKeys(network, read_keys(path, keys), unused)


# The methods by MODEL.TYPE; the other half of this table, with what each method does, is methods.dispatch.METHODS.
METHODS = {path.stem.upper(): read_method_keys(path) for path in sorted((_CONFIGS / "methods").glob("*.yaml"))}
SHARED_KEYS = read_keys(_CONFIGS / "defaults.yaml", read_yaml(_CONFIGS / "defaults.yaml"))
DATASETS = SHARED_KEYS["DATA.DATASET"].rule.choices
DEFAULT_DATA_PATH = SHARED_KEYS["DATA.DATA_PATH"].default


def _add(config: CfgNode, name: str, value: object) -> None:
    *parents, leaf = name.split(".")
    for part in parents:
        config = config.setdefault(part, CfgNode())
    config[leaf] = value


def _defaults(keys: Mapping[str, Key]) -> CfgNode:
    config = CfgNode()
    for name, key in keys.items():
        _add(config, name, copy.deepcopy(key.default))
    return config


def get_config(cfg_file: str | Path | None = None, opts: Sequence[object] | None = None) -> CfgNode:
    """Merge defaults, a YAML file and overrides, check the result, and freeze it.

    Args:
        cfg_file: a .yaml file, which may name BASE files.
        opts: flat list `[KEY, VALUE, "KEY=VALUE", ...]`; text values are read as Python literals.

    Raises:
        UserError: (a ValueError) naming the key and the value, if a key is unknown, or a value has the
            wrong type or is impossible.
    """
    assignments = [] if cfg_file is None else read_assignments(_check_moved(Path(cfg_file)))
    assignments += [(key, value, "-opts") for key, value in read_pairs(opts or ())]
    assignments = [_current_key(*assignment) for assignment in assignments]
    types = [value for key, value, _ in assignments if key == "MODEL.TYPE"]
    method = str(types[-1]) if types else SHARED_KEYS["MODEL.TYPE"].default
    if method not in METHODS:
        raise UserError(f"MODEL.TYPE={types[-1]!r}: must be one of {', '.join(METHODS)}")
    keys = {**SHARED_KEYS, **METHODS[method].keys}
    config, rules = _defaults(keys), {name: key.rule for name, key in keys.items()}
    others: dict[str, list[str]] = {}
    for name, other in METHODS.items():
        for key in other.keys.keys() - keys.keys():
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


def _current_key(key: str, value: object, source: str) -> tuple[str, object, str]:
    """Return an assignment under today's name of its key."""
    if key == "TRAIN.SHARD_OPTIMIZER":
        sharding = {"True": "optimizer", "False": "none"}.get(str(value))
        if sharding is None:
            raise UserError(f"{source}: {key}={value!r}: must be True or False; TRAIN.SHARDING has more choices")
        return "TRAIN.SHARDING", sharding, source
    return key, value, source


def _check_moved(path: Path) -> Path:
    """Return the path of a recipe; raise UserError if it is a name of configs/ that is in one of its folders now."""
    folders = [] if path.exists() else sorted(_CONFIGS.glob(f"[!_]*/{glob.escape(path.name)}"))
    if path.parent.name == _CONFIGS.name and folders:
        raise UserError(f"-cfg {path}: is {path.parent / folders[0].relative_to(_CONFIGS)} now")
    return path


def get_value(config: CfgNode, key: str) -> object:
    """Return the value of a full key."""
    for part in key.split("."):
        config = config[part]
    return config


def unused_settings(config: CfgNode) -> list[str]:
    """Return the keys that a configuration sets to another value than the default, and its method does not use."""
    patterns = METHODS[config.MODEL.TYPE].unused
    keys = [key for key in SHARED_KEYS if any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)]
    return [key for key in keys if get_value(config, key) != SHARED_KEYS[key].default]


def replaced(config: CfgNode, key: str, value: object) -> CfgNode:
    """Return a copy of a configuration with another value of one key; the copy is frozen, and not checked."""
    changed = config.clone()
    changed.defrost()
    _add(changed, key, value)
    changed.freeze()
    return changed


def network_kind(config: CfgNode) -> str:
    """Return what the weights of a configuration's method are, one of NETWORKS."""
    return METHODS[config.MODEL.TYPE].network


def default_type(network: str) -> str:
    """Return the MODEL.TYPE of a method whose weights are one of NETWORKS."""
    types = sorted(METHODS, key=lambda name: name != SHARED_KEYS["MODEL.TYPE"].default)
    return next(name for name in types if METHODS[name].network == network)


def image_size_hw(config: CfgNode) -> tuple[int, int]:
    """Return DATA.IMAGE_SIZE as (height, width) in pixels."""
    size = config.DATA.IMAGE_SIZE
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def amp_dtype(config: CfgNode) -> str | None:
    """Return the low precision that AMP asks for ("float16", "bfloat16"), or None for float32."""
    if config.AMP in (False, "auto"):  # which a run settles by its device
        return None
    return "bfloat16" if config.AMP == "bf16" else "float16"


_LARGEST_IMAGE_PX = 1 << 26  # in all
_MOST_PATCHES = 1 << 16
_MOST_CHANNELS = 512
_LARGEST, _NARROWEST = 1e38, 1e-30  # numbers in float32


def _validate(config: CfgNode, rules: Mapping[str, Rule]) -> None:
    def require(holds: bool, key: str, what: str) -> None:
        if not holds:
            raise UserError(f"{key}={get_value(config, key)!r}: {what}")

    for key, rule in rules.items():
        problem = rule.problem(get_value(config, key))
        require(problem is None, key, problem)
    _check_top(config, require)
    _check_data(config.DATA, require)
    _check_pixels(config, require)
    _check_groups(config, require)
    _check_model(config, require)
    _check_train(config.TRAIN, require)
    if config.TRAIN.get("RESOLUTION") is not None:
        _check_stages(config, require)


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
    require(is_small, "DATA.IMAGE_SIZE", f"must be integers, in pixels, at most {_LARGEST_IMAGE_PX:,} in all")
    for key in ("IMAGENET_MEAN", "IMAGENET_STD"):
        values = data[key]
        require(all(map(_is_number, values)), f"DATA.{key}", "must be a list of numbers")
        what = f"needs one number per channel, and DATA.IMAGE_CHANNELS is {data.IMAGE_CHANNELS}"
        require(len(values) == data.IMAGE_CHANNELS, f"DATA.{key}", what)
    require(all(value > _NARROWEST for value in data.IMAGENET_STD), "DATA.IMAGENET_STD", "must be above 0")
    names = data.CLASS_NAMES
    are_names = names is None or (all(isinstance(name, str) for name in names) and len(set(names)) == len(names) > 0)
    require(are_names, "DATA.CLASS_NAMES", "must be a list of different names, or None")


def _check_pixels(config: CfgNode, require) -> None:
    data, channels, only = config.DATA, config.DATA.IMAGE_CHANNELS, "is for DATA.PIXELS array"
    shown = data.SHOW_BANDS
    are_shown = shown is None or (len(shown) in (1, 3) and _are_channels(shown, channels))
    require(are_shown, "DATA.SHOW_BANDS", f"must be one or three channels, from 0 to {channels - 1}, or None")
    if data.PIXELS == "photo":
        for key in ("PIXEL_RANGE", "BANDS", "NODATA"):
            require(data[key] is None, f"DATA.{key}", only)
        require(data.PIXEL_SCALE == "linear", "DATA.PIXEL_SCALE", only)
        for key in ("CHANNEL_GAIN", "CHANNEL_DROP"):
            require(config.TRAIN[key] == 0, f"TRAIN.{key}", only)
        return
    ranges = data.PIXEL_RANGE or [None]
    ranges = ranges if isinstance(ranges[0], list) else [data.PIXEL_RANGE] * channels
    are_pairs = len(ranges) == channels and all(isinstance(pair, list) and len(pair) == 2 for pair in ranges)
    what = f"must be [low, high] of the files' numbers, or {channels} such pairs (DATA.IMAGE_CHANNELS)"
    require(are_pairs, "DATA.PIXEL_RANGE", f"{what}; python -m tools.channel_statistics finds them")
    are_numbers = all(_is_number(end) for pair in ranges for end in pair)
    are_ranges = are_numbers and all(high - low > _NARROWEST for low, high in ranges)
    what = f"must be numbers up to {_LARGEST:g}, the low end below the high one by at least {_NARROWEST:g}"
    require(are_ranges, "DATA.PIXEL_RANGE", what)
    bands = list(range(channels)) if data.BANDS is None else data.BANDS
    are_bands = len(bands) == channels == len(set(map(str, bands))) and _are_channels(bands, _MOST_CHANNELS)
    require(are_bands, "DATA.BANDS", f"must be {channels} different channels of the file, from 0 (DATA.IMAGE_CHANNELS)")
    require(not data.FAST_DECODE, "DATA.FAST_DECODE", "is for photos; set it False with DATA.PIXELS array")
    require(data.NODATA is None or _is_number(data.NODATA), "DATA.NODATA", f"must be a number up to {_LARGEST:g}")
    require(data.MAX_PIXELS is None, "DATA.MAX_PIXELS", "is for photos; an array may take 2 GiB")


def _check_groups(config: CfgNode, require) -> None:
    key, groups, count = "MODEL.CHANNEL_GROUPS", config.MODEL.CHANNEL_GROUPS, config.DATA.IMAGE_CHANNELS
    if not groups:
        return
    channels = [channel for group in groups for channel in (group if isinstance(group, (list, tuple)) else [None])]
    are_groups = _are_channels(channels, count) and sorted(channels) == list(range(count)) and all(groups)
    require(
        are_groups, key, f"must be lists of channels, each of 0 to {count - 1} in one of them (DATA.IMAGE_CHANNELS)"
    )
    require(len(groups) > 1, key, "needs two groups or more; leave it out")
    require(not config.MODEL.PATCH_NORM, "MODEL.PATCH_NORM", f"does not go with {key}")
    require(config.MODEL.ADAPT_CHANNELS is None, "MODEL.ADAPT_CHANNELS", f"does not go with {key}")
    bias = "MODEL.ENCODER.RELATIVE_POSITION_BIAS"
    require(not get_value(config, bias), bias, f"does not go with {key}")
    for section, name in (("TRAIN", "RESOLUTION"), ("DISTILL", "TEACHER"), ("MODEL", "PREDICT_RATIO")):
        value = config.get(section, {}).get(name)
        require(value is None, f"{section}.{name}", f"does not go with {key}")
    kind = config.MODEL.DECODER.get("KIND", SELF)
    require(kind == SELF, "MODEL.DECODER.KIND", f"does not go with {key}, which need the ordinary decoder")


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST


def _are_channels(numbers: Sequence[object], count: int) -> bool:
    return all(type(number) is int and 0 <= number < count for number in numbers)


def _check_model(config: CfgNode, require) -> None:
    model, has_decoder = config.MODEL, network_kind(config) == "autoencoder"
    height, width = image_size_hw(config)
    for side in (height, width):
        what = f"{side} pixels are not divisible into patches; MODEL.PATCH_SIZE is {model.PATCH_SIZE}"
        require(side % model.PATCH_SIZE == 0, "DATA.IMAGE_SIZE", what)
    for section in ("ENCODER", "DECODER") if has_decoder else ("ENCODER",):
        part = model[section]
        for key in ("DEPTH", "EMBED_DIM", "NUM_HEADS"):
            require(part[key] >= 1, f"MODEL.{section}.{key}", "must be at least 1")
        what = f"must be divisible by MODEL.{section}.NUM_HEADS={part.NUM_HEADS}"
        require(part.EMBED_DIM % part.NUM_HEADS == 0, f"MODEL.{section}.EMBED_DIM", what)
        require(int(part.EMBED_DIM * model.MLP_RATIO) >= 1, "MODEL.MLP_RATIO", "leaves the MLP without hidden units")
        require(part.EMBED_DIM % 4 == 0, f"MODEL.{section}.EMBED_DIM", "must be divisible by 4 (2-D sine-cosine table)")
    if has_decoder:
        _check_sources(model, require)
    is_evaluated = model.DTYPE == "float32" or (config.EVAL and amp_dtype(config) == "bfloat16")
    require(is_evaluated, "MODEL.DTYPE", "is to evaluate only, with -eval and -amp bf16")
    what = "is another mean of the patches than MODEL.GLOBAL_POOL, which is True, too; choose one"
    require(not (model.POOL_AFTER_NORM and model.GLOBAL_POOL), "MODEL.POOL_AFTER_NORM", what)
    what = "reads the class token, so the classifier must read the patches: set MODEL.GLOBAL_POOL True, too"
    require(model.GLOBAL_POOL or not model.DISTILL_HEAD, "MODEL.DISTILL_HEAD", what)
    is_finetuned = network_kind(config) == "classifier"
    require(is_finetuned or not model.DISTILL_HEAD, "MODEL.DISTILL_HEAD", f"is not for MODEL.TYPE {model.TYPE}")
    num_patches = (height // model.PATCH_SIZE) * (width // model.PATCH_SIZE) * max(1, len(model.CHANNEL_GROUPS))
    what = f"makes {num_patches:,} patches of {model.PATCH_SIZE} pixels, and attention takes at most {_MOST_PATCHES:,}"
    require(num_patches <= _MOST_PATCHES, "DATA.IMAGE_SIZE", what)
    if has_decoder:
        require(model.MASK_RATIO > 0, "MODEL.MASK_RATIO", "pretraining needs hidden patches, so it must be above 0")
        num_visible(num_patches, model.MASK_RATIO)  # raises where it is none


def _check_sources(model: CfgNode, require) -> None:
    sources, depth = model.DECODER.SOURCES, model.ENCODER.DEPTH
    require(not sources or model.DECODER.KIND != SELF, "MODEL.DECODER.SOURCES", "needs MODEL.DECODER.KIND cross")
    are_blocks = all(type(block) is int for block in sources) and sources == sorted(set(sources))
    what = f"must be ascending numbers of blocks, from 0, the encoder's input, to {depth}, its last block, or []"
    require(not sources or (are_blocks and sources[0] >= 0 and sources[-1] == depth), "MODEL.DECODER.SOURCES", what)


def _check_stages(config: CfgNode, require) -> None:
    key, rows, (size, width) = "TRAIN.RESOLUTION", config.TRAIN.RESOLUTION, image_size_hw(config)
    require(size == width, key, f"its images are square, and DATA.IMAGE_SIZE is {config.DATA.IMAGE_SIZE}")
    are_rows = len(rows) > 0 and all(isinstance(row, (list, tuple)) and len(row) in (2, 3) for row in rows)
    require(are_rows, key, "must be a list of [first epoch, pixels] or [first epoch, pixels, mask ratio]")
    are_numbers = all(type(row[0]) is int and type(row[1]) is int and type(row[-1]) in (int, float) for row in rows)
    require(are_numbers, key, "epochs and pixels are integers, a mask ratio is a number")
    epochs, sides = [row[0] for row in rows], [row[1] for row in rows]
    require(epochs == sorted(set(epochs)) and epochs[0] == 0, key, "the epochs must ascend from 0")
    is_reached = epochs[-1] < config.TRAIN.NUM_EPOCHS or len(rows) == 1
    require(is_reached, key, f"its last stage is never reached, as TRAIN.NUM_EPOCHS is {config.TRAIN.NUM_EPOCHS}")
    are_whole = all(side > 0 and side % config.MODEL.PATCH_SIZE == 0 for side in sides)
    require(are_whole, key, f"sides must be multiples of MODEL.PATCH_SIZE, {config.MODEL.PATCH_SIZE} pixels")
    what = f"the last side must be DATA.IMAGE_SIZE, which is {size}, and no other one larger"
    require(sides[-1] == size and max(sides) == size, key, what)
    require(all(0 < row[2] < 1 for row in rows if len(row) == 3), key, "mask ratios must be above 0 and below 1")
    require(list(rows[-1][2:]) in ([], [config.MODEL.MASK_RATIO]), key, "the last mask ratio is MODEL.MASK_RATIO")
    require(not config.TRAIN.TO_STATIC, key, "a static graph has one size; set TRAIN.TO_STATIC False")


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
