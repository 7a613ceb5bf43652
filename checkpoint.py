"""Load weights from a file into a model, with a report on every tensor.

No code that a file names is run; see `storage/weight_files.py`.
"""

import collections
import dataclasses
import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

from errors import UserError, abridge
from layers.pos_embed import resize_table, square_grid
from layers.relative_position import num_rows, resize_bias_table
from storage import manifest, weight_files
from storage.architecture import Architecture, options
from storage.channels import adapt_channels
from storage.clip_architecture import IMAGE_PREFIX, TEXT_PREFIX, ClipArchitecture
from storage.last_norm import missing_last_norm
from storage.run_files import CONFIG_FILE, EMA_FILE, MODEL_FILE
from storage.stored_tensor import FLOAT_DTYPES, StoredTensor
from storage.tensor_shapes import count_layers
from strict_config import read_yaml

# Patterns of names: what a pretraining file holds and a classifier does not.
DECODER_NAMES = ("mask_token", "decoder_position_embedding", "decoder.*", "decoder_pred.*", "linear_projection.*")
# And what an encoder alone does not hold, either.
NAMES_BESIDE_ENCODER = (*DECODER_NAMES, "classifier.*", "distill_norm.*", "distill_classifier.*")
# Patterns of the tensors that a setting adds to a model, or takes away, and its key.
_SETTINGS = tuple((pattern, field.metadata["key"]) for field in options() for pattern in field.metadata["adds"])
# What a classifier may have and a pretrained encoder does not: position biases, layer scales, a teacher's head.
ADDED_TO_FINETUNE = tuple(
    pattern
    for field in options()
    for pattern in field.metadata["adds"]
    if field.metadata["only"] == "classifier" and field.name != "global_pool"
)
# Paddle 2.2 saved the probe's batch norm with an affine part, which is not used.
UNUSED_PROBE_NORM = ("classifier.0.weight", "classifier.0.bias")
_PATCHES = "patch_embedding.patch_embedding.weight"
_POSITION_TABLES = ("encoder_position_embedding", "decoder_position_embedding")


@dataclasses.dataclass
class LoadReport:
    """The outcome for every tensor; `str()` returns the lines that a run prints."""

    path: Path
    loaded: list[str]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    resized: list[str]
    made: list[str] = dataclasses.field(default_factory=list)
    adapted: str = ""

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors from {self.path}"]
        for title, names in (
            ("resized to this model's grid", self.resized),
            ("of ones and zeros, as no norm followed the encoder in its pretraining", self.made),
            ("not in the file, kept as initialised", self.missing),
            ("of another shape, kept as initialised", self.mismatched),
            ("in the file but not in the model, ignored", self.unexpected),
        ):
            if names:
                lines.append(f"  {title}: {abridge(names)}")
        if self.adapted:
            lines.append(f"  adapted from {self.adapted}")
        return "\n".join(lines)


