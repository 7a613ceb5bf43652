"""Recognise whose weights a file holds, and give its tensors our names and our layout.

Nearly all implementations name the tensors of a ViT as timm does; they differ in a prefix, in what stands beside the
encoder, and in the class token's row of the position table. Every tensor of a file is mapped, or dropped for a stated
reason; anything else is an error.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from errors import UserError
from port_weights import names
from stored_tensor import StoredTensor, concatenated
from weight_files import WeightFile

Tensors = dict[str, StoredTensor]

_OTHER_NETWORKS = ("tch_model", "teacher", "momentum_encoder", "target_encoder", "ema_model")
_DROPPED = (
    (r"(^|\.)(tch_model|teacher|momentum_encoder|target_encoder|ema_model)\.", "another network of the training"),
    (r"(^|\.)(attn_adapter|hidden_adapter)\.", "adapter of a distillation"),
    (r"(^|\.)(predictor|projector)\.", "head of a contrastive training"),
    (r"^(text_encoder\.|text_projection$|vision_projection$|logit_scale$)", "text tower, or projection beside it"),
    (r"(^|\.)pooler\.", "transformers' pooler, which a MAE does not have"),
    (r"^head\.0\.num_batches_tracked$", "torch's counter of batches, kept in the description"),
    (r"^classifier\.0\.(weight|bias)$", "affine part of the probe's batch norm, unused (Paddle 2.2)"),
)
_UNSUPPORTED = (
    (r"relative_position|rel_pos|\.[qv]_bias$", "relative position bias"),
    (r"\.(gamma_?[12]?|ls[12]\.gamma)$|\.lambda_?[12]$", "layer scale"),
    (r"\.[qk]_norm\.", "normalised queries and keys"),
    (r"^dist_token|head_dist|dist_norm", "distillation token or head"),
    (r"reg_token|register", "register tokens"),
    (r"^patch_embed\.backbone\.|\.stages?\.|downsample", "a convolutional or hierarchical backbone"),
)


@dataclasses.dataclass
class Recognised:
    """A file's tensors under our names and in our layout.

    Attributes:
        family: whose implementation wrote it, in words.
        tensors: what belongs to the model.
        dropped: the rest, with the reason.
        heads: attention heads of the encoder and the decoder, where the file or its family tells.
        heads_from: which of them, in words.
        norm_pix_loss: whether the decoder predicts normalised pixels, where the file tells.
        grid_hw: patches per column and per row, where the file tells.
        notes: what a user should know.
    """

    family: str
    tensors: Tensors
    dropped: dict[str, str]
    heads: tuple[int | None, int | None] = (None, None)
    heads_from: str = "as the file says"
    norm_pix_loss: bool | None = None
    grid_hw: tuple[int, int] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)


def recognise(file: WeightFile, config: Mapping | None = None, grid_hw: tuple[int, int] | None = None) -> Recognised:
    """Map a file's tensors.

    Args:
        config: transformers' config.json beside the file, if there is one.
        grid_hw: patches per column and per row, where the file has a grid that is not square.

    Raises:
        UserError: if the names are of no family that is known here, or some tensor has no place.
    """
    for patch_projection, convert in _CONVERTERS.items():
        prefixes = [
            name.removesuffix(patch_projection)
            for name in file.tensors
            if name == patch_projection or name.endswith(f".{patch_projection}")
        ]
        own = [prefix for prefix in prefixes if not set(prefix.split(".")) & set(_OTHER_NETWORKS)]
        if len(own) > 1:
            raise UserError(
                f"{file.path}: holds {len(own)} encoders, under {', '.join(map(repr, own))}; save one alone"
            )
        if own:
            found = convert(file, own[0], config or {}, grid_hw)
            found.dropped |= dict.fromkeys(file.others, "another entry of the file")
            return _with_description(found, file)
    shown = ", ".join(list(file.tensors)[:6])
    raise UserError(f"{file.path}: not the weights of a ViT that is known here; its tensors: {shown}, ...")


# ---- PaddleViT and this project -----------------------------------------------------------------


def _from_ours(file: WeightFile, prefix: str, config: Mapping, grid_hw: tuple[int, int] | None) -> Recognised:
    inside, dropped = _split(file, prefix)
    tensors, unplaced = {}, []
    for name, tensor in inside.items():
        if names.official_name(name) is None:
            unplaced.append(name)
        else:
            tensors[name] = tensor
    _drop_known(file, unplaced, dropped)
    _check_layout(file, tensors, "paddle")
    return Recognised("this project" if file.metadata else "PaddleViT MAE", tensors, dropped, grid_hw=grid_hw)


# ---- official names ----------------------------------------------------------------------------


def _from_official(file: WeightFile, prefix: str, config: Mapping, grid_hw: tuple[int, int] | None) -> Recognised:
    inside, dropped = _split(file, prefix)
    if prefix.endswith("base_encoder."):  # MoCo v3 keeps its projector in the place of the classifier
        for name in [name for name in inside if name.startswith("head.")]:
            dropped[prefix + name] = "head of a contrastive training"
            del inside[name]
    _drop_partial_block(inside, prefix, dropped)
    has_class_row = _has_class_row(file, inside, grid_hw)
    if not has_class_row:
        inside["pos_embed"] = _with_zero_row(inside["pos_embed"])
    family = _official_family(file, prefix, inside, dropped, has_class_row)
    tensors, unplaced = _rename(inside)
    _drop_known(file, unplaced, dropped)
    if _layout(tensors) == "torch":
        tensors = _to_paddle_layout(tensors)
    _check_layout(file, tensors, "paddle")
    found = Recognised(family, tensors, dropped, grid_hw=grid_hw)
    if not has_class_row:
        found.notes.append("the position table got a zero row for the class token, which has no position in the file")
    if family == "MAE-Lite":
        found.heads = _lite_heads(tensors, is_moco=prefix.endswith("base_encoder."))
        found.heads_from = "as MAE-Lite's models have"
    return found


def _official_family(file: WeightFile, prefix: str, inside: Tensors, dropped: dict, has_class_row: bool) -> str:
    if prefix == "vision_encoder.":
        return "MAWS CLIP, image tower"
    if not has_class_row:
        return "MAE-CT, or timm without a position for the class token"
    if prefix in ("module.model.", "module.base_encoder.") or any("attn_adapter" in name for name in dropped):
        return "MAE-Lite"
    if file.kind == "paddle":
        return "PASSL or PaddleClas"
    width = inside["patch_embed.proj.weight"].shape[0]
    if width >= 2560:
        return "MAWS"
    if file.wrapper == "model" or "mask_token" in inside:
        return "official MAE"
    return "timm ViT or MAWS, which share their names"


def _has_class_row(file: WeightFile, inside: Tensors, grid_hw: tuple[int, int] | None) -> bool:
    """Tell whether the position table starts with a row for the class token: MAE-CT's does not."""
    table = inside.get("pos_embed")
    if table is None or len(table.shape) != 3:
        raise UserError(f"{file.path}: pos_embed is {'missing' if table is None else f'of shape {list(table.shape)}'}")
    rows = table.shape[1]
    if grid_hw is not None:
        return rows != grid_hw[0] * grid_hw[1]
    return math.isqrt(rows) ** 2 != rows


