"""Files of transformers: ViT and ViTMAE, as its files and its models in memory name them."""

import math
import re
from collections.abc import Mapping

from errors import UserError, printable
from port_weights import names
from port_weights.recognised import Grid, Recognised, drop_known, rename, split
from storage.architecture import NORM_EPS
from storage.files import NUMBER, is_a
from storage.stored_tensor import concatenated
from storage.weight_files import WeightFile

_TOP = {
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
_STACKS = {  # files, and the models of version 5 in memory
    "encoder.layer": "blocks",
    "layers": "blocks",
    "decoder.decoder_layers": "decoder_blocks",
    "decoder.decoder_encoder.layer": "decoder_blocks",
}
_IN_LAYER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_LARGEST_LAYER_NORM_EPS = 1e-3  # MODEL.NORM_EPS is at most this
_QUERY_KEY_VALUE = re.compile(r"attention\.(?:attention\.(query|key|value)|([qkv])_proj)")


def convert(file: WeightFile, prefix: str, config: Mapping, grid_hw: Grid) -> Recognised:
    """Map a file of transformers; see `families.recognise`."""
    inside, dropped = split(file, prefix.removesuffix("vit."))
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
    drop_known(file, unplaced, dropped)
    tensors, unknown = rename(official)
    drop_known(file, unknown, dropped)
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(
            f"{file.path}: config.json says hidden_act={config['hidden_act']!r}; only exact gelu is known here"
        )
    grid_hw = _grid(file, config, grid_hw)
    eps = config.get("layer_norm_eps", NORM_EPS)
    if not is_a(eps, NUMBER) or not 0 < eps <= _LARGEST_LAYER_NORM_EPS:
        limit = f"which is not above 0 and at most {_LARGEST_LAYER_NORM_EPS}"
        raise UserError(f"{file.path}: config.json says layer_norm_eps={printable(eps, 40)}, {limit}")
    is_mae = "mask_token" in official or config.get("model_type") == "vit_mae"
    return Recognised(
        family="transformers ViTMAE" if is_mae else "transformers ViT",
        tensors=names.transpose_linear(tensors),
        dropped=dropped,
        heads=(_heads(file, config, "num_attention_heads"), _heads(file, config, "decoder_num_attention_heads")),
        heads_from="as config.json says",
        norm_pix_loss=config.get("norm_pix_loss") if "mask_token" in official else None,
        norm_eps=float(eps),
        grid_hw=grid_hw,
        preprocessing=_preprocessing(config),
    )


def _heads(file: WeightFile, config: Mapping, key: str) -> int | None:
    value = config.get(key)
    if value is not None and (type(value) is not int or value < 1):
        raise UserError(f"{file.path}: config.json says {key}={printable(value, 40)}, which is not a number of heads")
    return value


def _grid(file: WeightFile, config: Mapping, given: Grid) -> Grid:
    """Return the grid of config.json; raise UserError if -grid is another one."""
    size, patch = config.get("image_size"), config.get("patch_size")
    sides = size if isinstance(size, list) and len(size) == 2 else [size, size]
    if not all(type(number) is int and number > 0 for number in (*sides, patch)):
        return given
    grid_hw = (sides[0] // patch, sides[1] // patch)
    if given is not None and given != grid_hw:
        raise UserError(f"{file.path}: config.json says a grid of {grid_hw[0]}x{grid_hw[1]}, -grid another one")
    return grid_hw


def _preprocessing(config: Mapping) -> dict[str, object]:
    """Read size and normalisation of the images from transformers' preprocessor_config.json, a part of `config`."""
    keys = {"DATA.IMAGENET_MEAN": "image_mean", "DATA.IMAGENET_STD": "image_std"}
    found = {key: config[name] for key, name in keys.items() if config.get(name) is not None}
    for key, values in found.items():
        if not isinstance(values, list) or not 1 <= len(values) <= 4 or not all(is_a(v, NUMBER) for v in values):
            raise UserError(f"its preprocessor's {keys[key]} is {printable(values, 40)}, not a number per channel")
        if not all(math.isfinite(value) and (value > 0 or key == "DATA.IMAGENET_MEAN") for value in values):
            raise UserError(f"its preprocessor's {keys[key]} holds numbers that images cannot be normalised by")
    return found


def _transformers_name(name: str) -> tuple[str | None, str | None]:
    """Return the official name, and "q", "k" or "v" for a third of a fused projection."""
    if name in _TOP:
        return _TOP[name], None
    module, _, kind = name.rpartition(".")
    if module in _TOP:
        return f"{_TOP[module]}.{kind}", None
    layer = re.fullmatch(r"(.+?)\.(\d{1,3})\.(.+)", module)
    if layer is None or layer[1] not in _STACKS or kind not in ("weight", "bias"):
        return None, None
    block = f"{_STACKS[layer[1]]}.{layer[2]}"
    if layer[3] in _IN_LAYER:
        return f"{block}.{_IN_LAYER[layer[3]]}.{kind}", None
    third = _QUERY_KEY_VALUE.fullmatch(layer[3])
    if third is None:
        return None, None
    return f"{block}.attn.qkv.{kind}", (third[1] or third[2])[0]
