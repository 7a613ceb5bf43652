"""Linear layers and attention for training on CPU: the usual mathematics in an order that Paddle's CPU kernels do fast.

Measured on an AMD processor, ViT-Base pretraining: Paddle sums a bias's gradient over rows 10 to 80 times slower than a
product with a vector of ones gives it; its softmax takes three times as long as maximum, exponential and sum do in
place; and scores that are computed again in the backward pass, some images at a time, stay in the cache.
"""

import paddle
from paddle.autograd import PyLayer

_SCORES_AT_ONCE = 1 << 20  # float32: 4 MiB


def are_for(tensor: paddle.Tensor) -> bool:
    """Tell whether these take the place of Paddle's: in float32 on CPU, unless a program is being traced."""
    if not paddle.in_dynamic_mode():
        return False
    return tensor.dtype == paddle.float32 and paddle.device.get_device() == "cpu"  # tracing fails on `tensor.place`


class _Linear(PyLayer):
    @staticmethod
    def forward(ctx, inputs, weight, bias):
        ctx.save_for_backward(inputs, weight)
        ctx.wants = [not tensor.stop_gradient for tensor in (inputs, weight, bias)]
        outputs = paddle.matmul(inputs, weight)
        outputs.add_(bias)
        return outputs

    @staticmethod
    def backward(ctx, grad):
        inputs, weight = ctx.saved_tensor()
        rows = grad.reshape([-1, grad.shape[-1]])  # [M, out]
        to_inputs = to_weight = to_bias = None
        if ctx.wants[0]:
            to_inputs = paddle.matmul(rows, weight, transpose_y=True).reshape(inputs.shape)
        if ctx.wants[1]:
            to_weight = paddle.matmul(inputs.reshape([-1, inputs.shape[-1]]), rows, transpose_x=True)
        if ctx.wants[2]:
            to_bias = paddle.matmul(paddle.ones([1, rows.shape[0]]), rows).reshape([-1])
        return to_inputs, to_weight, to_bias


def linear(inputs: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
    """Return inputs [..., in] times weight [in, out] plus bias [out]."""
    return _Linear.apply(inputs, weight, bias)


class _Attention(PyLayer):
    @staticmethod
    def forward(ctx, qkv):
        ctx.save_for_backward(qkv)
        mixed = []
        for query, key, value in map(_split, _chunks(qkv, qkv)):
            mixed.append(paddle.matmul(_weights(query, key), value).transpose([0, 2, 1, 3]))  # [b, T, A, d]
        return mixed[0] if len(mixed) == 1 else paddle.concat(mixed)

    @staticmethod
    def backward(ctx, grad):
        (qkv,) = ctx.saved_tensor()
        grads = []
        for images, grad_mixed in zip(_chunks(qkv, qkv), _chunks(grad, qkv), strict=True):
            query, key, value = _split(images)
            grad_mixed = grad_mixed.transpose([0, 2, 1, 3])  # [b, A, T, d]
            weights = _weights(query, key)  # [b, A, T, T]
            grad_value = paddle.matmul(weights, grad_mixed, transpose_x=True)
            grad_scores = paddle.matmul(grad_mixed, value, transpose_y=True)
            grad_scores.subtract_((grad_scores * weights).sum(axis=-1, keepdim=True))
            grad_scores.multiply_(weights)
            scale = query.shape[-1] ** -0.5
            grad_query = paddle.matmul(grad_scores, key) * scale
            grad_key = paddle.matmul(grad_scores, query, transpose_x=True) * scale
            grads.append(paddle.stack([grad_query, grad_key, grad_value]).transpose([1, 3, 0, 2, 4]))
        return grads[0] if len(grads) == 1 else paddle.concat(grads)


def _chunks(tensor: paddle.Tensor, qkv: paddle.Tensor) -> list[paddle.Tensor]:
    """Cut along the batch so that the scores of a piece stay in the cache, and no piece is too small to be worth it."""
    batch, num_tokens, _, num_heads, _ = qkv.shape
    size = max(1, _SCORES_AT_ONCE // (num_heads * num_tokens**2))
    return [tensor[start : start + size] for start in range(0, batch, size)] if size < batch else [tensor]


def _split(qkv: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Return queries, keys and values [b, A, T, d] of [b, T, 3, A, d]."""
    return tuple(qkv.transpose([2, 0, 3, 1, 4]).unbind(axis=0))


def _weights(query: paddle.Tensor, key: paddle.Tensor) -> paddle.Tensor:
    """Return the softmax of the scaled scores, [b, A, T, T]."""
    scores = paddle.matmul(query * query.shape[-1] ** -0.5, key, transpose_y=True)
    scores.subtract_(scores.max(axis=-1, keepdim=True))
    scores.exp_()
    scores.divide_(scores.sum(axis=-1, keepdim=True))
    return scores


def attention(qkv: paddle.Tensor) -> paddle.Tensor:
    """Mix the values of [B, T, 3, A, d] by the softmax of their scaled scores; returns [B, T, A, d]."""
    return _Attention.apply(qkv)
