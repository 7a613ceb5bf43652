"""Names and shapes of the tensors of layers. No Paddle here."""

import re
from collections.abc import Mapping

Shapes = dict[str, tuple[int, ...]]


def linear_shapes(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    """Return the tensors of a linear layer, in Paddle's layout."""
    return {f"{name}.weight": (inputs, outputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def layer_shapes(prefix: str, width: int, hidden: int, qkv_bias: bool = True) -> Shapes:
    """Return the tensors of a transformer layer."""
    shapes = norm_shapes(f"{prefix}.attn_norm", width)
    shapes |= linear_shapes(f"{prefix}.attn.qkv", width, 3 * width, bias=qkv_bias)
    shapes |= linear_shapes(f"{prefix}.attn.out", width, width) | norm_shapes(f"{prefix}.mlp_norm", width)
    return (
        shapes | linear_shapes(f"{prefix}.mlp.fc1", width, hidden) | linear_shapes(f"{prefix}.mlp.fc2", hidden, width)
    )


def cross_layer_shapes(
    prefix: str, width: int, hidden: int, source_width: int, qkv_bias: bool, has_source_norm: bool, has_self: bool
) -> Shapes:
    """Return the tensors of a block of `layers.cross_decoder`."""
    shapes = norm_shapes(f"{prefix}.source_norm", source_width) if has_source_norm else {}
    if has_self:
        shapes |= norm_shapes(f"{prefix}.attn_norm", width)
        shapes |= linear_shapes(f"{prefix}.attn.qkv", width, 3 * width, bias=qkv_bias)
        shapes |= linear_shapes(f"{prefix}.attn.out", width, width)
    shapes |= norm_shapes(f"{prefix}.cross_norm", width)
    shapes |= linear_shapes(f"{prefix}.cross_attn.q", width, width, bias=qkv_bias)
    shapes |= linear_shapes(f"{prefix}.cross_attn.kv", source_width, 2 * width, bias=qkv_bias)
    shapes |= linear_shapes(f"{prefix}.cross_attn.out", width, width) | norm_shapes(f"{prefix}.mlp_norm", width)
    return (
        shapes | linear_shapes(f"{prefix}.mlp.fc1", width, hidden) | linear_shapes(f"{prefix}.mlp.fc2", hidden, width)
    )


def stack_shapes(part: str, width: int, depth: int, hidden: int, qkv_bias: bool) -> Shapes:
    """Return the tensors of the layers of an encoder or a decoder."""
    shapes: Shapes = {}
    for index in range(depth):
        shapes |= layer_shapes(f"{part}.layers.{index}", width, hidden, qkv_bias)
    return shapes


def cross_stack_shapes(
    width: int, depth: int, hidden: int, source_width: int, qkv_bias: bool, num_sources: int, has_self: bool
) -> Shapes:
    """Return the tensors of the blocks of `layers.cross_decoder`, and of the mixture that they read."""
    shapes: Shapes = {"decoder.source_mix.weight": (num_sources, depth)} if num_sources else {}
    for index in range(depth):
        prefix = f"decoder.layers.{index}"
        shapes |= cross_layer_shapes(prefix, width, hidden, source_width, qkv_bias, num_sources > 0, has_self)
    return shapes


def norm_shapes(name: str, dim: int) -> Shapes:
    """Return the tensors of a layer norm."""
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def pooler_shapes(kind: str, width: int, queries: int, out_width: int) -> Shapes:
    """Return the tensors of an attentive pooler, see `layers.poolers`."""
    has_bias = kind in ("capi", "vjepa")
    names = {"ep": ("value",), "aim": ("key", "value"), "capi": ("key", "value")}.get(kind, ("query", "key", "value"))
    shapes: Shapes = {"queries": (queries if kind == "ep" else 1, width)}
    if kind == "aim":
        shapes |= {"norm._mean": (width,), "norm._variance": (width,)}
    for name in names:
        shapes |= linear_shapes(name, width, out_width, has_bias)
    if kind == "vjepa":
        shapes |= norm_shapes("norm", width) | norm_shapes("mlp_norm", width)
        shapes |= linear_shapes("mlp.fc1", width, 4 * width) | linear_shapes("mlp.fc2", 4 * width, width)
    if kind == "cae":
        for name in ("query_norm", "key_norm", "value_norm"):
            shapes |= norm_shapes(name, width)
        shapes |= linear_shapes("out", width, width)
    return {f"pooler.{name}": shape for name, shape in shapes.items()}


def count_layers(shapes: Mapping[str, object], part: str) -> int:
    """Return the number of layers that an encoder or a decoder has; gaps count, so that they show as missing."""
    indices = [
        int(match[1]) for match in (re.match(rf"{part}\.layers\.(\d{{1,3}})\.", name) for name in shapes) if match
    ]
    return max(indices, default=-1) + 1