def load_weights(
    model: nn.Layer,
    path: str | Path,
    *,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    allow_mismatched: Sequence[str] = (),
    source_grid_hw: tuple[int, int] | None = None,
    adapt: str | None = None,
) -> LoadReport:
    """Copy weights from a file into a model, and account for every tensor.

    Args:
        model: says what it is by its `architecture`; position tables are interpolated to its grid.
        path: flat `.pdparams`, PaddleViT's `{'model': ...}`, `.safetensors`, or a checkpoint or run directory
            of ours; the suffix may be left out.
        allow_missing: patterns (`classifier.*`) of names that may keep their initial values.
        allow_unexpected: patterns of names in the file that may be ignored.
        allow_mismatched: patterns of names that keep their initial values where the shape differs.
        source_grid_hw: patch grid of the file's position tables; None: that of its config, else square.
        adapt: how weights for another number of channels are taken, see `adapt_channels`; None: they are refused.

    Raises:
        UserError: if the file cannot be read, any other tensor is missing, unexpected or mis-shaped, or holds values
            that are infinite or not a number.
            The model is unchanged then.
    """
    if any(isinstance(allowed, str) for allowed in (allow_missing, allow_unexpected, allow_mismatched)):
        raise ValueError("allow_missing, allow_unexpected and allow_mismatched are lists of patterns, not one text")
    file = _tower_for(model, _open(path))
    path, weights, own = file.path, dict(file.tensors), model.state_dict()
    made = missing_last_norm(weights) if "encoder.norm.weight" in own else {}
    weights |= made
    adapted = "" if _PATCHES not in own else adapt_channels(weights, own[_PATCHES].shape[1], adapt)
    left_out = [name for name in file.tensors if name not in weights]
    _check_architecture(file, model)
    grid_hw = source_grid_hw or (file.architecture.grid_hw if file.architecture else _recorded_grid(path))
    resized = _resize_bias_tables(weights, own, model, grid_hw)
    resized = _resize_position_tables(weights, own, model, grid_hw) + resized

    common, missing, unexpected, mismatched = _compare(weights, own)
    refused = {
        "missing from the file": _outside(missing, (*allow_missing, *left_out)),
        "not in this model": _outside(unexpected, allow_unexpected),
        "of another shape": _outside(mismatched, allow_mismatched),
    }
    _raise_if_any(path, refused, weights, own)
    loaded = [name for name in common if name not in mismatched]
    _copy(path, {name: weights[name] for name in loaded}, own)
    return LoadReport(path, loaded, missing, unexpected, mismatched, resized, list(made), adapted)


def load_encoder(model: nn.Layer, path: str | Path, blocks: int | None = None, **options: object) -> LoadReport:
    """Load the encoder of any weights into a model from images to features; see `load_weights`.

    Args:
        blocks: of the file's encoder, where the model has fewer; see `upper_blocks`.
        options: of `load_weights`.
    """
    unexpected = (*NAMES_BESIDE_ENCODER, *upper_blocks(len(model.encoder.layers), blocks))
    return load_weights(model, path, allow_unexpected=unexpected, **options)


def upper_blocks(depth: int, blocks: int | None) -> list[str]:
    """Return patterns of the encoder's blocks that a model of some depth leaves out of weights that have more."""
    return [f"encoder.layers.{number}.*" for number in range(depth, blocks or depth)]


def _compare(weights: dict, own: dict) -> tuple[list[str], ...]:
    """Return the names in both, only in the model, only in the file, and in both with other shapes."""
    common = [name for name in own if name in weights]
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    return (
        common,
        missing,
        unexpected,
        [name for name in common if tuple(weights[name].shape) != tuple(own[name].shape)],
    )


def _copy(path: Path, weights: dict[str, StoredTensor], own: dict) -> None:
    """Copy tensors into those of a model; each is read twice, so that a bad one leaves the model as it was."""
    for name, tensor in weights.items():
        if tensor.dtype not in FLOAT_DTYPES:
            raise UserError(f"{path}: {name} has dtype {tensor.dtype}; weights are {', '.join(FLOAT_DTYPES)}")
        tensor.checked(name, path).load()  # raises where a value is not finite
    for name, tensor in weights.items():
        own[name].set_value(_as_type(tensor, str(own[name].dtype).split(".")[-1]))


def _as_type(tensor: StoredTensor, dtype: str) -> np.ndarray | paddle.Tensor:
    """Return the values of a tensor in a model's type."""
    if dtype == "bfloat16":  # which NumPy does not have
        return paddle.to_tensor(tensor.read_float32()).astype(dtype)
    return tensor.read().astype(dtype)


def _open(path: str | Path) -> weight_files.WeightFile:
    """Open the weight file behind a path; raise UserError if it is damaged, or of torch."""
    path = weight_files.resolve(path)
    damage = manifest.find_damage(path.parent, only=path.name)
    if damage is not None:
        raise UserError(f"{damage}; take another checkpoint of the run")
    file = weight_files.read(path)
    if file.kind == "torch":
        raise UserError(
            f"{path}: a torch file, whose names differ; convert it: python -m port_weights {path} NEW.pdparams"
        )
    return file


