"""Files of lightly, solo-learn, mmpretrain (mmcls), torchvision and vit-pytorch, by the names that their classes give.

Each library's names become the official ones by replacements in order, and `from_official` maps these. Facts from
PyPI's lightly 1.6.0, mmpretrain 1.2.0, torchvision 0.29.1, vit-pytorch 1.26.14 and 0.40.2, and solo-learn's repository.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from errors import UserError
from port_weights import from_official
from port_weights.recognised import Grid, Recognised, Tensors
from storage.stored_tensor import StoredTensor
from storage.weight_files import WeightFile

_ONLINE_CLASSIFIER = "classifier that was trained beside the method"
_HEAD_DIM, _NORM_EPS = 64, 1e-5  # vit-pytorch's


@dataclasses.dataclass(frozen=True)
class Library:
    """How a library names the tensors of a ViT and of a MAE.

    Attributes:
        name: for reports.
        landmarks: patterns of names that must all be there.
        names: (pattern, replacement), which make official names, one after the other.
        dropped: (pattern of a name, why it is left out).
        shapes: gives tensors under official names their official shapes.
    """

    name: str
    landmarks: tuple[str, ...]
    names: tuple[tuple[str, str], ...]
    dropped: tuple[tuple[str, str], ...] = ()
    shapes: Callable[[WeightFile, Tensors], Tensors] = lambda file, tensors: tensors


def convert(file: WeightFile, config: Mapping, grid_hw: Grid) -> Recognised | None:
    """Map a file of one of these libraries, see `families.recognise`; None if it is of none.

    Raises:
        UserError: if the model is of a kind that this project does not have, or some tensor has no place.
    """
    _check_style(file)
    library = next((library for library in _LIBRARIES if _is_of(file, library)), None)
    if library is None:
        return None
    tensors: Tensors = {}
    dropped: dict[str, str] = {}
    for name, tensor in file.tensors.items():
        reason = next((reason for pattern, reason in library.dropped if re.search(pattern, name)), None)
        if reason is not None:
            dropped[name] = reason
            continue
        official = name
        for pattern, replacement in library.names:
            official = re.sub(pattern, replacement, official)
        if official in tensors:
            raise UserError(f"{file.path}: two tensors for {official}; one of them is {name}")
        tensors[official] = tensor
    if "mask_token" in tensors:
        for name in [name for name in tensors if name.startswith("head.")]:
            dropped[name] = "classifier beside an autoencoder"
            del tensors[name]
    official_file = dataclasses.replace(file, tensors=library.shapes(file, tensors))
    found = from_official.convert(official_file, "", config, grid_hw)
    found = dataclasses.replace(found, family=library.name, dropped=found.dropped | dropped)
    return _with_vit_pytorch_values(found) if library.name == "vit-pytorch" else found


def _is_of(file: WeightFile, library: Library) -> bool:
    return all(any(re.search(pattern, name) for name in file.tensors) for pattern in library.landmarks)


def _check_style(file: WeightFile) -> None:
    """Raise UserError for ViTs in the style of DINOv2 and DINOv3, as some of lightly-train's models are."""
    for name, tensor in file.tensors.items():
        is_mask_token = name.rpartition(".")[2] == "mask_token" and len(tensor.shape) == 2
        if is_mask_token or re.search(r"(^|\.)(register_tokens|storage_tokens|rope_embed\..*)$", name):
            raise UserError(
                f"{file.path}: a ViT in the style of DINOv2 or DINOv3 ({name} is {list(tensor.shape)}), which this "
                "project does not have; of lightly-train's models, those of timm/ and torchvision/ are read"
            )


# ---- vit-pytorch -----------------------------------------------------------------------------------


