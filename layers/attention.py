"""Multi-head self-attention, with biases by relative position where they are wanted.

Shapes: B images, T tokens, the class token first, D width, A heads.
"""

import paddle
import paddle.nn.functional as F
from paddle import nn

from layers import kernels
from layers.basic import Linear
from layers.relative_position import num_rows, position_index


class PositionBias(nn.Layer):
    """The biases of the attention scores of one block, or of all blocks.

    Args:
        grid_hw: of the patches.
        num_heads: A.
    """

    def __init__(self, grid_hw: tuple[int, int], num_heads: int):
        super().__init__()
        zero = nn.initializer.Constant(0.0)
        self.table = self.create_parameter([num_rows(grid_hw), num_heads], default_initializer=zero)
        self.register_buffer("index", paddle.to_tensor(position_index(grid_hw)), persistable=False)

    def forward(self, bias: paddle.Tensor | None = None) -> paddle.Tensor:
        """Return the biases [A, T, T], with another one added if there is any."""
        own = F.embedding(self.index, self.table).transpose([2, 0, 1])
        return own if bias is None else bias + own


class Attention(nn.Layer):
    """Multi-head self-attention with one fused q|k|v projection.

    Args:
        bias_grid_hw: grid of its own position biases; None: it has none.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        qkv_bias: bool,
        dropout: float,
        attention_dropout: float,
        bias_grid_hw: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.qkv = Linear(embed_dim, 3 * embed_dim, bias_attr=None if qkv_bias else False)
        self.out = Linear(embed_dim, embed_dim)
        self.attention_dropout = attention_dropout
        self.dropout = nn.Dropout(dropout)
        self.position_bias = PositionBias(bias_grid_hw, num_heads) if bias_grid_hw else None

    def forward(self, tokens: paddle.Tensor, bias: paddle.Tensor | None = None, return_logits: bool = False):
        """Mix tokens [B, T, D].

        Args:
            bias: added to the scaled scores, see `kernels.attention`.

        Returns:
            [B, T, D]; with `return_logits` also the scaled scores before the softmax, [B, A, T, T].
        """
        if self.position_bias is not None:
            bias = self.position_bias(bias)
        batch, num_tokens, dim = tokens.shape
        qkv = self.qkv(tokens).reshape([batch, num_tokens, 3, self.num_heads, self.head_dim])
        mixed, logits = kernels.attention(qkv, bias, self.attention_dropout, self.training, return_logits)
        tokens = self.dropout(self.out(mixed.reshape([batch, num_tokens, dim])))
        return (tokens, logits) if return_logits else tokens