def _tower_for(model: nn.Layer, file: weight_files.WeightFile) -> weight_files.WeightFile:
    """Return the tower of a CLIP model's file that an image encoder or a text tower can be filled from."""
    clip = file.clip_architecture
    if clip is None or isinstance(model.architecture, ClipArchitecture):
        return file
    is_image = isinstance(model.architecture, Architecture)
    prefix, architecture = (IMAGE_PREFIX, clip.image) if is_image else (TEXT_PREFIX, clip.text)
    inside = {name.removeprefix(prefix): tensor for name, tensor in file.tensors.items() if name.startswith(prefix)}
    return dataclasses.replace(file, tensors=inside, metadata={architecture.KEY: architecture.to_dict()})


def recorded_class_names(path: str | Path) -> list[str] | None:
    """Return the names of the classes that weights were trained on; None where no YAML beside them has them."""
    names = recorded_setting(path, "DATA", "CLASS_NAMES")
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def recorded_setting(path: str | Path, section: str, key: str) -> object:
    """Return a setting of the run of some weights, from the YAML beside them; None without one."""
    try:
        values = read_yaml(weight_files.config_beside(weight_files.resolve(path))).get(section)
    except UserError:
        return None
    return values.get(key) if isinstance(values, dict) else None


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Read a flat {name: array} from a weight file, as `load_weights` finds it."""
    return {name: tensor.read() for name, tensor in weight_files.read(weight_files.resolve(path)).tensors.items()}


def _resize_position_tables(weights: dict, own: dict, model: nn.Layer, source_grid_hw) -> list[str]:
    """Interpolate the file's position tables to the model's grid, in `weights`; returns their names."""
    resized, groups = [], max(1, len(getattr(model.architecture, "channel_groups", ())))
    for name in _POSITION_TABLES:
        if name not in weights or name not in own:
            continue
        table, grid_hw = weights[name], model.architecture.grid_hw
        if len(table.shape) != 3 or table.shape[2] != own[name].shape[2]:
            continue  # reported as a mismatch
        if table.shape[1] == own[name].shape[1] and source_grid_hw in (None, grid_hw):
            continue
        weights[name] = StoredTensor.of(resize_table(table.read(), grid_hw, source_grid_hw, groups))
        source = source_grid_hw or square_grid((table.shape[1] - 1) // groups)
        resized.append(f"{name} {source[0]}x{source[1]} -> {grid_hw[0]}x{grid_hw[1]}")
    return resized


def _resize_bias_tables(weights: dict, own: dict, model: nn.Layer, source_grid_hw) -> list[str]:
    """Interpolate the file's tables of relative position to the model's grid, in `weights`; returns their names."""
    resized, names = [], [name for name in weights if name.endswith("position_bias.table") and name in own]
    source = source_grid_hw
    if source is None and names and "encoder_position_embedding" in weights:
        source = square_grid(weights["encoder_position_embedding"].shape[1] - 1)
    for name in names:
        table, grid_hw = weights[name], model.architecture.grid_hw
        if source in (None, grid_hw) or table.shape != (num_rows(source), own[name].shape[1]):
            continue
        weights[name] = StoredTensor.of(resize_bias_table(table.read(), grid_hw, source))
        resized.append(f"{name} {source[0]}x{source[1]} -> {grid_hw[0]}x{grid_hw[1]}")
    return resized


def _recorded_grid(weight_file: Path) -> tuple[int, int] | None:
    """Read the patch grid from the config.yaml beside a weight file of ours."""
    config_file = weight_file.parent / CONFIG_FILE
    if weight_file.name not in (MODEL_FILE, EMA_FILE) or not config_file.is_file():
        return None
    try:
        config = read_yaml(config_file)
        size, patch = config["DATA"]["IMAGE_SIZE"], config["MODEL"]["PATCH_SIZE"]
        height, width = (size, size) if isinstance(size, int) else size
        return height // patch, width // patch
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _check_architecture(file: weight_files.WeightFile, model: nn.Layer) -> None:
    """Raise UserError if the recorded architecture differs from the model's in what no shape shows: groups, heads."""
    _check_groups(file, model)
    architecture = file.architecture or file.clip_architecture or file.text_architecture
    if architecture is not None and architecture.shapes() != {name: t.shape for name, t in file.tensors.items()}:
        raise UserError(f"{file.path}: the architecture recorded in the file does not match its tensors")
    own = model.architecture
    is_other_kind = architecture is not None and not isinstance(architecture, Architecture)
    if is_other_kind and own != architecture and own.shapes() == architecture.shapes():
        raise UserError(f"{file.path}: holds {architecture}; this model is {own}")
    sources = [getattr(known, "decoder_sources", ()) for known in (architecture, own)]
    if all(sources) and sources[0] != sources[1]:  # as many of them may be other ones
        raise UserError(f"{file.path}: its decoder reads the blocks {list(sources[0])}: set MODEL.DECODER.SOURCES so")
    for part in ("encoder", "decoder"):
        tower, other = (getattr(known, part, None) for known in (architecture, own))
        if None not in (tower, other) and tower.width == other.width and tower.heads != other.heads:
            raise UserError(
                f"{file.path}: trained with {tower.heads} {part} heads, and this model has {other.heads}: "
                f"set MODEL.{part.upper()}.NUM_HEADS {tower.heads}"
            )


