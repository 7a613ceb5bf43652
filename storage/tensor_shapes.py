"""Names and shapes of the tensors of layers. No Paddle here."""

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
