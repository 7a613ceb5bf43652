"""Linear layers, layer norms and attention for CPU, reordered so that Paddle's fast CPU kernels do the work.

Measured on an AMD processor: Paddle sums a bias's gradient over rows 10 to 80 times
slower than a product with a vector of ones gives it; an operation that broadcasts a row or a column takes 4 to 10 times
as long as one on tensors of equal shape, and an outer product with ones makes them equal; Paddle's gradient of a layer
norm takes six times as long as the same in products; and attention scores that are computed again in the backward pass,
some images at a time, stay in the cache.
"""

import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

_SCORES_AT_ONCE = 1 << 20  # float32: 4 MiB


def are_usable(tensor: paddle.Tensor) -> bool:
    """Return True if the kernels of this module can be used: float32, on CPU, in eager mode."""
    if not paddle.in_dynamic_mode():
        return False
    return tensor.dtype == paddle.float32 and paddle.device.get_device() == "cpu"  # tracing fails on `tensor.place`


class _Linear(PyLayer):
    @staticmethod
    def forward(ctx, inputs, weight, bias):
        ctx.save_for_backward(inputs, weight)
        ctx.wants = [not tensor.stop_gradient for tensor in (inputs, weight, bias)]
        rows = inputs.reshape([-1, inputs.shape[-1]])  # [M, in]
        outputs = paddle.addmm(bias.reshape([1, -1]), rows, weight)
        return outputs.reshape([*inputs.shape[:-1], weight.shape[1]])

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
            to_bias = _sum_rows(rows)
        return to_inputs, to_weight, to_bias


