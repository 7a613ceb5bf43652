"""Files with a text tower: MAWS's CLIP models, in both layouts of torchtext, and transformers' XLM-R.

Layouts of a text layer: torchtext up to 0.12 called its parts "attention" and "residual_mlp"; later ones name them as
torch's own layer does. Which one a file has is kept in the ported file, so that it goes back as it was.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from errors import UserError, abridge
from port_weights import export, writing
from port_weights.families import recognise
from port_weights.infer import infer_clip, infer_text
from port_weights.recognised import check_tensors, encoder_heads, preprocessing_beside
from port_weights.report import Report
from storage import manifest
from storage.clip_architecture import (
    IMAGE_PREFIX,
    IMAGE_PROJECTION,
    SCALE,
    TEXT_PREFIX,
    TEXT_PROJECTION,
    ClipArchitecture,
    TextArchitecture,
)
from storage.stored_tensor import StoredTensor, concatenated
from storage.weight_files import WeightFile

Tensors = dict[str, StoredTensor]

TARGETS = ("paddle", "maws")
_TORCHTEXT = f"{TEXT_PREFIX}encoder.transformer."
_TOP = {  # torchtext's: ours
    "token_embedding.weight": "token_embedding.weight",
    "positional_embedding.embedding.weight": "position_embedding.weight",
    "embedding_layer_norm.weight": "embedding_norm.weight",
    "embedding_layer_norm.bias": "embedding_norm.bias",
}
_LAYOUTS = {  # prefix of a layer, and torchtext's names in it: ours
    "new": (
        "layers.layers.",
        {
            "self_attn.in_proj_": "attn.qkv.",
            "self_attn.out_proj.": "attn.out.",
            "linear1.": "mlp.fc1.",
            "linear2.": "mlp.fc2.",
            "norm1.": "attn_norm.",
            "norm2.": "mlp_norm.",
        },
    ),
    "old": (
        "layers.",
        {
            "attention.input_projection.": "attn.qkv.",
            "attention.output_projection.": "attn.out.",
            "residual_mlp.mlp.0.": "mlp.fc1.",
            "residual_mlp.mlp.3.": "mlp.fc2.",
            "attention_layer_norm.": "attn_norm.",
            "final_layer_norm.": "mlp_norm.",
        },
    ),
}
_XLM_R = {  # transformers' parts of a layer: ours
    "attention.output.dense.": "attn.out.",
    "attention.output.LayerNorm.": "attn_norm.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "output.LayerNorm.": "mlp_norm.",
}
_XLM_R_TOP = {
    "embeddings.word_embeddings.weight": "token_embedding.weight",
    "embeddings.position_embeddings.weight": "position_embedding.weight",
    "embeddings.LayerNorm.weight": "embedding_norm.weight",
    "embeddings.LayerNorm.bias": "embedding_norm.bias",
}
_TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
_XLM_R_DROPPED = {"pooler.": "pooler, which MAWS does not use", "embeddings.position_ids": "numbers of positions"}
_XLM_R_SETTINGS = {  # what config.json says for XLM-R
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "position_embedding_type": "absolute",
}


def has_text(file: WeightFile) -> bool:
    """Return True if a file holds a text tower, alone or with an image tower."""
    return (
        file.clip_architecture is not None
        or file.text_architecture is not None
        or any(name.startswith(TEXT_PREFIX) or name.endswith("word_embeddings.weight") for name in file.tensors)
    )


def port(
    file: WeightFile,
    config: Mapping,
    destination: Path,
    target: str,
    heads: tuple[int | None, int | None],
    expected: ClipArchitecture | TextArchitecture | None = None,
) -> Report:
    """Convert a file with a text tower; see `porting.port`.

    Args:
        config: transformers' config.json beside the file.
        heads: attention heads of image and text tower; of a text tower alone, the first one.
    """
    if isinstance(expected, ClipArchitecture):
        heads = (expected.image.encoder.heads, expected.text.tower.heads)
    family, tensors, dropped, architecture, layout = _read(file, config, heads)
    check_tensors(file, architecture.content, tensors, architecture.shapes())
    if expected is not None and architecture != expected:
        raise UserError(
            f"{file.path}: is {architecture.content}, {architecture}; expected {expected.content}, {expected}"
        )
    digest = manifest.digests(file.path, "sha256")["sha256"]
    origin = {"file": file.path.name, "sha256": digest, "family": family}
    description = {architecture.KEY: architecture.to_dict(), "ported_from": origin, "text_layout": layout}
    preprocessing = preprocessing_beside(file.path) if family == "this project" else {}
    description |= {"preprocessing": preprocessing} if preprocessing else {}
    dtypes = sorted({tensor.dtype for tensor in tensors.values()})
    tensors = {name: tensors[name].checked(name, file.path) for name in architecture.shapes()}
    tensors = {name: StoredTensor(t.shape, "float32", t.read_float32) for name, t in tensors.items()}
    written = _write(destination, target, tensors, architecture, description)
    return Report(
        source=file.path,
        family=family,
        architecture=architecture,
        heads_from="as the known towers of these sizes have, unless -heads or the file says otherwise",
        mapped=len(tensors),
        num_elements=sum(tensor.size for tensor in tensors.values()),
        dtypes=dtypes,
        dropped=dropped,
        notes=[f"text layers were in torchtext's {layout} layout"] if family == "MAWS CLIP" else [],
        written=written,
        sha256=digest,
    )


def _read(file: WeightFile, config: Mapping, heads: tuple[int | None, int | None]) -> tuple:
    """Return family, tensors under our names, dropped ones, architecture, and torchtext's layout."""
    if file.clip_architecture is not None or file.text_architecture is not None:
        described = file.clip_architecture or file.text_architecture
        return "this project", dict(file.tensors), {}, described, file.metadata.get("text_layout", "new")
    if any(name.startswith(TEXT_PREFIX) for name in file.tensors):
        tensors, layout = _from_maws(file)
        image_heads = _inferred(file, lambda: _image_heads(tensors, heads[0]))
        architecture = _inferred(file, lambda: infer_clip(_shapes(tensors), image_heads, heads[1]))
        return "MAWS CLIP", tensors, {}, architecture, layout
    tensors, dropped = _from_xlm_r(file, config)
    given = heads[0] or config.get("num_attention_heads")
    architecture = _inferred(file, lambda: infer_text(_shapes(tensors), given))
    return "transformers XLM-R", tensors, dropped, architecture, "new"


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _inferred(file: WeightFile, infer):
    try:
        return infer()
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from error


