"""The same tensors under two names: the official MAE's, which timm and most others share, and ours (PaddleViT's)."""

import re
from collections.abc import Mapping

from storage.architecture import extras
from storage.stored_tensor import StoredTensor

_TOP = {  # ours: official
    "cls_token": "cls_token",
    "encoder_position_embedding": "pos_embed",
    "patch_embedding.patch_embedding": "patch_embed.proj",
    "encoder.norm": "norm",
    "encoder_norm": "fc_norm",
    "classifier": "head",
    "classifier.0._mean": "head.0.running_mean",
    "classifier.0._variance": "head.0.running_var",
    "classifier.1": "head.1",
    "mask_token": "mask_token",
    "decoder_position_embedding": "decoder_pos_embed",
    "linear_projection": "decoder_embed",
    "decoder.source_mix": "wfm.linear",
    "decoder.norm": "decoder_norm",
    "decoder_pred": "decoder_pred",
}
_STACKS = {"encoder.layers": "blocks", "decoder.layers": "decoder_blocks"}
_IN_LAYER = {
    "attn_norm": "norm1",
    "attn.qkv": "attn.qkv",
    "attn.out": "attn.proj",
    "mlp_norm": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "source_norm": "source_norm",  # these are CrossMAE's, whose own names are in cross_decoder.py
    "cross_norm": "cross_norm",
    "cross_attn.q": "cross_attn.q",
    "cross_attn.kv": "cross_attn.kv",
    "cross_attn.out": "cross_attn.proj",
}
_WHOLE: dict[str, str] = {}  # tensors of a layer whose names do not end in weight or bias
for _, _added in extras():
    if "{}" in _added.name:
        _WHOLE[_added.name.partition(".{}.")[2]] = _added.official.partition(".{}.")[2]
    else:
        _TOP[_added.name.rstrip(".")] = _added.official.rstrip(".")
_REVERSED = [{value: key for key, value in table.items()} for table in (_TOP, _STACKS, _IN_LAYER, _WHOLE)]


def official_name(name: str) -> str | None:
    """Return the official name of one of our tensors, or None."""
    return _translate(name, _TOP, _STACKS, _IN_LAYER, _WHOLE)


def our_name(name: str) -> str | None:
    """Return our name of an official tensor, or None."""
    return _translate(name, *_REVERSED)


def transpose_linear(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Transpose the matrices of linear layers: torch keeps them as [out, in], Paddle as [in, out]."""
    return {
        name: tensor.transposed() if len(tensor.shape) == 2 and name.endswith(".weight") else tensor
        for name, tensor in tensors.items()
    }


def _translate(
    name: str, top: dict[str, str], stacks: dict[str, str], in_layer: dict[str, str], whole: dict[str, str]
) -> str | None:
    if name in top:
        return top[name]
    layer = re.fullmatch(r"(.+?)\.(\d{1,3})\.(.+)", name)
    if layer and layer[1] in stacks and layer[3] in whole:
        return f"{stacks[layer[1]]}.{layer[2]}.{whole[layer[3]]}"
    module, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if module in top:
        return f"{top[module]}.{kind}"
    layer = re.fullmatch(r"(.+?)\.(\d{1,3})\.(.+)", module)
    if layer and layer[1] in stacks and layer[3] in in_layer:
        return f"{stacks[layer[1]]}.{layer[2]}.{in_layer[layer[3]]}.{kind}"
    return None
