"""The fastest way in which a device computes a linear layer, or attention.

Shapes: B images, T tokens, A heads, D width.
"""

import contextlib
import functools
from collections.abc import Iterator

import paddle
import paddle.nn.functional as F
from paddle.nn.functional import flash_attention

from layers import cpu_kernels

_FUSED_CAPABILITY = (8, 0)  # Ampere
_WIDEST_HEAD, _WIDEST_BACKWARD = 256, 192  # heads in flash attention; wider backward passes need 8.0 or 9.0
_packed_flash = getattr(flash_attention, "flash_attn_qkvpacked", None)  # not in Paddle 2.6
# Paddle 3's F.linear adds the bias in the product's kernel, and in its precision.
_HAS_FUSED_LINEAR = hasattr(paddle._C_ops, "linear_v2")

_residual_dtype: str | None = None


@contextlib.contextmanager
def low_residual(dtype: str | None) -> Iterator[None]:
    """Keep the residual stream of transformers, and so the outputs of their norms, in `dtype`.

    None: in float32, as Paddle's automatic mixed precision (level O1) adds branches to tokens in float32.
    """
    global _residual_dtype
    before, _residual_dtype = _residual_dtype, dtype
    try:
        yield
    finally:
        _residual_dtype = before


def to_residual(tokens: paddle.Tensor) -> paddle.Tensor:
    """Return tokens in the type of the residual stream."""
    return tokens if _residual_dtype is None else tokens.astype(_residual_dtype)


def layer_norm(inputs: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float) -> paddle.Tensor:
    """Normalise inputs [..., D]; inputs in low precision stay so."""
    if cpu_kernels.are_usable(inputs):
        return cpu_kernels.layer_norm(inputs, weight, bias, epsilon)
    # Without mixed precision, which would convert low inputs; the kernel itself sums in float32, by float32 weights.
    with paddle.amp.auto_cast(enable=False) if inputs.dtype != weight.dtype else contextlib.nullcontext():
        return F.layer_norm(inputs, weight.shape, weight, bias, epsilon)


def linear(inputs: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
    """Return inputs [..., in] times weight [in, out] plus bias [out]."""
    if bias is not None and cpu_kernels.are_usable(inputs):
        return cpu_kernels.linear(inputs, weight, bias)
    if bias is None or (paddle.in_dynamic_mode() and _HAS_FUSED_LINEAR):
        return F.linear(inputs, weight, bias)
    product = paddle.matmul(inputs, weight)  # in low precision; adding a float32 bias would undo that
    return product + bias.astype(product.dtype)


def attention(
    qkv: paddle.Tensor,
    bias: paddle.Tensor | None = None,
    dropout: float = 0.0,
    training: bool = False,
    return_logits: bool = False,
) -> tuple[paddle.Tensor, paddle.Tensor | None]:
    """Mix values by the softmax of scaled scores.

    Args:
        qkv: [B, T, 3, A, D/A], queries, keys and values.
        bias: added to the scaled scores, [A, T, T], [B, A, T, T], or [B, 1, 1, T] without a gradient (a mask of keys).
        dropout: rate at which weights are dropped while `training`.
        return_logits: also return the scores before the softmax, with the bias.

    Returns:
        mixed: [B, T, A, D/A].
        logits: [B, A, T, T], or None.
    """
    drops = training and dropout > 0
    if cpu_kernels.are_usable(qkv) and not (drops or return_logits) and (bias is None or bias.ndim == 3):
        return cpu_kernels.attention(qkv, bias), None
    is_mask = bias is not None and bias.stop_gradient and bias.ndim == 4 and bias.shape[1] == 1
    trains = not qkv.stop_gradient
    if (bias is None or is_mask) and not return_logits and not _why_plain(_name(qkv.dtype), qkv.shape[-1], trains):
        rate = dropout if training else 0.0
        if not is_mask and _packed_flash is not None:  # reads q, k and v, and writes their gradients, where they are
            return _packed_flash(qkv, rate, training=training)[0], None
        query, key, value = qkv.unbind(axis=2)  # [B, T, A, D/A] each
        mask = bias.astype(qkv.dtype).expand([-1, -1, qkv.shape[1], -1]) if is_mask else None
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=rate, training=training)
        return mixed, None
    query, key, value = qkv.transpose([2, 0, 3, 1, 4]).unbind(axis=0)  # [B, A, T, D/A] each
    mixed, logits = _plain_attention(query, key, value, bias, dropout if training else 0.0)
    return mixed, logits if return_logits else None