def _check_groups(file: weight_files.WeightFile, model: nn.Layer) -> None:
    """Raise UserError if weights are for other groups of channels; shapes show their sizes only."""
    own = getattr(model.architecture, "channel_groups", None)
    if own is None or "encoder_position_embedding" not in file.tensors:
        return
    if file.architecture is not None:
        theirs = file.architecture.channel_groups
    else:
        theirs = recorded_setting(file.path, "MODEL", "CHANNEL_GROUPS")
    if theirs is not None:
        theirs = [list(group) for group in theirs]
        is_same = theirs == [list(group) for group in own]
    else:
        count = sum(re.fullmatch(r"patch_embedding\.groups\.\d+\.weight", name) is not None for name in file.tensors)
        theirs, is_same = f"of {count} groups", count == len(own)
    if not is_same:
        raise UserError(
            f"{file.path}: was trained with MODEL.CHANNEL_GROUPS {theirs}, and this model has "
            f"{[list(group) for group in own]}: set it as the weights have it"
        )


def _advice(refused: list[str], weights: dict[str, StoredTensor], own: dict) -> str:
    """Return advice on why a file and a model differ, by the names of their tensors and of those `refused`."""
    if "encoder_position_embedding" not in own:
        return "are the sections TEXT and MODEL, and LIT.EMBED_DIM, those of the file?"
    if "encoder_position_embedding" not in weights:
        return "its names are of another code; convert it: python -m port_weights FILE NEW.pdparams"
    patches = [tuple(tensors[_PATCHES].shape) for tensors in (weights, own) if _PATCHES in tensors]
    if len(patches) == 2 and all(map(len, patches)) and patches[0][1:] != patches[1][1:]:
        return _patch_advice(*patches)
    sizes = [_encoder_size(tensors) for tensors in (weights, own)]
    if sizes[0] != sizes[1]:
        return "the file's encoder is {} wide and {} deep, the model's {} and {}: is -cfg another model's?".format(
            *sizes[0], *sizes[1]
        )
    matched = _settings_behind(refused)
    if matched and "MODEL.GLOBAL_POOL" not in matched:
        return f"set {' and '.join(sorted(matched))} as the file's run has it"
    if matched == {"MODEL.GLOBAL_POOL"}:
        return f"set MODEL.GLOBAL_POOL {'encoder_norm.weight' in weights}, as the file has it"
    if "mask_token" in weights and "mask_token" not in own:
        return "the file is a pretrained autoencoder: finetune or probe it first"
    if "mask_token" in own and "mask_token" not in weights:
        return (
            "the file holds no decoder (it is encoder only, or a classifier), and a trained one is needed here; "
            "of the published weights, those named mae_full and mae_visualize have one"
        )
    return _head_advice(weights, own)


