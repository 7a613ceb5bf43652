"""Files with the official MAE's names, which are timm's: official MAE, timm, PASSL, MAE-Lite, MAE-CT, MAWS, MoCo v3."""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from errors import UserError
from port_weights import cross_decoder, names
from port_weights.recognised import (
    Grid,
    Recognised,
    Tensors,
    check_layout,
    drop_known,
    is_sincos,
    layout,
    rename,
    split,
)
from storage.stored_tensor import StoredTensor, concatenated
from storage.weight_files import WeightFile

_TIMM_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}


def convert(file: WeightFile, prefix: str, config: Mapping, grid_hw: Grid) -> Recognised:
    """Map a file with official names; see `families.recognise`."""
    inside, dropped = split(file, prefix)
    if prefix.endswith("base_encoder."):  # MoCo v3 keeps its projector in the place of the classifier
        for name in [name for name in inside if name.startswith("head.")]:
            dropped[prefix + name] = "head of a contrastive training"
            del inside[name]
    _drop_partial_block(inside, prefix, dropped)
    is_cross = cross_decoder.LANDMARK in inside
    inside = cross_decoder.with_usual_names(_with_usual_biases(_with_usual_scales(inside)))
    has_class_row, grid_hw = _read_table(file, inside, grid_hw)
    if not has_class_row:
        inside["pos_embed"] = _with_zero_row(inside["pos_embed"])
    family = "CrossMAE" if is_cross else _official_family(file, prefix, inside, dropped, has_class_row)
    tensors, unplaced = rename(inside)
    drop_known(file, unplaced, dropped)
    if layout(tensors) == "torch":
        tensors = names.transpose_linear(tensors)
    check_layout(file, tensors, "paddle")
    found = Recognised(family, tensors, dropped, grid_hw=grid_hw)
    if "mask_token" in inside and isinstance(file.arguments.get("norm_pix_loss"), bool):
        found.norm_pix_loss = file.arguments["norm_pix_loss"]
    if is_cross:
        found.heads, found.heads_from = cross_decoder.heads(tensors), "as CrossMAE's models have"
        found.decoder_sources = cross_decoder.recorded_sources(file.arguments, tensors)
    size = re.match(r"(?:vit|deit)_([a-z]+)_patch", str(config.get("architecture")))
    if size and size[1] in _TIMM_HEADS:
        found.heads, found.heads_from = (_TIMM_HEADS[size[1]], None), "as timm's model of that name has"
    found.preprocessing = _timm_preprocessing(config)
    if not has_class_row:
        found.notes.append("the position table got a zero row for the class token, which has no position in the file")
    tables = [tensor for name, tensor in tensors.items() if name.endswith("position_bias.table")]
    if tables:
        found.heads, found.heads_from = (tables[0].shape[-1], None), "as its relative position biases have"
    elif "MAE-Lite" in family:
        found.heads = _lite_heads(tensors, is_moco=prefix.endswith("base_encoder."))
        found.heads_from = "as MAE-Lite's models have"
    return found


def _timm_preprocessing(config: Mapping) -> dict[str, object]:
    """Read size and normalisation of the images from timm's config.json."""
    values = config.get("pretrained_cfg")
    if not isinstance(values, dict):
        return {}
    keys = {"DATA.IMAGENET_MEAN": "mean", "DATA.IMAGENET_STD": "std", "DATA.CROP_PCT": "crop_pct"}
    return {key: values[name] for key, name in keys.items() if values.get(name) is not None}


def _official_family(file: WeightFile, prefix: str, inside: Tensors, dropped: dict, has_class_row: bool) -> str:
    if prefix == "vision_encoder.":
        return "MAWS CLIP, image tower"
    if not has_class_row:
        return "MAE-CT, or timm without a position for the class token"
    if prefix.endswith("base_encoder."):  # MAE-Lite keeps it under "model", MoCo v3 itself under "state_dict"
        return "MAE-Lite's MoCo v3" if file.wrapper == "model" else "MoCo v3"
    if prefix == "module.model." or any("attn_adapter" in name for name in dropped):
        return "MAE-Lite"
    if file.kind == "paddle":
        return "PASSL or PaddleClas"
    width = inside["patch_embed.proj.weight"].shape[0]
    if width >= 2560:
        return "MAWS"
    if file.wrapper == "model" or "mask_token" in inside:
        return "official MAE"
    return "timm ViT or MAWS, which share their names"


