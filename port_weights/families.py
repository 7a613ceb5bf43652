"""Recognise the project that wrote a weight file, and give its tensors our names and our layout.

Nearly all implementations name the tensors of a ViT as timm does; they differ in a prefix, in what stands beside the
encoder, and in the class token's row of the position table. Every tensor of a file is mapped, or dropped for a stated
reason; anything else is an error.
"""

import dataclasses
from collections.abc import Callable, Mapping

from errors import UserError
from port_weights import from_libraries, from_official, from_transformers, names, satmae
from port_weights.recognised import (
    OTHER_NETWORKS,
    Grid,
    Recognised,
    check_layout,
    drop_known,
    drop_lower_decoder,
    split,
)
from storage.weight_files import WeightFile, advise_entry


def recognise(file: WeightFile, config: Mapping | None = None, grid_hw: Grid = None) -> Recognised:
    """Map a file's tensors.

    Args:
        config: transformers' config.json beside the file, if there is one.
        grid_hw: patches per column and per row, where the file has a grid that is not square.

    Raises:
        UserError: if the names are of no family that is known here, or some tensor has no place.
    """
    found = from_libraries.convert(file, config or {}, grid_hw) or _by_projection(file, config or {}, grid_hw)
    found.dropped |= dict.fromkeys(file.others, "beside the weights; -entry NAME takes them from there instead")
    return _with_description(found, file)


def _by_projection(file: WeightFile, config: Mapping, grid_hw: Grid) -> Recognised:
    """Map a file by the name of its patch projection."""
    _check_landmarks(file)
    for patch_projection, convert in _CONVERTERS.items():
        prefixes = [
            name.removesuffix(patch_projection)
            for name in file.tensors
            if name == patch_projection or name.endswith(f".{patch_projection}")
        ]
        own = [prefix for prefix in prefixes if not set(prefix.split(".")) & set(OTHER_NETWORKS)]
        if len(own) > 1:
            raise UserError(
                f"{file.path}: holds {len(own)} encoders, under {', '.join(map(repr, own))}; save one alone"
            )
        if own:
            return convert(file, own[0], config, grid_hw)
    shown = ", ".join(list(file.tensors)[:6])
    advice = advise_entry(file.path, file.nested) if file.nested else ""
    raise UserError(f"{file.path}: not the weights of a ViT that is known here; its tensors: {shown}, ...{advice}")


def _from_ours(file: WeightFile, prefix: str, config: Mapping, grid_hw: Grid) -> Recognised:
    inside, dropped = split(file, prefix)
    tensors, unplaced = {}, []
    own = file.architecture.shapes() if file.architecture is not None else ()  # such as those of a pooler
    for name, tensor in inside.items():
        if names.official_name(name) is None and name not in own and not satmae.OWN_NAMES.fullmatch(name):
            unplaced.append(name)
        else:
            tensors[name] = tensor
    for kind, neutral in (("weight", 1), ("bias", 0)):
        affine = inside.get(f"classifier.0.{kind}")
        if affine is not None and (affine.size > 2**20 or (affine.read() != neutral).any()):
            raise UserError(
                f"{file.path}: classifier.0.{kind} is not {neutral}: a batch norm with weights is not known here"
            )
    drop_known(file, unplaced, dropped)
    check_layout(file, tensors, "paddle")
    return Recognised("this project" if file.metadata else "PaddleViT MAE", tensors, dropped, grid_hw=grid_hw)


_LANDMARKS = {  # endings of names, and their numbers of axes
    "patch_embedding.patch_embedding.weight": 4,
    "patch_embed.proj.weight": 4,
    "patch_embeddings.projection.weight": 4,
    "mask_token": 3,
    "pos_embed": 3,
    "position_embedding": 3,
    "position_embeddings": 3,
}
_CONVERTERS: dict[str, Callable[[WeightFile, str, Mapping, Grid], Recognised]] = {
    "patch_embedding.patch_embedding.weight": _from_ours,
    "patch_embedding.groups.0.weight": _from_ours,
    satmae.LANDMARK: satmae.convert,
    "patch_embed.proj.weight": from_official.convert,
    "embeddings.patch_embeddings.projection.weight": from_transformers.convert,
}


def _check_landmarks(file: WeightFile) -> None:
    """Raise UserError if a tensor from which sizes are read has an impossible shape."""
    for name, tensor in file.tensors.items():
        wanted = next((ndim for ending, ndim in _LANDMARKS.items() if name.endswith(ending)), None)
        if wanted is not None and (len(tensor.shape) != wanted or 0 in tensor.shape):
            raise UserError(f"{file.path}: {name} is of shape {list(tensor.shape)}")


def _with_description(found: Recognised, file: WeightFile) -> Recognised:
    """Use the description that a file of this project has, where there is one."""
    if file.architecture is None:
        return found
    stored = drop_lower_decoder(found, file.architecture)
    return dataclasses.replace(
        found,
        heads=(stored.encoder.heads, stored.decoder.heads if stored.decoder else None),
        heads_from="as the file says",
        norm_pix_loss=stored.norm_pix_loss,
        decoder_sources=stored.decoder_sources or None,
        pool_after_norm=stored.pool_after_norm,
        norm_eps=stored.norm_eps,
        grid_hw=found.grid_hw or stored.grid_hw,
        channel_groups=stored.channel_groups,
    )
