"""Guess the architecture of foreign weights from the names and shapes of their tensors, under this project's names."""

import functools
import math
import re
from collections.abc import Mapping

from errors import UserError
from layers.pos_embed import square_grid
from port_weights.cross_decoder import cross_options
from storage.architecture import Architecture, Tower, extras
from storage.clip_architecture import IMAGE_PREFIX, IMAGE_PROJECTION, TEXT_PREFIX, ClipArchitecture, TextArchitecture
from storage.tensor_shapes import Shapes, count_layers

_KNOWN_TEXT_HEADS = {(768, 12): 12, (1024, 24): 16}  # (width, depth): heads of XLM-R base and large


def infer(
    shapes: Shapes,
    encoder_heads: int,
    decoder_heads: int | None = None,
    grid_hw: tuple[int, int] | None = None,
    norm_pix_loss: bool | None = None,
    decoder_sources: tuple[int, ...] | None = None,
    channel_groups: tuple[tuple[int, ...], ...] = (),
) -> Architecture:
    """Read the sizes of a model off the shapes of its tensors, which have PaddleViT's names.

    Args:
        encoder_heads: attention heads; no shape depends on them.
        decoder_heads: those of the decoder, if there is one.
        grid_hw: patches per column and per row; None: square.
        norm_pix_loss: whether the decoder predicts normalised pixels; no shape depends on it either.
        decoder_sources: blocks of the encoder that a cross decoder reads; None: all, and its input.
        channel_groups: see `Architecture`.

    Raises:
        UserError: if tensors that determine a size are missing, or do not fit together.
    """
    shape = functools.partial(_shape, shapes)
    part = "groups.0" if channel_groups else "patch_embedding"
    width, channels, patch_px, patch_width = shape(f"patch_embedding.{part}.weight", 4)
    if patch_px != patch_width:
        raise UserError(f"patches of {patch_px}x{patch_width} pixels; only square ones are known here")
    num_patches = (shape("encoder_position_embedding", 3)[1] - 1) // max(1, len(channel_groups))
    decoder = None
    if "mask_token" in shapes:
        if decoder_heads is None:
            raise UserError("the decoder's number of heads is not known")
        decoder = Tower(shape("mask_token", 3)[2], count_layers(shapes, "decoder"), decoder_heads)
    depth, probe = count_layers(shapes, "encoder"), "classifier.1.weight" in shapes
    head = "classifier.1.weight" if probe else "classifier.weight"
    return Architecture(
        encoder=Tower(width, depth, encoder_heads),
        decoder=decoder,
        patch_px=patch_px,
        grid_hw=grid_hw or square_grid(num_patches),
        channels=sum(map(len, channel_groups)) or channels,
        channel_groups=channel_groups,
        mlp_ratio=_mlp_ratio(width, shape("encoder.layers.0.mlp.fc1.weight", 2)[1]),
        num_classes=shape(head, 2)[1] if head in shapes else 0,
        probe=probe,
        norm_pix_loss=norm_pix_loss,
        **_switches(shapes) | cross_options(shapes, depth, decoder_sources),
    )


def _shape(shapes: Shapes, name: str, ndim: int) -> tuple[int, ...]:
    found = shapes.get(name)
    if found is None or len(found) != ndim or 0 in found:
        raise UserError(f"{name} is {'missing' if found is None else f'of shape {list(found)}'}")
    return found


def _switches(shapes: Mapping[str, object]) -> dict[str, object]:
    """Return the fields that follow from the presence of optional tensors."""
    found = {field.name: added.value for field, added in extras() if added.is_in(shapes)}
    return found | {
        "qkv_bias": "encoder.layers.0.attn.qkv.bias" in shapes,
        "global_pool": "encoder_norm.weight" in shapes,
    }


def _mlp_ratio(width: int, hidden: int) -> float:
    """Return the ratio from which the models get this hidden width, rounding down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def infer_text(shapes: Shapes, heads: int | None) -> TextArchitecture:
    """Read the sizes of a text tower off the shapes of its tensors.

    Args:
        heads: attention heads, which no shape shows; None: those of XLM-R of this size.

    Raises:
        UserError: if a tensor is missing, or the number of heads is not known.
    """
    for name, ndim in (("token_embedding.weight", 2), ("position_embedding.weight", 2), ("layers.0.mlp.fc1.weight", 2)):
        if len(shapes.get(name, ())) != ndim or 0 in shapes[name]:
            raise UserError(f"the text tower's {name} is {list(shapes[name]) if name in shapes else 'missing'}")
    vocab_size, width = shapes["token_embedding.weight"]
    indices = [int(match[1]) for match in (re.match(r"layers\.(\d{1,3})\.", name) for name in shapes) if match]
    depth, hidden = 1 + max(indices), shapes["layers.0.mlp.fc1.weight"][1]
    if heads is None:
        heads = _KNOWN_TEXT_HEADS.get((width, depth))
    if heads is None:
        raise UserError(
            f"a text tower {width} wide and {depth} deep, whose number of attention heads is not visible in the shapes "
            "and not known here; say it with -heads IMAGE,TEXT"
        )
    if heads < 1 or width % heads:
        raise UserError(f"{heads} heads do not divide the text tower's width of {width}")
    tower = Tower(width, depth, heads)
    return TextArchitecture(tower, vocab_size, shapes["position_embedding.weight"][0], hidden / width)


def infer_clip(shapes: Shapes, image_heads: int, text_heads: int | None) -> ClipArchitecture:
    """Read the sizes of a CLIP model off the shapes of its tensors; raise UserError if one is missing."""
    parts = {
        prefix: {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
        for prefix in (IMAGE_PREFIX, TEXT_PREFIX)
    }
    projection = shapes.get(IMAGE_PROJECTION, ())
    if len(projection) != 2 or 0 in projection:
        raise UserError(f"{IMAGE_PROJECTION} is {list(projection) if projection else 'missing'}")
    text = infer_text(parts[TEXT_PREFIX], text_heads)
    return ClipArchitecture(infer(parts[IMAGE_PREFIX], image_heads), text, projection[1])