def _settings_behind(refused: list[str]) -> set[str]:
    """Return the fewest keys that explain tensors which do not fit; empty if some have no key."""
    if any(name.startswith("decoder.source_mix.") for name in refused):  # such an encoder has no last norm
        refused = [name for name in refused if not name.startswith("encoder.norm.")]
    keys = [{key for pattern, key in _SETTINGS if fnmatch.fnmatchcase(name, pattern)} for name in refused]
    found: set[str] = set()
    while keys and all(keys):
        counts = collections.Counter(key for own in keys for key in sorted(own))
        found.add(counts.most_common(1)[0][0])
        keys = [own for own in keys if not own & found]
    return set() if keys else found


def _head_advice(weights: dict[str, StoredTensor], own: dict) -> str:
    """Return advice on why the classifiers of a file and a model differ."""
    heads = ("classifier.weight", "classifier.1.weight")
    if not any(name in weights for name in heads) and any(name in own for name in heads):
        return "the file holds no classifier: finetune or probe it first"
    if ("classifier.1.weight" in weights) != ("classifier.1.weight" in own):
        return "one is a linear probe and the other is not: use main_multi_gpu_linearprobe.py for probes"
    if ("encoder_norm.weight" in weights) != ("encoder_norm.weight" in own):
        return f"set MODEL.GLOBAL_POOL {'encoder_norm.weight' in weights}, as the file has it"
    head = [name for name in heads if name in weights and name in own]
    if any(weights[name].shape[1:] != tuple(own[name].shape[1:]) for name in head):
        return f"set MODEL.NUM_CLASSES to the file's {weights[head[0]].shape[-1]}"
    return "is -cfg, or a setting in -opts, that of another model?"


def _patch_advice(file: tuple[int, ...], model: tuple[int, ...]) -> str:
    """Return advice for patch projections [D, C, P, P] of other channels or patches."""
    (_, channels, patch_px, *_), advice = (*file, 0, 0, 0), []
    if (channels,) != model[1:2]:
        advice.append(
            f"DATA.IMAGE_CHANNELS {channels}, with as many numbers in DATA.IMAGENET_MEAN and IMAGENET_STD (or, for a "
            "new run, MODEL.ADAPT_CHANNELS repeat)"
        )
    if (patch_px,) != model[2:3]:
        advice.append(f"MODEL.PATCH_SIZE {patch_px}")
    return f"the file is for images of {channels} channels in patches of {patch_px} pixels: set {' and '.join(advice)}"


def _encoder_size(tensors: dict) -> tuple[int, int]:
    """Return width and depth."""
    return tensors["encoder_position_embedding"].shape[-1], count_layers(tensors, "encoder")


def _raise_if_any(path: Path, refused: dict[str, list[str]], weights: dict[str, StoredTensor], own: dict) -> None:
    """Raise UserError if a tensor does not fit; `refused` are the names of such, by what is wrong with them."""
    for what, names in refused.items():
        if names:
            advice = _advice([name for some in refused.values() for name in some], weights, own)
            both = [name for name in names if name in weights and name in own]
            shapes = {n: f" {list(weights[n].shape)} in the file, {list(own[n].shape)} in the model" for n in both}
            listed = abridge([name + shapes.get(name, "") for name in names])
            raise UserError(f"{path} does not fit this model: {len(names)} tensors {what}: {listed}; {advice}")


def _outside(names: list[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that no pattern matches."""
    return [name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