def _read_table(file: WeightFile, inside: Tensors, grid_hw: Grid) -> tuple[bool, Grid]:
    """Return whether the position table has a row for the class token (MAE-CT's has none), and its grid."""
    table = inside.get("pos_embed")
    if table is None or table.shape[0] != 1 or table.shape[1] < 2:
        raise UserError(f"{file.path}: pos_embed is {'missing' if table is None else f'of shape {list(table.shape)}'}")
    rows = table.shape[1]
    if grid_hw is not None:
        num_patches = grid_hw[0] * grid_hw[1]
        if rows not in (num_patches, num_patches + 1):
            raise UserError(
                f"{file.path}: -grid {grid_hw[0]},{grid_hw[1]} does not fit pos_embed, which has {rows} rows"
            )
        return rows == num_patches + 1, grid_hw
    side = math.isqrt(rows)
    if side * side != rows:
        return True, None
    if is_sincos(table, (side, side), has_class_row=False):
        return False, (side, side)
    raise UserError(
        f"{file.path}: pos_embed has {rows} rows: {side}x{side} patches without a row for the class token, or "
        f"{rows - 1} patches with one? Say -grid ROWS,COLUMNS"
    )


def _with_zero_row(table: StoredTensor) -> StoredTensor:
    shape = (1, table.shape[1] + 1, table.shape[2])

    def load() -> np.ndarray:
        rows = table.load()
        return np.concatenate([np.zeros_like(rows[:, :1]), rows], axis=1)

    return StoredTensor(shape, table.dtype, load)


def _with_usual_scales(inside: Tensors) -> Tensors:
    """Give timm's layer scales the names that BEiT's have."""
    return {re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name): tensor for name, tensor in inside.items()}


def _with_usual_biases(inside: Tensors) -> Tensors:
    """Join BEiT's biases of queries and values, beside which keys have none, to the one of a fused projection."""
    usual = {name: tensor for name, tensor in inside.items() if not re.search(r"attn\.[qv]_bias$", name)}
    for name, query in inside.items():
        value = inside.get(name.replace("q_bias", "v_bias"))
        if name.endswith("attn.q_bias") and value is not None and value.shape == query.shape and len(value.shape) == 1:
            keys = dataclasses.replace(query, load=lambda query=query: np.zeros_like(query.load()))
            usual[name.replace("q_bias", "qkv.bias")] = concatenated([query, keys, value])
    return usual


def _drop_partial_block(inside: Tensors, prefix: str, dropped: dict[str, str]) -> None:
    """Drop a last block that only gives attention scores, as MAE-Lite's decoupled distillation adds one.

    The decoder goes, too: it was trained on the output of a lower block, and would get another one here.
    """
    blocks = sorted({int(match[1]) for match in (re.match(r"blocks\.(\d{1,3})\.", name) for name in inside) if match})
    last = [name for name in inside if blocks and name.startswith(f"blocks.{blocks[-1]}.")]
    if last and {name.split(".", 2)[2].rpartition(".")[0] for name in last} == {"norm1", "attn.qkv"}:
        decoder = [name for name in inside if name.startswith(("decoder_", "mask_token"))]
        dropped |= {prefix + name: "block that only gives attention scores to a distillation" for name in last}
        dropped |= {prefix + name: "decoder that was trained on a lower block" for name in decoder}
        for name in (*last, *decoder):
            del inside[name]


def _lite_heads(tensors: Tensors, is_moco: bool) -> tuple[int | None, int | None]:
    """Return MAE-Lite's heads: 12 for tiny and small, but 6 for the small encoder of MoCo v3."""
    width = tensors["patch_embedding.patch_embedding.weight"].shape[0]
    encoder = {192: 12, 384: 6 if is_moco else 12}.get(width)
    mask_token = tensors.get("mask_token")
    return encoder, {96: 3, 192: 6}.get(mask_token.shape[-1]) if mask_token is not None else None
