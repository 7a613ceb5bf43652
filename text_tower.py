"""XLM-R (arXiv 1911.02116): a text encoder for a hundred languages, and the text half of MAWS's CLIP models.

A BERT-like encoder: a norm behind each residual branch, exact GELU, learned positions that count from 2, and no
token types. The vector of a text is what its first token, `<s>`, became.

Shapes: B texts, T tokens, D width.
"""

import paddle
from paddle import nn
from paddle.distributed import fleet

from errors import UserError
from layers.attention import Attention
from layers.basic import LayerNorm, Mlp
from storage.clip_architecture import TextArchitecture

PAD = 1  # id of the token that fills up shorter texts
_LAYER_NORM_EPS = 1e-5
_MASKED = -1e4  # float16 holds it, and its exponential is 0 in float32


class TextLayer(nn.Layer):
    """Post-norm block: attention, then MLP, each followed by a sum with its input and a norm."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float, dropout: float):
        super().__init__()
        self.attn = Attention(embed_dim, num_heads, qkv_bias=True, dropout=dropout, attention_dropout=dropout)
        self.attn_norm = LayerNorm(embed_dim, _LAYER_NORM_EPS)
        self.mlp = Mlp(embed_dim, mlp_ratio, dropout)
        self.mlp_norm = LayerNorm(embed_dim, _LAYER_NORM_EPS)

    def forward(self, tokens: paddle.Tensor, mask: paddle.Tensor | None) -> paddle.Tensor:
        """Transform tokens [B, T, D]; `mask` [B, 1, 1, T] is added to the attention scores."""
        tokens = self.attn_norm(tokens + self.attn(tokens, mask))
        return self.mlp_norm(tokens + self.mlp(tokens))


class TextTower(nn.Layer):
    """Text encoder from token ids to one vector per text.

    Args:
        architecture: sizes; of its position table two rows are not used, so texts have `positions - 2` tokens at most.
        dropout: rate while training, of embeddings, attention weights and branches.
        recompute: training keeps the input of each layer only.
    """

    def __init__(self, architecture: TextArchitecture, dropout: float = 0.1, recompute: bool = False):
        super().__init__()
        (width, depth, heads), self.recompute = architecture.tower, recompute
        if width % heads:
            raise UserError(f"TEXT.NUM_HEADS={heads}: must divide TEXT.EMBED_DIM={width}")
        self.architecture, self.vocab_size = architecture, architecture.vocab_size
        self.max_tokens = architecture.positions - PAD - 1
        self.token_embedding = nn.Embedding(architecture.vocab_size, width, padding_idx=PAD)
        self.position_embedding = nn.Embedding(architecture.positions, width, padding_idx=PAD)
        self.embedding_norm = LayerNorm(width, _LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.LayerList([TextLayer(width, heads, architecture.mlp_ratio, dropout) for _ in range(depth)])
        self._init_weights()

    def _init_weights(self) -> None:
        """Draw matrices from a normal distribution of deviation 0.02 (BERT), and set biases and padding to 0."""
        normal, zero = nn.initializer.Normal(std=0.02), nn.initializer.Constant(0.0)
        for layer in self.sublayers():
            if isinstance(layer, nn.Embedding):
                normal(layer.weight)
                is_pad = (paddle.arange(layer.weight.shape[0]) == PAD).unsqueeze(1)
                layer.weight.set_value(paddle.where(is_pad, paddle.zeros([1]), layer.weight))
            elif isinstance(layer, nn.Linear):
                normal(layer.weight)
                zero(layer.bias)

    def forward_tokens(self, ids: paddle.Tensor) -> paddle.Tensor:
        """Encode ids [B, T], filled up with `PAD` at their ends, as [B, T, D]; rows of padding mean nothing.

        Raises:
            UserError: if T is more than there are positions for.
        """
        if ids.shape[1] > self.max_tokens:
            raise UserError(f"texts of {ids.shape[1]} tokens: this text tower has positions for {self.max_tokens}")
        is_token = ids != PAD
        places = is_token.astype("int64").cumsum(axis=1) * is_token.astype("int64") + PAD  # from 2; padding: 1
        tokens = self.token_embedding(ids) + self.position_embedding(places)
        tokens = self.dropout(self.embedding_norm(tokens))
        mask = None
        # On CPU texts of one length go faster without; elsewhere looking at them would wait for the device.
        if paddle.device.get_device() != "cpu" or not bool(is_token.all()):
            mask = ((1.0 - is_token.astype("float32")) * _MASKED).unsqueeze([1, 2])  # [B, 1, 1, T]
        for layer in self.layers:
            if self.recompute and self.training and not self.token_embedding.weight.stop_gradient:
                tokens = fleet.utils.recompute(layer, tokens, mask)
            else:
                tokens = layer(tokens, mask)
        return tokens

    def forward(self, ids: paddle.Tensor) -> paddle.Tensor:
        """Encode texts as vectors [B, D]: what the first token of each became."""
        return self.forward_tokens(ids)[:, 0]

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay leaves alone, besides biases and norms."""
        return {"token_embedding.weight", "position_embedding.weight"}
