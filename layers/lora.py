"""Low-rank adapters of the attention's projections (LoRA, arXiv 2106.09685).

Shapes: D width, r rank.
"""

import paddle
from paddle import nn

from layers.attention import Attention


class LowRank(nn.Layer):
    """A sum of matrices of low rank side by side, one for each output of a fused projection.

    They start at zero: the first factor is drawn as torch draws a linear layer's weight, the second is zero.

    Args:
        width: D.
        num_outputs: projections of D to D that share the inputs.
        rank: r of each.
    """

    def __init__(self, width: int, num_outputs: int, rank: int):
        super().__init__()
        bound = width**-0.5
        draw, zero = nn.initializer.Uniform(-bound, bound), nn.initializer.Constant(0.0)
        self.down = self.create_parameter([width, num_outputs * rank], default_initializer=draw)
        self.up = self.create_parameter([num_outputs, rank, width], default_initializer=zero)

    def forward(self, inputs: paddle.Tensor) -> paddle.Tensor:
        """Return what is added to the projection of inputs [B, T, D]: [B, T, num_outputs * D]."""
        narrow = paddle.matmul(inputs, self.down).split(self.up.shape[0], axis=-1)  # [B, T, r] each
        return paddle.concat([paddle.matmul(part, self.up[i]) for i, part in enumerate(narrow)], axis=-1)

    def weight(self) -> paddle.Tensor:
        """Return the matrix that is added to the projection's weight, [D, num_outputs * D]."""
        narrow = self.down.split(self.up.shape[0], axis=1)
        return paddle.concat([paddle.matmul(part, self.up[i]) for i, part in enumerate(narrow)], axis=1)


class Adapters(nn.Layer):
    """Adapters of the q, k, v and output projections of some blocks; the blocks call them from now on.

    Args:
        attentions: of the blocks, by the blocks' numbers; their weights stay as they are.
        rank: of each adapter.
    """

    def __init__(self, attentions: dict[int, Attention], rank: int):
        super().__init__()
        self._projections: dict[str, nn.Linear] = {}
        for number, attention in attentions.items():
            for name, layer in (("qkv", attention.qkv), ("out", attention.out)):
                width, outputs = layer.weight.shape
                adapter = LowRank(width, outputs // width, rank)
                self.add_sublayer(f"{number}_{name}", adapter)
                self._projections[f"encoder.layers.{number}.attn.{name}.weight"] = layer
                layer.register_forward_post_hook(
                    lambda layer, inputs, output, adapter=adapter: output + adapter(inputs[0]).astype(output.dtype)
                )

    @paddle.no_grad()
    def merged(self) -> dict[str, paddle.Tensor]:
        """Return the weights of the projections with the adapters in them, by their names in a classifier."""
        pairs = zip(self._projections.items(), self.children(), strict=True)
        return {name: layer.weight + adapter.weight() for (name, layer), adapter in pairs}