def _with_zero_row(table: StoredTensor) -> StoredTensor:
    shape = (1, table.shape[1] + 1, table.shape[2])

    def load() -> np.ndarray:
        rows = table.load()
        return np.concatenate([np.zeros_like(rows[:, :1]), rows], axis=1)

    return StoredTensor(shape, table.dtype, load)


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


# ---- transformers ------------------------------------------------------------------------------

_TRANSFORMERS_TOP = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "classifier": "head",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.decoder_embed": "decoder_embed",
    "decoder.decoder_norm": "decoder_norm",
    "decoder.decoder_pred": "decoder_pred",
}
_TRANSFORMERS_STACKS = {  # files, and the models of version 5 in memory
    "encoder.layer": "blocks",
    "layers": "blocks",
    "decoder.decoder_layers": "decoder_blocks",
    "decoder.decoder_encoder.layer": "decoder_blocks",
}
_TRANSFORMERS_IN_LAYER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_LAYER_NORM_EPS = 1e-6
_QUERY_KEY_VALUE = re.compile(r"attention\.(?:attention\.(query|key|value)|([qkv])_proj)")


def _from_transformers(file: WeightFile, prefix: str, config: Mapping, grid_hw: tuple[int, int] | None) -> Recognised:
    inside, dropped = _split(file, prefix.removesuffix("vit."))
    official, unplaced, parts = {}, [], {}
    for name, tensor in inside.items():
        new_name, part = _transformers_name(name.removeprefix("vit."))
        if new_name is None:
            unplaced.append(name)
        elif part is not None:
            parts.setdefault(new_name, {})[part] = tensor
        elif new_name in official:
            raise UserError(f"{file.path}: two tensors for {new_name}; one of them is {name}")
        else:
            official[new_name] = tensor
    for name, thirds in parts.items():
        if set(thirds) != set("qkv") or len({(third.shape, third.dtype) for third in thirds.values()}) != 1:
            raise UserError(f"{file.path}: {name} is joined from query, key and value, which do not fit together")
        official[name] = concatenated([thirds[part] for part in "qkv"])
    _drop_known(file, unplaced, dropped)
    tensors, unknown = _rename(official)
    _drop_known(file, unknown, dropped)
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(
            f"{file.path}: config.json says hidden_act={config['hidden_act']!r}; only exact gelu is known here"
        )
    eps = config.get("layer_norm_eps", _LAYER_NORM_EPS)
    notes = (
        [f"config.json says layer_norm_eps={eps}; models here have {_LAYER_NORM_EPS}"] if eps != _LAYER_NORM_EPS else []
    )
    is_mae = "mask_token" in official or config.get("model_type") == "vit_mae"
    return Recognised(
        "transformers ViTMAE" if is_mae else "transformers ViT",
        _to_paddle_layout(tensors),
        dropped,
        (config.get("num_attention_heads"), config.get("decoder_num_attention_heads")),
        "as config.json says",
        config.get("norm_pix_loss") if "mask_token" in official else None,
        grid_hw,
        notes,
    )


