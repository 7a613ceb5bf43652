"""The result of recognising a weight file, and the steps that all families share."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from config import get_config
from errors import UserError, abridge
from layers.pos_embed import sincos_table
from port_weights import names
from storage.architecture import NORM_EPS, Architecture
from storage.files import is_a
from storage.stored_tensor import FLOAT_DTYPES, StoredTensor
from storage.tensor_shapes import count_layers
from storage.weight_files import WeightFile, config_beside

Tensors = dict[str, StoredTensor]
Grid = tuple[int, int] | None

_LARGEST_TABLE = 1 << 26
_LARGEST_EXPANSION = 4  # bytes of all tensors over bytes of the file; above it, tensors share theirs
_TABLE_TOLERANCE = 1e-2  # bfloat16 keeps 3 digits
OTHER_NETWORKS = ("tch_model", "teacher", "momentum_encoder", "target_encoder", "ema_model")  # beside the one trained
_DROPPED = (
    (rf"(^|\.)({'|'.join(OTHER_NETWORKS)})\.", "another network of the training"),
    (r"(^|\.)(attn_adapter|hidden_adapter)\.", "adapter of a distillation"),
    (r"(^|\.)(predictor|projector)\.", "head of a contrastive training"),
    (r"^(text_encoder\.|text_projection$|vision_projection$|logit_scale$)", "text tower, or projection beside it"),
    (r"(^|\.)relative_position_index$", "index of the relative positions, which follows from the grid"),
    (r"(^|\.)pooler\.", "transformers' pooler, which a MAE does not have"),
    (r"^head\.0\.num_batches_tracked$", "torch's counter of batches, kept in the description"),
    (r"^classifier\.0\.(weight|bias)$", "affine part of the probe's batch norm, unused (Paddle 2.2)"),
)
_UNSUPPORTED = (
    (r"relative_position|rel_pos", "relative position bias of another kind"),
    (r"\.(gamma_?[12]?|ls[12]\.gamma)$|\.lambda_?[12]$", "layer scale of another kind"),
    (r"\.[qk]_norm\.", "normalised queries and keys"),
    (r"^dist_token", "distillation token"),
    (r"reg_token|register", "register tokens"),
    (r"^patch_embed\.backbone\.|\.stages?\.|downsample", "a convolutional or hierarchical backbone"),
)


_KNOWN_ENCODERS = {  # (width, depth): heads; timm, official MAE and MAWS agree on these
    (768, 12): 12,
    (1024, 24): 16,
    (1280, 32): 16,
    (2560, 24): 32,
    (4096, 32): 32,
}
_DISPUTED = {
    192: "MAE-Lite's ViT-Tiny has 12 heads, timm's and DeiT's have 3",
    384: "MAE-Lite's ViT-Small has 12 heads, timm's and DeiT's have 6",
}


@dataclasses.dataclass
class Recognised:
    """A file's tensors under our names and in our layout.

    Attributes:
        family: name of the implementation that wrote it.
        tensors: what belongs to the model.
        dropped: the rest, with the reason.
        heads: attention heads of the encoder and the decoder, where the file or its family tells.
        heads_from: where the number of heads comes from, for the report ("as config.json says").
        norm_eps: what layer norms add to the variance, where the file or its family tells.
        pool_after_norm: whether the classifier reads the mean of the normalised patches, where the file tells.
        norm_pix_loss: whether the decoder predicts normalised pixels, where the file tells.
        decoder_sources: blocks that a cross decoder reads, where the file tells.
        grid_hw: patches per column and per row, where the file tells.
        channel_groups: see `Architecture`; no shape tells which channels are in which group.
        preprocessing: configuration keys of the images, where the file's config tells them.
        notes: what a user should know.
    """

    family: str
    tensors: Tensors
    dropped: dict[str, str]
    heads: tuple[int | None, int | None] = (None, None)
    heads_from: str = "as the file says"
    norm_pix_loss: bool | None = None
    decoder_sources: tuple[int, ...] | None = None
    norm_eps: float = NORM_EPS
    pool_after_norm: bool = False
    grid_hw: Grid = None
    channel_groups: tuple[tuple[int, ...], ...] = ()
    preprocessing: dict[str, object] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def encoder_heads(shapes: Mapping, given: int | None, of_file: int | None = None) -> tuple[int, int]:
    """Return the number of attention heads of an encoder, and the one that is known for its size.

    Args:
        shapes: of its tensors under our names.
        given: what the user says; goes first.
        of_file: what the file says.

    Raises:
        UserError: if nothing tells it.
    """
    width, depth = (shapes.get("cls_token") or (0,))[-1], count_layers(shapes, "encoder")
    known = of_file or _KNOWN_ENCODERS.get((width, depth), given)
    if given is None and known is None:
        why = _DISPUTED.get(width, "no model of this size is known here")
        raise UserError(
            f"{width} wide and {depth} deep, but the number of attention heads is not visible in the shapes, and {why};"
            " say it with -heads ENCODER[,DECODER]"
        )
    return (known if given is None else given), known


def check_tensors(file: WeightFile, what: str, tensors: Tensors, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UserError unless tensors are exactly those of an architecture, and not larger than their file can hold.

    Args:
        what: the tensors are in words.
        expected: names and shapes.
    """
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} has no place" for name in tensors if name not in expected]
    problems += [
        f"{name} is {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    problems += [
        f"{name} is {tensor.dtype}, and weights are {', '.join(FLOAT_DTYPES)}"
        for name, tensor in tensors.items()
        if tensor.dtype not in FLOAT_DTYPES
    ]
    if problems:
        raise UserError(f"{file.path}: not a whole {what}: {abridge(problems, 5, '; ')}")
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > _LARGEST_EXPANSION * file.path.stat().st_size:
        raise UserError(f"{file.path}: refused, its tensors claim {size:,} bytes, far more than the file has")