def _image_heads(tensors: Tensors, given: int | None) -> int:
    shapes = {n.removeprefix(IMAGE_PREFIX): s for n, s in _shapes(tensors).items() if n.startswith(IMAGE_PREFIX)}
    return encoder_heads(shapes, given)[0]


# ---- MAWS ---------------------------------------------------------------------------------------


def _from_maws(file: WeightFile) -> tuple[Tensors, str]:
    """Return the tensors of a CLIP file under our names and in our layout, and torchtext's layout there."""
    image = {name: t for name, t in file.tensors.items() if name.startswith(IMAGE_PREFIX)}
    found = recognise(_with_tensors(file, {name.removeprefix(IMAGE_PREFIX): t for name, t in image.items()}))
    tensors = {f"{IMAGE_PREFIX}{name}": tensor for name, tensor in found.tensors.items()}
    text = {n.removeprefix(_TORCHTEXT): t for n, t in file.tensors.items() if n.startswith(_TORCHTEXT)}
    layout = "new" if any(name.startswith("layers.layers.") for name in text) else "old"
    unplaced = []
    for name, tensor in file.tensors.items():
        if name.startswith(IMAGE_PREFIX):
            continue
        own = _our_text_name(name.removeprefix(_TORCHTEXT), layout) if name.startswith(_TORCHTEXT) else None
        if own is not None:
            tensors[f"{TEXT_PREFIX}{own}"] = _as_ours(own, tensor)
        elif name in (IMAGE_PROJECTION, TEXT_PROJECTION, SCALE):
            tensors[name] = tensor
        else:
            unplaced.append(name)
    if unplaced:
        raise UserError(f"{file.path}: {len(unplaced)} tensors have no place in a CLIP model: {abridge(unplaced, 5)}")
    return tensors, layout


def _with_tensors(file: WeightFile, tensors: Tensors) -> WeightFile:
    return WeightFile(file.path, file.kind, tensors)


def _our_text_name(name: str, layout: str) -> str | None:
    if name in _TOP:
        return _TOP[name]
    prefix, parts = _LAYOUTS[layout]
    match = re.fullmatch(rf"{re.escape(prefix)}(\d{{1,3}})\.(.+?)(weight|bias)", name)
    return f"layers.{match[1]}.{parts[match[2]]}{match[3]}" if match and match[2] in parts else None


def _as_ours(own: str, tensor: StoredTensor) -> StoredTensor:
    """Transpose the matrices of linear layers; tables of embeddings stay."""
    return tensor.transposed() if own.startswith("layers.") and len(tensor.shape) == 2 else tensor


