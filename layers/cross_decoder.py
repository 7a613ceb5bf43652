"""Decoder whose queries are the predicted patches alone, and read what the encoder made of the visible ones.

CrossMAE (arXiv 2401.14391). Without self-attention, the prediction of a patch does not depend on which others are
predicted, so any share of them gives the same loss on average.

Shapes: B images, T = 1 + K tokens of the encoder, D wide; M predicted patches, E decoder width, A heads.
"""

from collections.abc import Sequence

import paddle
from paddle import nn

from layers import kernels, recompute
from layers.attention import Attention
from layers.basic import LayerNorm, Linear, Mlp


class CrossAttention(nn.Layer):
    """Multi-head attention of one set of tokens to another; `architecture` as of `CrossDecoder`."""

    def __init__(self, architecture, dropout: float, attention_dropout: float):
        super().__init__()
        width, bias = architecture.decoder.width, None if architecture.qkv_bias else False
        self.num_heads, self.head_dim = architecture.decoder.heads, width // architecture.decoder.heads
        self.q = Linear(width, width, bias_attr=bias)
        self.kv = Linear(architecture.encoder.width, 2 * width, bias_attr=bias)
        self.out = Linear(width, width)
        self.attention_dropout = attention_dropout
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: paddle.Tensor, source: paddle.Tensor) -> paddle.Tensor:
        """Mix a source [B, T, D] for queries [B, M, E]; returns [B, M, E]."""
        query = self.q(queries).reshape([*queries.shape[:2], self.num_heads, self.head_dim])
        key_value = self.kv(source).reshape([*source.shape[:2], 2, self.num_heads, self.head_dim])
        mixed = kernels.cross_attention(query, key_value, self.attention_dropout, self.training)
        return self.dropout(self.out(mixed.reshape(queries.shape)))


class CrossLayer(nn.Layer):
    """Pre-norm block: self-attention where the decoder has it, attention to a source, MLP, each with a residual."""

    def __init__(self, architecture, dropout: float = 0.0, attention_dropout: float = 0.0):
        super().__init__()
        tower, eps = architecture.decoder, architecture.norm_eps
        rates = (dropout, attention_dropout)
        self.source_norm = LayerNorm(architecture.encoder.width, eps) if architecture.decoder_sources else None
        has_self = architecture.decoder_kind == "cross_self"
        self.attn_norm = LayerNorm(tower.width, eps) if has_self else None
        self.attn = Attention(tower.width, tower.heads, architecture.qkv_bias, *rates) if has_self else None
        self.cross_norm = LayerNorm(tower.width, eps)
        self.cross_attn = CrossAttention(architecture, *rates)
        self.mlp_norm = LayerNorm(tower.width, eps)
        self.mlp = Mlp(tower.width, architecture.mlp_ratio, dropout)

    def forward(self, queries: paddle.Tensor, source: paddle.Tensor) -> paddle.Tensor:
        """Transform queries [B, M, E] by a source [B, T, D]."""
        source = source if self.source_norm is None else self.source_norm(source)
        if self.attn is not None:
            queries = queries + self.attn(self.attn_norm(queries))
        queries = queries + self.cross_attn(self.cross_norm(queries), source)
        return queries + self.mlp(self.mlp_norm(queries))


class CrossDecoder(nn.Layer):
    """A stack of `CrossLayer` and a norm.

    Args:
        architecture: `storage.architecture.Architecture`. Each block reads its own mixture of the outputs of the
            encoder's blocks `decoder_sources`, by learned weights of any sign, and normalises it; without sources, all
            read the normalised last output.
        recompute: training keeps the inputs of each block only.
        rates: `dropout` and `attention_dropout` of each block.
    """

    def __init__(self, architecture, recompute: bool = False, **rates: float):
        super().__init__()
        depth, num_sources = architecture.decoder.depth, len(architecture.decoder_sources)
        self.recompute = recompute
        self.source_mix = Linear(num_sources, depth, bias_attr=False) if num_sources else None
        self.layers = nn.LayerList([CrossLayer(architecture, **rates) for _ in range(depth)])
        self.norm = LayerNorm(architecture.decoder.width, architecture.norm_eps)

    def forward(self, queries: paddle.Tensor, outputs: Sequence[paddle.Tensor]) -> paddle.Tensor:
        """Transform queries [B, M, E].

        Args:
            outputs: of the encoder, [B, T, D] each: of the blocks `decoder_sources`, or the normalised last one.
        """
        queries = kernels.to_residual(queries)
        sources = self.mix(outputs)
        for index, layer in enumerate(self.layers):
            queries = recompute.run(layer, self.recompute, queries, sources[index])
        return self.norm(queries)

    def mix(self, outputs: Sequence[paddle.Tensor]) -> Sequence[paddle.Tensor]:
        """Return what each block reads, [B, T, D], of outputs of the encoder; no softmax makes the weights shares."""
        if self.source_mix is None:
            return [*outputs] * len(self.layers)
        stacked = paddle.stack(outputs).flatten(start_axis=1)  # [S, B*T*D]: a product over the last axis is slow
        mixed = paddle.matmul(self.source_mix.weight, stacked, transpose_x=True)
        return mixed.reshape([len(self.layers), -1, *outputs[0].shape[1:]]).unbind(axis=0)
