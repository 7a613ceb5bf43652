"""The fastest way in which a device computes a linear layer, or attention.

Shapes: B images, T tokens, A heads, D width.
"""

import functools

import paddle
import paddle.nn.functional as F

from layers import cpu_kernels

_FUSED_CAPABILITY = 8  # Ampere


def linear(inputs: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
    """Return inputs [..., in] times weight [in, out] plus bias [out]."""
    if bias is not None and cpu_kernels.are_usable(inputs):
        return cpu_kernels.linear(inputs, weight, bias)
    if bias is not None and not paddle.in_dynamic_mode():  # F.linear would leave mixed precision in a static graph
        product = paddle.matmul(inputs, weight)
        return product + bias.astype(product.dtype)
    return F.linear(inputs, weight, bias)


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
    if (bias is None or is_mask) and not return_logits and _has_fused_attention(qkv):
        query, key, value = qkv.unbind(axis=2)  # [B, T, A, D/A] each
        rate = dropout if training else 0.0
        mask = bias.astype(qkv.dtype).expand([-1, -1, qkv.shape[1], -1]) if is_mask else None
        mixed = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=rate, training=training)
        return mixed, None
    query, key, value = qkv.transpose([2, 0, 3, 1, 4]).unbind(axis=0)  # [B, A, T, D/A] each
    logits = paddle.matmul(query * qkv.shape[-1] ** -0.5, key, transpose_y=True)  # [B, A, T, T]
    if bias is not None:
        logits = logits + bias.astype(logits.dtype)
    weights = F.dropout(F.softmax(logits, axis=-1), dropout, training=training)
    mixed = paddle.matmul(weights, value).transpose([0, 2, 1, 3])  # [B, T, A, D/A]
    return mixed, logits if return_logits else None


def _has_fused_attention(tensor: paddle.Tensor) -> bool:
    """Return True if Paddle has a fused attention kernel for this tensor: on GPUs from Ampere on, in low precision.

    Paddle 2.6 chooses its flash kernel on older GPUs, too, and fails there.
    """
    is_low = tensor.dtype in (paddle.float16, paddle.bfloat16)
    on_gpu = paddle.device.get_device().startswith("gpu")  # tensors of a static graph have no place
    return is_low and on_gpu and _compute_capability() >= _FUSED_CAPABILITY


def describe_attention(dtype: str | None, head_dims: list[int], has_bias: bool = False) -> str:
    """Return the kind of attention that the current device computes, and why it is not a faster one.

    Args:
        dtype: of automatic mixed precision, "float16" or "bfloat16"; None: float32.
        head_dims: D / A of each stack.
        has_bias: position biases that train are added to the scores.
    """
    if paddle.device.get_device() == "cpu":
        return "in pieces that fit the cache"
    if dtype is None:
        return "plain, as scores in float32 have no fused kernel here; -amp bf16 does"
    if _compute_capability() < _FUSED_CAPABILITY:
        return f"plain, as the GPU's compute capability {_compute_capability()} is below {_FUSED_CAPABILITY}"
    if has_bias:
        return "plain, as Paddle's flash attention has no gradient for position biases"
    odd = [size for size in head_dims if size % 8 or size > 256]
    if odd:
        return f"Paddle's choice, as heads {odd} wide do not fit flash attention (multiples of 8 up to 256 do)"
    return f"flash, {dtype}"


@functools.cache
def _compute_capability() -> int:
    return paddle.device.cuda.get_device_capability()[0]