def to_maws(tensors: Tensors, layout: str) -> Tensors:
    """Return the tensors of a CLIP model as MAWS's files name them."""
    prefix, parts = _LAYOUTS[layout]
    theirs_of = {ours: theirs for theirs, ours in parts.items()}
    top_of = {ours: theirs for theirs, ours in _TOP.items()}
    image = {n.removeprefix(IMAGE_PREFIX): t for n, t in tensors.items() if n.startswith(IMAGE_PREFIX)}
    renamed = {f"{IMAGE_PREFIX}{name}": tensor for name, tensor in export.to_official(image).items()}
    for name, tensor in tensors.items():
        own = name.removeprefix(TEXT_PREFIX)
        if name in (IMAGE_PROJECTION, TEXT_PROJECTION, SCALE):
            renamed[name] = tensor
        elif own in top_of:
            renamed[f"{_TORCHTEXT}{top_of[own]}"] = tensor
        elif name.startswith(TEXT_PREFIX):
            index, module, kind = re.fullmatch(r"layers\.(\d+)\.(.+\.)(weight|bias)", own).groups()
            renamed[f"{_TORCHTEXT}{prefix}{index}.{theirs_of[module]}{kind}"] = _as_ours(own, tensor)
    return renamed


# ---- transformers -------------------------------------------------------------------------------


def _from_xlm_r(file: WeightFile, config: Mapping) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors of an XLM-R under our names and in our layout, and what was dropped.

    The row of its only token type is added to all positions.
    """
    for key, wanted in _XLM_R_SETTINGS.items():
        if config.get(key, wanted) != wanted:
            raise UserError(f"{file.path}: config.json says {key}={config[key]!r}, and XLM-R has {wanted!r}")
    tensors, thirds, dropped, unplaced = {}, {}, {}, []
    for full_name, tensor in file.tensors.items():
        name = full_name.removeprefix("roberta.")
        layer = re.fullmatch(r"encoder\.layer\.(\d{1,3})\.(.+?)(weight|bias)", name)
        third = re.fullmatch(r"attention\.self\.(query|key|value)\.", layer[2]) if layer else None
        reason = next((why for prefix, why in _XLM_R_DROPPED.items() if name.startswith(prefix)), None)
        if third:
            thirds.setdefault(f"layers.{layer[1]}.attn.qkv.{layer[3]}", {})[third[1]] = tensor
        elif layer and layer[2] in _XLM_R:
            own = f"layers.{layer[1]}.{_XLM_R[layer[2]]}{layer[3]}"
            tensors[own] = _as_ours(own, tensor)
        elif name in _XLM_R_TOP:
            tensors[_XLM_R_TOP[name]] = tensor
        elif full_name.startswith("lm_head.") or reason:
            dropped[full_name] = reason or "head of the language model"
        elif name != _TOKEN_TYPES:
            unplaced.append(full_name)
    if unplaced:
        raise UserError(f"{file.path}: {len(unplaced)} tensors have no place in XLM-R: {abridge(unplaced, 5)}")
    for own, parts in thirds.items():
        if set(parts) != {"query", "key", "value"} or len({part.shape for part in parts.values()}) != 1:
            raise UserError(f"{file.path}: {own} is joined from query, key and value, which do not fit together")
        tensors[own] = _as_ours(own, concatenated([parts[part] for part in ("query", "key", "value")]))
    return _with_token_type(file, tensors), dropped


def _with_token_type(file: WeightFile, tensors: Tensors) -> Tensors:
    types = [tensor for name, tensor in file.tensors.items() if name.endswith(_TOKEN_TYPES)]
    table = tensors.get("position_embedding.weight")
    if not types or table is None:
        return tensors
    if len(types[0].shape) != 2 or types[0].shape[0] != 1 or types[0].shape[1:] != table.shape[1:]:
        raise UserError(f"{file.path}: token types of shape {list(types[0].shape)}; XLM-R has one")
    added = StoredTensor(table.shape, "float32", lambda: table.read_float32() + types[0].read_float32())
    return tensors | {"position_embedding.weight": added}


# ---- writing ------------------------------------------------------------------------------------


def _write(destination: Path, target: str, tensors: Tensors, architecture, description: Mapping) -> list[Path]:
    is_whole = isinstance(architecture, ClipArchitecture)
    if target == "paddle" and is_whole:
        return writing.write(destination, target, tensors, architecture, description)[0]
    if target == "paddle":
        return writing.write_text_tower(destination, tensors, description)
    if not is_whole:
        raise UserError(f"{destination}: -to maws writes CLIP models, and this is a text tower alone")
    return writing.write_maws(destination, to_maws(tensors, description["text_layout"]))
