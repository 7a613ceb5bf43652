"""CrossMAE's decoder (arXiv 2401.14391) in weight files: its names, what its encoder lacks, and the encoder alone."""

import re
from collections.abc import Mapping

from errors import UserError
from storage.architecture import CROSS, CROSS_SELF, Architecture
from storage.last_norm import missing_last_norm
from storage.stored_tensor import StoredTensor
from storage.tensor_shapes import Shapes, count_layers

Tensors = dict[str, StoredTensor]
LANDMARK = "decoder_blocks.0.cross_attn.q.weight"
_HEAD_WIDTH = 32  # in all released decoders
_RENAMED = (  # official; what `names.py` maps, as an ordinary decoder has other tensors under the official names
    (r"^dec_norms\.(\d+)\.", r"decoder_blocks.\1.source_norm."),
    (r"^(decoder_blocks\.\d+)\.norm1\.", r"\1.cross_norm."),
    (r"^(decoder_blocks\.\d+)\.norm0\.", r"\1.norm1."),
    (r"^(decoder_blocks\.\d+)\.self_attn\.", r"\1.attn."),
)
_RENAMED_BACK = (
    (r"^decoder_blocks\.(\d+)\.source_norm\.", r"dec_norms.\1."),
    (r"^(decoder_blocks\.\d+)\.norm1\.", r"\1.norm0."),
    (r"^(decoder_blocks\.\d+)\.cross_norm\.", r"\1.norm1."),
    (r"^(decoder_blocks\.\d+)\.attn\.", r"\1.self_attn."),
)


def with_usual_names(official: Tensors) -> Tensors:
    """Give the tensors of an official file the names that `names.our_name` knows; others stay as they are."""
    return _renamed(official, _RENAMED) if LANDMARK in official else official


def with_official_names(named: Tensors) -> Tensors:
    """Give tensors under the names of `names.official_name` those of CrossMAE's files, if they are of such a model."""
    return _renamed(named, _RENAMED_BACK) if LANDMARK in named else named


def _renamed(tensors: Tensors, patterns: tuple[tuple[str, str], ...]) -> Tensors:
    renamed = {}
    for name, tensor in tensors.items():
        pattern = next((pair for pair in patterns if re.search(pair[0], name)), None)
        renamed[name if pattern is None else re.sub(*pattern, name)] = tensor
    return renamed


def heads(tensors: Tensors) -> tuple[int | None, int | None]:
    """Return the heads of encoder and decoder of a released model, by its widths; None where they are not known."""
    found = [tensors[name].shape for name in ("cls_token", "mask_token") if name in tensors]
    if len(found) < 2 or not all(found):  # which the check of all tensors names
        return None, None
    width, decoder = (shape[-1] for shape in found)
    return {384: 6}.get(width), decoder // _HEAD_WIDTH if decoder % _HEAD_WIDTH == 0 else None


def cross_options(shapes: Shapes, depth: int, recorded: tuple[int, ...] | None) -> dict[str, object]:
    """Return an architecture's fields of a cross decoder, from the shapes of its tensors; none of another one.

    Args:
        depth: of the encoder.
        recorded: the blocks, where the file tells them; else they are known only if they are all.

    Raises:
        UserError: if the blocks are not known, or do not fit.
    """
    if "decoder.layers.0.cross_attn.q.weight" not in shapes:
        return {}
    kind = CROSS_SELF if "decoder.layers.0.attn.qkv.weight" in shapes else CROSS
    mix = shapes.get("decoder.source_mix.weight")
    if mix is None:
        return {"decoder_kind": kind}
    sources = tuple(range(depth + 1)) if recorded is None else recorded
    if len(mix) != 2:
        raise UserError(f"decoder.source_mix.weight is of shape {list(mix)}")
    are_blocks = all(type(block) is int and block >= 0 for block in sources) and list(sources) == sorted(set(sources))
    if len(sources) != mix[0] or not are_blocks or sources[-1] != depth:
        raise UserError(
            f"its decoder mixes {mix[0]} outputs of an encoder of {depth} blocks; the file does not tell which, or the "
            "last one is not among them"
        )
    return {"decoder_kind": kind, "decoder_sources": sources}


def recorded_sources(arguments: Mapping, tensors: Tensors) -> tuple[int, ...] | None:
    """Return the blocks that a decoder reads by the arguments in an official file; None where they do not tell."""
    blocks = arguments.get("use_fm")
    if not isinstance(blocks, list) or not all(type(block) is int for block in blocks):
        return None
    numbers = range(count_layers(tensors, "encoder")) if blocks == [-1] else sorted(set(blocks))
    return (*([0] if arguments.get("use_input") else []), *(block + 1 for block in numbers)) or None


def encoder_alone(tensors: Tensors, architecture: Architecture) -> tuple[Tensors, Architecture, list[str]]:
    """Leave a cross decoder out; returns also the names of its tensors.

    No norm follows the encoder where the decoder has sources; it gets ones and zeros, from which official finetuning
    starts.
    """
    alone = architecture.without_decoder()
    own = tensors | missing_last_norm(tensors)
    left_out = [name for name in tensors if name not in alone.shapes()]
    return {name: own[name] for name in alone.shapes()}, alone, left_out