def _transformers_name(name: str) -> tuple[str | None, str | None]:
    """Return the official name, and "q", "k" or "v" for a third of a fused projection."""
    if name in _TRANSFORMERS_TOP:
        return _TRANSFORMERS_TOP[name], None
    module, _, kind = name.rpartition(".")
    if module in _TRANSFORMERS_TOP:
        return f"{_TRANSFORMERS_TOP[module]}.{kind}", None
    layer = re.fullmatch(r"(.+?)\.(\d{1,3})\.(.+)", module)
    if layer is None or layer[1] not in _TRANSFORMERS_STACKS or kind not in ("weight", "bias"):
        return None, None
    block = f"{_TRANSFORMERS_STACKS[layer[1]]}.{layer[2]}"
    if layer[3] in _TRANSFORMERS_IN_LAYER:
        return f"{block}.{_TRANSFORMERS_IN_LAYER[layer[3]]}.{kind}", None
    third = _QUERY_KEY_VALUE.fullmatch(layer[3])
    if third is None:
        return None, None
    return f"{block}.attn.qkv.{kind}", (third[1] or third[2])[0]


# ---- common ------------------------------------------------------------------------------------

_CONVERTERS: dict[str, Callable[[WeightFile, str, Mapping, tuple[int, int] | None], Recognised]] = {
    "patch_embedding.patch_embedding.weight": _from_ours,
    "patch_embed.proj.weight": _from_official,
    "embeddings.patch_embeddings.projection.weight": _from_transformers,
}


def _with_description(found: Recognised, file: WeightFile) -> Recognised:
    """Let what a file of ours says about itself decide."""
    stored = file.architecture
    if stored is None:
        return found
    return dataclasses.replace(
        found,
        heads=(stored.encoder.heads, stored.decoder.heads if stored.decoder else None),
        heads_from="as the file says",
        norm_pix_loss=stored.norm_pix_loss,
        grid_hw=found.grid_hw or stored.grid_hw,
    )


def _split(file: WeightFile, prefix: str) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors under a prefix, without it, and those elsewhere that can be dropped."""
    dropped: dict[str, str] = {}
    _drop_known(file, [name for name in file.tensors if not name.startswith(prefix)], dropped)
    inside = {name[len(prefix) :]: tensor for name, tensor in file.tensors.items() if name.startswith(prefix)}
    return inside, dropped


def _drop_known(file: WeightFile, unplaced: list[str], dropped: dict[str, str]) -> None:
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
        more = f", and {len(unknown) - 6} more" if len(unknown) > 6 else ""
        raise UserError(f"{file.path}: {len(unknown)} tensors have no place: {', '.join(unknown[:6])}{more}{why}")


def _rename(official: Tensors) -> tuple[Tensors, list[str]]:
    """Give official tensors our names; returns those without one, too."""
    tensors, unplaced = {}, []
    for name, tensor in official.items():
        ours = names.our_name(name)
        if ours is None:
            unplaced.append(name)
        else:
            tensors[ours] = tensor
    return tensors, unplaced


def _to_paddle_layout(tensors: Tensors) -> Tensors:
    return {
        name: tensor.transposed() if names.is_linear_weight(name, len(tensor.shape)) else tensor
        for name, tensor in tensors.items()
    }


def _layout(tensors: Tensors) -> str | None:
    """Tell from the first fused projection, which is not square, whose layout the matrices have."""
    qkv = tensors.get("encoder.layers.0.attn.qkv.weight")
    if qkv is None or len(qkv.shape) != 2:
        return None
    rows, columns = qkv.shape
    return "torch" if rows == 3 * columns else "paddle" if columns == 3 * rows else None


def _check_layout(file: WeightFile, tensors: Tensors, wanted: str) -> None:
    if _layout(tensors) != wanted:
        qkv = tensors.get("encoder.layers.0.attn.qkv.weight")
        what = "missing" if qkv is None else f"of shape {list(qkv.shape)}"
        raise UserError(f"{file.path}: the first layer's fused query, key and value projection is {what}")


def _lite_heads(tensors: Tensors, is_moco: bool) -> tuple[int | None, int | None]:
    """Return MAE-Lite's heads: 12 for tiny and small, but 6 for the small encoder of MoCo v3."""
    width = tensors["patch_embedding.patch_embedding.weight"].shape[0]
    encoder = {192: 12, 384: 6 if is_moco else 12}.get(width)
    mask_token = tensors.get("mask_token")
    return encoder, {96: 3, 192: 6}.get(mask_token.shape[-1]) if mask_token is not None else None