def preprocessing_beside(path: Path) -> dict[str, object]:
    """Return how the images of a run were normalised, and the names of its classes, by the YAML beside its weights.

    Empty if there is none.
    """
    try:
        data = get_config(config_beside(path)).DATA
    except UserError:
        return {}
    found = {"DATA.IMAGENET_MEAN": list(data.IMAGENET_MEAN), "DATA.IMAGENET_STD": list(data.IMAGENET_STD)}
    return found if data.CLASS_NAMES is None else found | {"DATA.CLASS_NAMES": list(data.CLASS_NAMES)}


def recorded_preprocessing(file: WeightFile) -> dict[str, object]:
    """Return the same as `preprocessing_beside` from the description in a file of this project; empty without one."""
    values, found = file.metadata.get("preprocessing"), {}
    for key, kind in (
        ("DATA.IMAGENET_MEAN", (int, float)),
        ("DATA.IMAGENET_STD", (int, float)),
        ("DATA.CLASS_NAMES", str),
    ):
        value = values.get(key) if isinstance(values, dict) else None
        if isinstance(value, list) and value and all(is_a(item, kind) for item in value):
            found[key] = value
    return found


def split(file: WeightFile, prefix: str) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors under a prefix, without it, and those elsewhere that can be dropped."""
    dropped: dict[str, str] = {}
    drop_known(file, [name for name in file.tensors if not name.startswith(prefix)], dropped)
    inside = {name[len(prefix) :]: tensor for name, tensor in file.tensors.items() if name.startswith(prefix)}
    return inside, dropped


def drop_known(file: WeightFile, unplaced: list[str], dropped: dict[str, str]) -> None:
    """Note why tensors without a place are dropped; raise if there is no reason for one of them."""
    unknown = []
    for name in unplaced:
        reason = next((reason for pattern, reason in _DROPPED if re.search(pattern, name)), None)
        if reason is None:
            unknown.append(name)
        else:
            dropped[name] = reason
    if unknown:
        has = {what for name in unknown for pattern, what in _UNSUPPORTED if re.search(pattern, name)}
        why = f"; the model has {', '.join(sorted(has))}, which this project does not" if has else ""
        raise UserError(f"{file.path}: {len(unknown)} tensors have no place: {abridge(unknown, 6)}{why}")


def rename(official: Tensors) -> tuple[Tensors, list[str]]:
    """Give official tensors our names; returns those without one, too."""
    tensors, unplaced = {}, []
    for name, tensor in official.items():
        ours = names.our_name(name)
        if ours is None:
            unplaced.append(name)
        else:
            tensors[ours] = tensor
    return tensors, unplaced


def is_sincos(table: StoredTensor, grid_hw: tuple[int, int], has_class_row: bool = True) -> bool:
    """Return True if a position table [1, rows, D] is the fixed sine-cosine table of a grid."""
    if table.shape[2] % 4 or table.size > _LARGEST_TABLE or table.dtype not in FLOAT_DTYPES:
        return False
    wanted = sincos_table(table.shape[2], grid_hw)[:, 0 if has_class_row else 1 :]
    return table.shape == wanted.shape and bool(np.abs(table.read() - wanted).max() < _TABLE_TOLERANCE)


def layout(tensors: Tensors) -> str | None:
    """Return the layout of the matrices, from the first fused projection, which is not square."""
    qkv = tensors.get("encoder.layers.0.attn.qkv.weight")
    if qkv is None or len(qkv.shape) != 2:
        return None
    rows, columns = qkv.shape
    return "torch" if rows == 3 * columns else "paddle" if columns == 3 * rows else None


def check_layout(file: WeightFile, tensors: Tensors, wanted: str) -> None:
    """Raise UserError unless the matrices have the wanted layout."""
    if layout(tensors) != wanted:
        qkv = tensors.get("encoder.layers.0.attn.qkv.weight")
        what = "missing" if qkv is None else f"of shape {list(qkv.shape)}"
        raise UserError(f"{file.path}: the first layer's fused query, key and value projection is {what}")


def drop_lower_decoder(found: Recognised, architecture: Architecture) -> Architecture:
    """Drop a decoder that was trained on a lower block, and would get the last one's output in other code.

    Args:
        architecture: of all of the tensors.

    Returns:
        The architecture of what stays.
    """
    if architecture.decode_layer is None:
        return architecture
    encoder = architecture.without_decoder()
    for name in architecture.shapes().keys() - encoder.shapes().keys():
        if found.tensors.pop(name, None) is not None:
            found.dropped[name] = "decoder that was trained on a lower block"
    return encoder