def linear(inputs: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
    """Return inputs [..., in] times weight [in, out] plus bias [out]."""
    return _Linear.apply(inputs, weight, bias)


class _LayerNorm(PyLayer):
    @staticmethod
    def forward(ctx, inputs, weight, bias, epsilon):
        ctx.save_for_backward(inputs, weight)
        ctx.epsilon = epsilon
        ctx.wants = [not tensor.stop_gradient for tensor in (inputs, weight, bias)]
        return F.layer_norm(inputs, weight.shape, weight, bias, epsilon)

    @staticmethod
    def backward(ctx, grad):
        inputs, weight = ctx.saved_tensor()
        width = weight.shape[0]
        rows, grads = inputs.reshape([-1, width]), grad.reshape([-1, width])  # [M, D]
        normed = rows - _spread(_mean(rows), width)
        scale = (_mean(normed.square()) + ctx.epsilon).rsqrt()  # [M, 1]
        normed.multiply_(_spread(scale, width))
        product = grads * normed
        to_inputs = to_weight = to_bias = None
        if ctx.wants[0]:
            column = weight.reshape([-1, 1]) / width
            shift, slope = paddle.matmul(grads, column) * scale, paddle.matmul(product, column) * scale  # [M, 1]
            to_inputs = paddle.matmul(scale, weight.reshape([1, -1])).multiply_(grads)
            to_inputs.subtract_(normed.multiply_(_spread(slope, width)))
            to_inputs = to_inputs.subtract_(_spread(shift, width)).reshape(inputs.shape)
        if ctx.wants[1]:
            to_weight = _sum_rows(product)
        if ctx.wants[2]:
            to_bias = _sum_rows(grads)
        return to_inputs, to_weight, to_bias


def layer_norm(inputs: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float) -> paddle.Tensor:
    """Normalise inputs [..., D] over D, then scale by weight [D] and shift by bias [D]."""
    return _LayerNorm.apply(inputs, weight, bias, epsilon)


def _mean(rows: paddle.Tensor) -> paddle.Tensor:
    """Return the mean of each row, [M, 1], of [M, D]."""
    return paddle.matmul(rows, paddle.full([rows.shape[1], 1], 1.0 / rows.shape[1]))


def _sum_rows(rows: paddle.Tensor) -> paddle.Tensor:
    """Add up the rows of [M, D]; returns [D]."""
    return paddle.matmul(paddle.ones([1, rows.shape[0]]), rows).reshape([-1])


def _spread(column: paddle.Tensor, width: int) -> paddle.Tensor:
    """Repeat a column [..., 1] as [..., width]."""
    return paddle.matmul(column, paddle.ones([1, width]))


class _Attention(PyLayer):
    @staticmethod
    def forward(ctx, qkv, bias):
        mixed, saved, tiles = [], [], _tile(bias, qkv)
        for query, key, value in map(_split, _chunks(qkv, qkv)):
            scores = _scores(query, key, tiles)
            highest = scores.max(axis=-1, keepdim=True)  # [b, A, T, 1]
            weights = scores.subtract_(_spread(highest, scores.shape[-1])).exp_()  # their rows' sums are not yet 1
            total = paddle.matmul(weights, paddle.ones([weights.shape[-1], 1]))
            share = 1.0 / total
            values = paddle.matmul(weights, value).multiply_(_spread(share, value.shape[-1]))
            mixed.append(values.transpose([0, 2, 1, 3]))  # [b, T, A, d]
            saved += [highest, share]
        ctx.has_bias, ctx.wants_bias = bias is not None, bias is not None and not bias.stop_gradient
        ctx.save_for_backward(qkv, *saved, *([bias] if ctx.has_bias else []))
        return mixed[0] if len(mixed) == 1 else paddle.concat(mixed)

    @staticmethod
    def backward(ctx, grad):
        qkv, *saved = ctx.saved_tensor()
        bias = saved.pop() if ctx.has_bias else None
        grads, tiles = [], _tile(bias, qkv)
        sums_of_bias: list[paddle.Tensor] = []  # one for the full pieces, one for a smaller last piece
        pieces = zip(_chunks(qkv, qkv), _chunks(grad, qkv), saved[::2], saved[1::2], strict=True)
        for images, grad_mixed, highest, share in pieces:
            query, key, value = _split(images)
            grad_mixed = grad_mixed.transpose([0, 2, 1, 3]) * _spread(share, value.shape[-1])  # [b, A, T, d]
            weights = _scores(query, key, tiles)  # [b, A, T, T]; `share` makes their rows' sums 1
            weights = weights.subtract_(_spread(highest, weights.shape[-1])).exp_()
            grad_value = paddle.matmul(weights, grad_mixed, transpose_x=True)
            grad_scores = paddle.matmul(grad_mixed, value, transpose_y=True).multiply_(weights)
            sums = paddle.matmul(grad_scores, paddle.ones([weights.shape[-1], 1])) * share
            grad_scores.subtract_(weights.multiply_(_spread(sums, weights.shape[-1])))
            if ctx.wants_bias and sums_of_bias and len(grad_scores) == len(sums_of_bias[0]):
                sums_of_bias[0].add_(grad_scores)
            elif ctx.wants_bias:
                sums_of_bias.append(grad_scores)
            scale = query.shape[-1] ** -0.5
            grad_query = paddle.matmul(grad_scores, key) * scale
            grad_key = paddle.matmul(grad_scores, query, transpose_x=True) * scale
            grads.append(paddle.stack([grad_query, grad_key, grad_value]).transpose([1, 3, 0, 2, 4]))
        grad_qkv = grads[0] if len(grads) == 1 else paddle.concat(grads)
        if bias is None:
            return grad_qkv
        return grad_qkv, sum(part.sum(axis=0) for part in sums_of_bias) if ctx.wants_bias else None


def _tile(bias: paddle.Tensor | None, qkv: paddle.Tensor) -> paddle.Tensor | None:
    """Repeat a bias [A, T, T] for each image of a piece, [b, A, T, T]; a sum of equal shapes is fast."""
    return None if bias is None else bias.unsqueeze(0).tile([min(_piece(qkv), len(qkv)), 1, 1, 1])


def _chunks(tensor: paddle.Tensor, qkv: paddle.Tensor) -> list[paddle.Tensor]:
    """Cut along the batch so that the scores of a piece stay in the cache, and no piece is too small to be worth it."""
    batch, size = len(qkv), _piece(qkv)
    return [tensor[start : start + size] for start in range(0, batch, size)] if size < batch else [tensor]


def _piece(qkv: paddle.Tensor) -> int:
    """Return the number of images in a piece."""
    _, num_tokens, _, num_heads, _ = qkv.shape
    return max(1, _SCORES_AT_ONCE // (num_heads * num_tokens**2))


def _split(qkv: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Return queries, keys and values [b, A, T, d] of [b, T, 3, A, d]."""
    return tuple(qkv.transpose([2, 0, 3, 1, 4]).unbind(axis=0))


def _scores(query: paddle.Tensor, key: paddle.Tensor, tiles: paddle.Tensor | None) -> paddle.Tensor:
    """Return the scaled scores before the softmax, [b, A, T, T], with the bias of `_tile`."""
    scores = paddle.matmul(query * query.shape[-1] ** -0.5, key, transpose_y=True)
    return scores if tiles is None else scores.add_(tiles[: len(scores)])


def attention(qkv: paddle.Tensor, bias: paddle.Tensor | None = None) -> paddle.Tensor:
    """Mix the values of [B, T, 3, A, d] by the softmax of their scaled scores; returns [B, T, A, d].

    Args:
        bias: added to the scores, [A, T, T].
    """
    return _Attention.apply(qkv, bias)
