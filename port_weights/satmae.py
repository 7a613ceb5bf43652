"""SatMAE's files (arXiv 2207.08051), whose patches are of groups of channels: our names and layout, and the groups."""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from errors import UserError
from port_weights import names
from port_weights.recognised import Grid, Recognised, Tensors, check_layout, drop_known, rename, split
from storage.stored_tensor import StoredTensor
from storage.weight_files import WeightFile

LANDMARK = "patch_embed.0.proj.weight"
OWN_NAMES = re.compile(r"(patch_embedding\.groups|decoder_pred)\.\d{1,3}\.(weight|bias)")  # which only groups have
_PART = re.compile(r"(patch_embed|decoder_pred)\.(\d{1,3})\.(?:proj\.)?(weight|bias)")
# Of ten bands of Sentinel-2, without B1, B9 and B10.
_PUBLISHED = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))
_OTHER_PIXELS = (
    "decoder whose heads predict other bands than those of their groups: the official loss compares them, one group "
    "after another, with the bands in order"
)


def convert(file: WeightFile, prefix: str, config: Mapping, grid_hw: Grid) -> Recognised:
    """Map a file of SatMAE's groups; see `families.recognise`.

    The position tables of the places and of the groups become one, as `layers.pos_embed.position_table` has it.
    """
    inside, dropped = split(file, prefix)
    parts = {name: inside.pop(name) for name in list(inside) if _PART.fullmatch(name)}
    sizes = _group_sizes(file, parts)
    groups, note = _groups(file, sizes)
    if groups != tuple(_consecutive(sizes)):
        decoder = [name for name in (*inside, *parts) if name.startswith(("decoder_", "mask_token"))]
        dropped |= {prefix + name: _OTHER_PIXELS for name in decoder}
        for name in decoder:
            (parts if name in parts else inside).pop(name)
    for stem in ("", "decoder_"):
        if f"{stem}pos_embed" in inside:
            inside[f"{stem}pos_embed"] = _joined(file, inside, stem, len(sizes))
    tensors, unplaced = rename(inside)
    for name, tensor in parts.items():
        kind, number, end = _PART.fullmatch(name).groups()
        ours = f"patch_embedding.groups.{number}.{end}" if kind == "patch_embed" else f"decoder_pred.{number}.{end}"
        tensors[ours] = (
            tensor if kind == "patch_embed" else _channel_last(tensor, sizes[min(int(number), len(sizes) - 1)])
        )
    drop_known(file, unplaced, dropped)
    tensors = names.transpose_linear(tensors)
    check_layout(file, tensors, "paddle")
    found = Recognised("SatMAE", tensors, dropped, grid_hw=grid_hw, channel_groups=groups)
    if grid_hw is None and "pos_embed" in inside:
        places = (inside["pos_embed"].shape[1] - 1) // len(sizes)
        found.grid_hw = (math.isqrt(places),) * 2
    if note:
        found.notes.append(note)
    return found


def _group_sizes(file: WeightFile, parts: Tensors) -> list[int]:
    """Return the number of channels of each group."""
    shapes = [
        parts[name].shape for number in range(len(parts)) if (name := f"patch_embed.{number}.proj.weight") in parts
    ]
    if any(len(shape) != 4 or 0 in shape for shape in shapes):
        raise UserError(f"{file.path}: its patch projections are of the shapes {[list(shape) for shape in shapes]}")
    return [shape[1] for shape in shapes]


def _consecutive(sizes: list[int]) -> list[tuple[int, ...]]:
    ends = np.cumsum(sizes)
    return [tuple(range(int(end) - size, int(end))) for size, end in zip(sizes, ends, strict=True)]


def _groups(file: WeightFile, sizes: list[int]) -> tuple[tuple[tuple[int, ...], ...], str]:
    """Return the groups, and what a user should know of them."""
    recorded = file.arguments.get("grouped_bands")
    recorded = recorded if isinstance(recorded, list) and all(isinstance(group, list) for group in recorded) else []
    channels = [channel for group in recorded for channel in group]
    are_channels = all(type(channel) is int for channel in channels) and sorted(channels) == list(range(sum(sizes)))
    if are_channels and list(map(len, recorded)) == sizes:
        return tuple(map(tuple, recorded)), ""
    if sizes == list(map(len, _PUBLISHED)):
        return _PUBLISHED, f"groups of channels as SatMAE's models have: {[list(group) for group in _PUBLISHED]}"
    note = (
        "the file does not tell its groups of channels: taken as {}; DATA.BANDS brings those of your files into order"
    )
    groups = _consecutive(sizes)
    return tuple(groups), note.format([list(group) for group in groups])


def _joined(file: WeightFile, inside: Tensors, stem: str, num_groups: int) -> StoredTensor:
    """Return one table [1, 1 + G * N, D] of those of the places and of the groups."""
    places, codes = inside[f"{stem}pos_embed"], inside.pop(f"{stem}channel_embed", None)
    rows = num_groups + (1 if stem else 0)  # a decoder's class token has a code of its own
    if codes is None or len(places.shape) != 3 or len(codes.shape) != 3 or codes.shape[:2] != (1, rows):
        raise UserError(f"{file.path}: {stem}channel_embed does not have a row for each of {num_groups} groups")
    count, width = places.shape[1] - 1, places.shape[2] + codes.shape[2]

    def load() -> np.ndarray:
        table, own = places.load()[0], codes.load()[0]
        first = own[-1] if stem else np.zeros_like(own[0])
        blocks = [np.concatenate([table[:1], first[None]], axis=1)]
        for code in own[:num_groups]:
            blocks.append(np.concatenate([table[1:], np.tile(code, (count, 1))], axis=1))
        return np.concatenate(blocks)[None]

    return StoredTensor((1, 1 + num_groups * count, width), places.dtype, load)


def _channel_last(tensor: StoredTensor, channels: int) -> StoredTensor:
    """Reorder a head's outputs from (channel, pixel) to ours, (pixel, channel); torch's layout, outputs first."""
    outputs = tensor.shape[0] if tensor.shape else 0
    if outputs % channels:
        return tensor  # which the check of all tensors names

    def load() -> np.ndarray:
        values = tensor.load()
        return values.reshape(channels, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)

    return dataclasses.replace(tensor, load=load)