def cross_attention(
    query: paddle.Tensor, key_value: paddle.Tensor, dropout: float = 0.0, training: bool = False
) -> paddle.Tensor:
    """Mix the values of other tokens by the softmax of scaled scores.

    Args:
        query: [B, M, A, D/A].
        key_value: [B, T, 2, A, D/A].
        dropout: rate at which weights are dropped while `training`.

    Returns:
        [B, M, A, D/A].
    """
    rate, trains = dropout if training else 0.0, not (query.stop_gradient and key_value.stop_gradient)
    if not _why_plain(_name(query.dtype), query.shape[-1], trains):
        key, value = key_value.unbind(axis=2)  # [B, T, A, D/A] each
        return F.scaled_dot_product_attention(query, key, value, None, dropout_p=rate, training=training)
    key, value = key_value.transpose([2, 0, 3, 1, 4]).unbind(axis=0)  # [B, A, T, D/A] each
    return _plain_attention(query.transpose([0, 2, 1, 3]), key, value, None, rate)[0]


def _plain_attention(
    query: paddle.Tensor, key: paddle.Tensor, value: paddle.Tensor, bias: paddle.Tensor | None, dropout: float
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Return [B, M, A, D/A] of queries [B, A, M, D/A], keys and values [B, A, T, D/A]; and the scores [B, A, M, T]."""
    logits = paddle.matmul(query * query.shape[-1] ** -0.5, key, transpose_y=True)
    if bias is not None:
        logits = logits + bias.astype(logits.dtype)
    weights = F.dropout(F.softmax(logits, axis=-1), dropout)
    return paddle.matmul(weights, value).transpose([0, 2, 1, 3]), logits


def _why_plain(dtype: str | None, head_dim: int, trains: bool) -> str:
    """Return why Paddle has no flash attention for such heads on the current device; empty if it has.

    Paddle 2.6 chooses its flash kernel for whatever is in low precision, and fails where the kernel refuses it.
    """
    if dtype not in ("float16", "bfloat16"):
        return "scores in float32 have no fused kernel here; -amp bf16 does"
    if not paddle.device.get_device().startswith("gpu"):  # tensors of a static graph have no place
        return "only NVIDIA GPUs have a fused kernel here"
    capability = _compute_capability()
    if capability < _FUSED_CAPABILITY:
        return "the GPU's compute capability {}.{} is below {}.{}".format(*capability, *_FUSED_CAPABILITY)
    if head_dim % 8 or head_dim > _WIDEST_HEAD:
        return f"heads {head_dim} wide do not fit flash attention (multiples of 8 up to {_WIDEST_HEAD} do)"
    if trains and head_dim > _WIDEST_BACKWARD and capability not in ((8, 0), (9, 0)):
        return f"flash attention has no gradient for heads {head_dim} wide on this GPU"
    return ""


def _name(dtype: object) -> str:
    return str(dtype).split(".")[-1]


def describe_attention(dtype: str | None, head_dims: list[int], has_bias: bool = False, trains: bool = True) -> str:
    """Return the kind of attention that the current device computes, and why it is not a faster one.

    Args:
        dtype: of automatic mixed precision, "float16" or "bfloat16"; None: float32.
        head_dims: D / A of each stack.
        has_bias: position biases that train are added to the scores.
        trains: gradients are computed, too.
    """
    if paddle.device.get_device() == "cpu":
        return "in pieces that fit the cache"
    reasons = [_why_plain(dtype, head_dim, trains) for head_dim in head_dims]
    if not any(reasons) and has_bias:
        reasons = ["Paddle's flash attention has no gradient for position biases"]
    if not any(reasons):
        return f"flash, {dtype}"
    plain = f"plain, as {next(filter(None, reasons))}"
    return plain if all(reasons) else f"flash, {dtype}, in one stack; {plain} in the other"


@functools.cache
def _compute_capability() -> tuple[int, int]:
    return paddle.device.cuda.get_device_capability()