def _vit_pytorch_shapes(file: WeightFile, tensors: Tensors) -> Tensors:
    """Reorder the pixels of patches from (row, column, channel) to (channel, row, column), and add axes."""
    if "patch_embed.proj.weight" not in tensors:  # before version 1.0, without norms of the patches
        tensors = {name.replace("norm_pixels", "proj"): tensor for name, tensor in tensors.items()}
    weight = tensors["patch_embed.proj.weight"]
    num_pixels = weight.shape[-1]
    channels = next((count for count in (3, 1, 4) if count * math.isqrt(num_pixels // count) ** 2 == num_pixels), 0)
    cls_token, table, qkv = (tensors.get(name) for name in ("cls_token", "pos_embed", "blocks.0.attn.qkv.weight"))
    if cls_token is None or table is None or qkv is None or 0 in cls_token.shape:
        raise UserError(f"{file.path}: a ViT of vit-pytorch without a class token (pool='mean'); models here have one")
    width = cls_token.shape[-1]
    if len(weight.shape) != 2 or not channels or qkv.shape != (3 * width, width):
        raise UserError(
            f"{file.path}: a ViT of vit-pytorch whose patches are not square, or whose heads x dim_head is not dim"
        )
    side = math.isqrt(num_pixels // channels)

    def channels_first(array: np.ndarray) -> np.ndarray:
        pixels = array.reshape(*array.shape[:-1], side, side, channels)
        return np.moveaxis(pixels, -1, -3)

    tensors = dict(tensors)
    tensors["patch_embed.proj.weight"] = _changed(weight, (width, channels, side, side), channels_first)
    for name in ("patch_embed.norm_pixels.weight", "patch_embed.norm_pixels.bias"):
        if name in tensors and tensors[name].shape == (num_pixels,):
            tensors[name] = _changed(tensors[name], (num_pixels,), lambda array: channels_first(array).reshape(-1))
    tensors["cls_token"] = _changed(cls_token, (1, 1, width), lambda array: array.reshape(1, 1, width))
    rows = table.shape[-2]
    tensors["pos_embed"] = _changed(table, (1, rows, width), lambda array: array.reshape(1, rows, width))
    return tensors


def _changed(tensor: StoredTensor, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> StoredTensor:
    """Return a tensor of as many numbers in another shape or order."""
    if math.prod(shape) != tensor.size:
        raise UserError(f"a tensor of shape {list(tensor.shape)}, where {list(shape)} was expected")
    return dataclasses.replace(tensor, shape=shape, load=lambda: np.ascontiguousarray(change(tensor.load())))


def _with_vit_pytorch_values(found: Recognised) -> Recognised:
    heads = found.tensors["cls_token"].shape[-1] // _HEAD_DIM
    words = f"as vit-pytorch's heads of {_HEAD_DIM} channels have"
    return dataclasses.replace(found, heads=(heads or None, None), heads_from=words, norm_eps=_NORM_EPS)


# ---- the table -------------------------------------------------------------------------------------

_TIMM_DECODER = (  # in lightly's and solo-learn's examples
    (r"^decoder\.(mask_token|decoder_)", r"\1"),
    (r"^decoder\.(pos_embed|blocks|norm)\b", r"decoder_\1"),
    (r"^prediction_head\.", "decoder_pred."),
)
_LIBRARIES = (
    Library(
        "lightly",
        (r"(^|\.)vit\.patch_embed\.proj\.weight$",),
        ((r"^(.*\.)?vit\.", ""), *_TIMM_DECODER),
        (
            (r"^backbone\.mask_token$", "mask token of the encoder, which MAE does not use"),
            (r"^online_classifier\.", _ONLINE_CLASSIFIER),
        ),
    ),
    Library(
        "solo-learn",
        (r"^backbone\.patch_embed\.proj\.weight$", r"^(classifier\.weight|decoder\.decoder_embed\.weight)$"),
        ((r"^backbone\.", ""), *_TIMM_DECODER),
        ((r"^classifier\.", _ONLINE_CLASSIFIER), (r"^momentum_", "another network of the training")),
    ),
    Library(
        "mmpretrain",
        (r"^(backbone\.)?patch_embed\.projection\.weight$", r"\bffn\.layers\."),
        (
            (r"^neck\.ln1\.", "decoder_norm."),
            (r"^(backbone|neck)\.", ""),
            (r"^head\.(fc|layers\.head)\.", "head."),
            (r"^patch_embed\.projection\.", "patch_embed.proj."),
            (r"^layers\.", "blocks."),
            (r"\bln([12])\.", r"norm\1."),
            (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
            (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
            (r"\.(attn|ffn)\.gamma([12])\.weight$", r".gamma_\2"),
            (r"^norm1\.", "norm."),
            (r"^norm2\.", "fc_norm."),
        ),
    ),
    Library(
        "torchvision, or lightly on it",
        (r"(^|\.)conv_proj\.weight$", r"encoder\.layers\.encoder_layer_0\."),
        (
            (r"^decoder\.pos_embedding$", "decoder_pos_embed"),
            (r"^decoder\.layers\.encoder_layer_", "decoder_blocks."),
            (r"^decoder\.ln\.", "decoder_norm."),
            (r"^decoder\.prediction_head\.", "decoder_pred."),
            (r"^decoder\.", ""),
            (r"^(.*\.)?(class_token|conv_proj\.|encoder\.|heads\.head\.)", r"\2"),
            (r"^class_token$", "cls_token"),
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.layers\.encoder_layer_", "blocks."),
            (r"^encoder\.ln\.", "norm."),
            (r"^heads\.head\.", "head."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
        ),
        ((r"^backbone\.mask_token$", "mask token of the encoder, which MAE does not use"),),
    ),
    Library(
        "vit-pytorch",
        (r"^(encoder\.)?to_patch_embedding\.[12]\.weight$", r"(^|\.)pos_embedding$"),
        (
            (r"^encoder\.", ""),
            (r"^pos_embedding$", "pos_embed"),
            (r"^to_patch_embedding\.2\.", "patch_embed.proj."),
            (r"^to_patch_embedding\.1\.", "patch_embed.norm_pixels."),
            (r"^to_patch_embedding\.3\.", "patch_embed.norm_tokens."),
            (r"^transformer\.layers\.", "blocks."),
            (r"^transformer\.norm\.", "norm."),
            (r"^mlp_head\.0\.", "norm."),
            (r"^mlp_head\.(1\.)?", "head."),
            (r"(blocks\.\d+)\.0\.norm\.", r"\1.norm1."),
            (r"(blocks\.\d+)\.0\.(fn\.)?to_qkv\.", r"\1.attn.qkv."),
            (r"(blocks\.\d+)\.0\.(fn\.)?to_out\.0\.", r"\1.attn.proj."),
            (r"(blocks\.\d+)\.1\.(norm|net\.0)\.", r"\1.norm2."),
            (r"(blocks\.\d+)\.1\.(net\.1|fn\.net\.0)\.", r"\1.mlp.fc1."),
            (r"(blocks\.\d+)\.1\.(net\.4|fn\.net\.3)\.", r"\1.mlp.fc2."),
        ),
        (
            (r"^patch_to_emb\.", "the same as the encoder's"),
            (r"^(mask_token$|(enc_to_dec|decoder|decoder_pos_emb|to_pixels)\.)", "decoder that reads no class token"),
        ),
        _vit_pytorch_shapes,
    ),
)
