"""Attentive poolers: learned queries read the tokens of a frozen encoder.

Shapes: B images, N tokens, D width, Q queries, A heads. The formulas are those of the papers' released heads; where a
head has a part that is never used, it is left out here.
"""

import math

import paddle
import paddle.nn.functional as F
from paddle import nn

from errors import UserError
from layers.basic import LayerNorm, Linear, Mlp, ProbeNorm

_STD = 0.02  # released code cuts the normal distribution at 2, which are 100 deviations
_LAYER_NORM_EPS = 1e-5  # torch's default


class EfficientPooling(nn.Layer):
    """Efficient probing (arXiv 2506.10178): each query averages its own slice of the value's channels.

    There is no key, query or output projection, and no norm: queries meet the tokens as they come.

    Args:
        width: D.
        queries: Q, which divides D / d_out.
        d_out: factor by which the output is narrower than D.

    Raises:
        UserError: if the numbers do not divide each other.
    """

    def __init__(self, width: int, queries: int = 32, d_out: int = 1):
        super().__init__()
        if width % d_out or width // d_out % queries:
            raise UserError(f"{queries} queries (PROBE.QUERIES) do not divide the width {width} / {d_out}")
        self.out_width = width // d_out
        self.queries = self.create_parameter([queries, width], default_initializer=nn.initializer.Normal(std=_STD))
        self.value = _linear_like_torch(width, self.out_width)

    def attention(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """Return the weights [B, Q, N] with which each query reads tokens [B, N, D]."""
        scores = paddle.matmul(self.queries, tokens, transpose_y=True) / math.sqrt(tokens.shape[-1])
        return F.softmax(scores.astype("float32"), axis=-1)

    def forward(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """Pool tokens [B, N, D] to [B, D / d_out]."""
        num_queries, width = self.queries.shape
        read = paddle.matmul(self.attention(tokens).astype(tokens.dtype), tokens)  # [B, Q, D]
        # The value is linear, so it may follow the average: on Q vectors instead of N, and each needs its slice only.
        slices = self.value.weight.reshape([width, num_queries, -1]).transpose([1, 0, 2])  # [Q, D, D / d_out / Q]
        pooled = paddle.matmul(read.transpose([1, 0, 2]), slices)  # [Q, B, D / d_out / Q]
        return pooled.transpose([1, 0, 2]).reshape([-1, self.out_width])


class AttentionPooling(nn.Layer):
    """Multi-head attention of learned queries, without a query or output projection; the mean over the queries.

    Args:
        width: D.
        heads: A, which divides D.
        queries: Q.
        norm: True is AIM's head (arXiv 2401.08541): a batch norm of the tokens, no biases. False is CAPI's (arXiv
            2502.08769): no norm, and biases.

    Raises:
        UserError: if the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int = 12, queries: int = 1, norm: bool = True):
        super().__init__()
        _check_heads(width, heads)
        self.out_width, self.heads = width, heads
        draw = nn.initializer.Normal(std=_STD)
        self.queries = self.create_parameter([queries, width], default_initializer=draw)
        self.norm = ProbeNorm(width) if norm else None
        make = _linear_like_torch if norm else _small_linear
        self.key, self.value = make(width, width), make(width, width)

    def attention(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """Return the weights [B, A, N] with which each head reads tokens [B, N, D], the mean over the queries."""
        return self._weights(self._normalise(tokens)).mean(axis=2)

    def forward(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """Pool tokens [B, N, D] to [B, D]."""
        tokens = self._normalise(tokens)
        values = _split(self.value(tokens), self.heads)  # [B, A, N, D / A]
        pooled = paddle.matmul(self._weights(tokens).astype(values.dtype), values)  # [B, A, Q, D / A]
        return pooled.mean(axis=2).reshape([-1, self.out_width])

    def _weights(self, tokens: paddle.Tensor) -> paddle.Tensor:
        queries = _split(self.queries.unsqueeze(0), self.heads)  # [1, A, Q, D / A]
        return _attention(queries, _split(self.key(tokens), self.heads))

    def _normalise(self, tokens: paddle.Tensor) -> paddle.Tensor:
        if self.norm is None:
            return tokens
        return self.norm(tokens.reshape([-1, self.out_width])).reshape(tokens.shape)


class CrossAttentionPooling(nn.Layer):
    """Cross-attention of one learned query.

    Differs from the official code: V-JEPA's output projection is left out, as its code never applies it; CAE's query
    starts at random, not at 0, where a layer norm would multiply its gradient by 316.

    Args:
        width: D.
        heads: A, which divides D.
        block: True is V-JEPA's head (arXiv 2404.08471): a residual block with an MLP, biases. False is CAE's (arXiv
            2202.03026): a norm each for query, key and value, no residual.

    Raises:
        UserError: if the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int = 12, block: bool = True):
        super().__init__()
        _check_heads(width, heads)
        self.out_width, self.heads, self.block = width, heads, block
        draw = nn.initializer.Normal(std=_STD)
        self.queries = self.create_parameter([1, width], default_initializer=draw)
        self.query, self.key, self.value = (_small_linear(width, width, bias=block) for _ in range(3))
        if block:
            self.norm, self.mlp_norm = LayerNorm(width, _LAYER_NORM_EPS), LayerNorm(width, _LAYER_NORM_EPS)
            self.mlp = Mlp(width, 4.0, 0.0)
            for linear, factor in ((self.mlp.fc1, 1.0), (self.mlp.fc2, math.sqrt(0.5))):
                nn.initializer.Normal(std=_STD * factor)(linear.weight)
                nn.initializer.Constant(0.0)(linear.bias)
        else:
            self.query_norm, self.key_norm, self.value_norm = (LayerNorm(width, _LAYER_NORM_EPS) for _ in range(3))
            self.out = _small_linear(width, width)

    def attention(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """Return the weights [B, A, N] with which each head reads tokens [B, N, D]."""
        return self._weights(self.norm(tokens) if self.block else self.key_norm(tokens)).squeeze(2)

    def forward(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """Pool tokens [B, N, D] to [B, D]."""
        if self.block:
            for_keys = for_values = self.norm(tokens)
        else:
            for_keys, for_values = self.key_norm(tokens), self.value_norm(tokens)
        values = _split(self.value(for_values), self.heads)
        pooled = paddle.matmul(self._weights(for_keys).astype(values.dtype), values).reshape([-1, self.out_width])
        if not self.block:
            return self.out(pooled)
        pooled = self.queries + pooled
        return pooled + self.mlp(self.mlp_norm(pooled))

    def _weights(self, normed: paddle.Tensor) -> paddle.Tensor:
        """Return the weights [B, A, 1, N] of tokens [B, N, D] that are normalised for the keys."""
        query = self.queries + paddle.zeros_like(normed[:, :1])  # [B, 1, D]; a norm of parameters cannot be traced
        query = query if self.block else self.query_norm(query)
        return _attention(_split(self.query(query), self.heads), _split(self.key(normed), self.heads))


def build_pooler(architecture) -> nn.Layer:
    """Build the pooler of an architecture: "ep", "aim", "capi", "vjepa" or "cae"; CAPI's heads have 64 channels.

    Args:
        architecture: `storage.architecture.Architecture`.
    """
    kind, width, heads = architecture.pooler, architecture.encoder.width, architecture.pooler_heads
    if kind == "ep":
        return EfficientPooling(width, architecture.pooler_queries, architecture.pooler_d_out)
    if kind == "aim":
        return AttentionPooling(width, heads)
    if kind == "capi":
        return AttentionPooling(width, max(1, width // 64), norm=False)
    return CrossAttentionPooling(width, heads, block=kind == "vjepa")


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise UserError(f"{heads} heads (PROBE.HEADS) do not divide the width {width}")


def _split(tokens: paddle.Tensor, heads: int) -> paddle.Tensor:
    """Cut tokens [B, N, D] into heads, [B, A, N, D / A]."""
    batch, count, width = tokens.shape
    return tokens.reshape([batch, count, heads, width // heads]).transpose([0, 2, 1, 3])


def _attention(queries: paddle.Tensor, keys: paddle.Tensor) -> paddle.Tensor:
    """Return softmax over N of queries [., A, Q, d] with keys [B, A, N, d], scaled by d ** -0.5, in float32."""
    scores = paddle.matmul(queries, keys, transpose_y=True) / math.sqrt(keys.shape[-1])
    return F.softmax(scores.astype("float32"), axis=-1)


def _linear_like_torch(inputs: int, outputs: int) -> Linear:
    """Return a linear layer without bias that is drawn as torch's default: uniform within 1 / sqrt(inputs)."""
    bound = 1.0 / math.sqrt(inputs)
    return Linear(inputs, outputs, weight_attr=nn.initializer.Uniform(-bound, bound), bias_attr=False)


def _small_linear(inputs: int, outputs: int, bias: bool = True) -> Linear:
    initial = nn.initializer.Normal(std=_STD)
    zero = nn.initializer.Constant(0.0) if bias else False
    return Linear(inputs, outputs, weight_attr=initial, bias_attr=zero)
