"""Vision Transformer (arXiv 2010.11929), as MAE uses it, and its classifier.

    from transformer import build_transformer as build_model
    model = build_model(config)
    logits = model(images)

Attribute names are PaddleViT's, because they are the keys of its weight files.

Shapes: B images, C channels, H x W pixels, P patch side, N patches, T = 1 + N tokens, D width, A heads.
"""

import re
from collections.abc import Collection, Iterator

import paddle
from paddle import nn

from config import network_kind
from errors import UserError
from layers import kernels, recompute
from layers.attention import Attention, PositionBias
from layers.basic import DropPath, LayerNorm, Linear, Mlp, ProbeNorm
from layers.patch_embedding import build_patch_embedding
from layers.poolers import build_pooler
from layers.pos_embed import position_table
from storage.architecture import CLASSIFIERS, Architecture, Tower, of_config


class TransformerLayer(nn.Layer):
    """Pre-norm block: attention, then MLP, each behind a residual connection.

    Args:
        tower: width, depth and heads of the stack.
        architecture: `layer_scale` is the first value of a learned factor of each branch and channel (arXiv 2103.17239;
            None: no factors), `position_bias` True gives the block its own biases; of a decoder it has neither.
        dropout, attention_dropout, drop_path: rates while training.
    """

    def __init__(
        self,
        tower: Tower,
        architecture: Architecture,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        width, bias_grid_hw = tower.width, architecture.grid_hw if architecture.position_bias is True else None
        self.attn_norm = LayerNorm(width, architecture.norm_eps)
        self.attn = Attention(width, tower.heads, architecture.qkv_bias, dropout, attention_dropout, bias_grid_hw)
        self.mlp_norm = LayerNorm(width, architecture.norm_eps)
        self.mlp = Mlp(width, architecture.mlp_ratio, dropout)
        self.drop_path = DropPath(drop_path)
        self.has_scale = architecture.layer_scale is not None
        if self.has_scale:
            start = nn.initializer.Constant(architecture.layer_scale)
            self.gamma_1, self.gamma_2 = (self.create_parameter([width], default_initializer=start) for _ in "12")

    def forward(self, tokens: paddle.Tensor, bias: paddle.Tensor | None = None, return_logits: bool = False):
        """Transform tokens [B, T, D]; see `Attention.forward` for the other arguments."""
        mixed = self.attn(self.attn_norm(tokens), bias, return_logits)
        mixed, logits = mixed if return_logits else (mixed, None)
        tokens = tokens + self.drop_path(mixed * self.gamma_1.astype(mixed.dtype) if self.has_scale else mixed)
        changed = self.mlp(self.mlp_norm(tokens))
        tokens = tokens + self.drop_path(changed * self.gamma_2.astype(changed.dtype) if self.has_scale else changed)
        return (tokens, logits) if return_logits else tokens


class Transformer(nn.Layer):
    """A stack of layers, whose drop path grows linearly from 0 to `drop_path`, and a norm unless `final_norm=False`.

    Args:
        tower: width, depth and heads.
        architecture: of the model, see `TransformerLayer`; `position_bias` "shared" gives all layers one set of biases.
        recompute: training keeps the input of each layer only, and computes the rest again in the backward pass.
        rates: `dropout` and `attention_dropout` of each layer.
    """

    def __init__(
        self,
        tower: Tower,
        architecture: Architecture,
        drop_path: float = 0.0,
        final_norm: bool = True,
        recompute: bool = False,
        **rates: float,
    ):
        super().__init__()
        self.recompute = recompute
        is_shared = architecture.position_bias == "shared"
        self.position_bias = PositionBias(architecture.grid_hw, tower.heads) if is_shared else None
        drop_paths = [drop_path * index / max(tower.depth - 1, 1) for index in range(tower.depth)]
        self.layers = nn.LayerList(
            [TransformerLayer(tower, architecture, drop_path=rate, **rates) for rate in drop_paths]
        )
        self.norm = LayerNorm(tower.width, architecture.norm_eps) if final_norm else None

    def forward(
        self,
        tokens: paddle.Tensor,
        logits_of: Collection[int] = (),
        bias: paddle.Tensor | None = None,
        first: int = 0,
        end: int | None = None,
    ) -> paddle.Tensor | tuple[paddle.Tensor, dict[int, paddle.Tensor]]:
        """Transform tokens [B, T, D] by the layers `first` to `end` (not included); the norm follows the last one only.

        Args:
            logits_of: indices of layers, from 0, whose attention scores are wanted.
            bias: added to the scores of every layer, see `Attention.forward`.

        Returns:
            [B, T, D]; with `logits_of` also {index: scores before the softmax [B, A, T, T]}.
        """
        found, end = {}, len(self.layers) if end is None else end
        if self.position_bias is not None:
            bias = self.position_bias(bias)
        for index in range(first, end):
            tokens, logits = self.run_layer(index, tokens, bias, index in logits_of)
            if logits is not None:
                found[index] = logits
        if self.norm is not None and end == len(self.layers):
            tokens = self.norm(tokens)
        return (tokens, found) if logits_of else tokens

    def run_layer(
        self, index: int, tokens: paddle.Tensor, bias: paddle.Tensor | None = None, return_logits: bool = False
    ) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """Transform tokens [B, T, D] by one layer; the scores [B, A, T, T] are None unless they are wanted."""
        layer, tokens = self.layers[index], kernels.to_residual(tokens)
        if return_logits:
            return layer(tokens, bias, return_logits=True)
        return recompute.run(layer, self.recompute, tokens, bias), None

    def walk(
        self, tokens: paddle.Tensor, return_logits: bool = False
    ) -> Iterator[tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor | None]]:
        """Yield input and output of each layer, [B, T, D], and its attention scores if wanted, one layer at a time.

        Scores of all layers together can be larger than the memory.
        """
        bias = None if self.position_bias is None else self.position_bias()
        tokens = kernels.to_residual(tokens)
        for layer in self.layers:
            outputs = layer(tokens, bias, return_logits)
            outputs, logits = outputs if return_logits else (outputs, None)
            yield tokens, outputs, logits
            tokens = outputs


class VisionTransformer(nn.Layer):
    """Image classifier for finetuning, linear probing and evaluation.

    Initialisation follows the official code: normal(0.02) for linear weights and the class token, zero
    biases, framework default of torch for the patch projection. Differs from the official code: the
    position table starts as the sine-cosine table, not as noise; it matters without pretrained weights only.

    Args:
        architecture: of the model, without a decoder. `global_pool` classifies the normalised mean of the patch tokens,
            `pool_after_norm` the mean of the normalised ones, else the class token is read. `distill_head` adds a
            second classifier of the normalised class token, which learns from a teacher (DeiT, arXiv 2012.12877; here
            the first one reads the patches); it needs `global_pool`.
        drop_path: rate of the last layer.
        options: `dropout` and `attention_dropout` of each layer, `recompute`.
    """

    def __init__(self, architecture: Architecture, drop_path: float = 0.0, **options):
        super().__init__()
        self.architecture = architecture
        width, num_classes = architecture.encoder.width, architecture.num_classes
        self.patch_embedding = build_patch_embedding(architecture)
        self.cls_token = self.create_parameter([1, 1, width], default_initializer=nn.initializer.Normal(std=0.02))
        self.encoder_position_embedding = self.create_parameter(
            [1, 1 + self.patch_embedding.num_patches, width],
            default_initializer=nn.initializer.Assign(
                position_table(width, architecture.grid_hw, len(architecture.channel_groups))
            ),
        )
        self.token_dropout = nn.Dropout(options.get("dropout", 0.0))
        self.encoder = Transformer(architecture.encoder, architecture, drop_path, architecture.has_last_norm, **options)
        self.encoder_norm = LayerNorm(width, architecture.norm_eps) if architecture.global_pool else None
        if num_classes == 0:
            self.classifier = nn.Identity()
        elif architecture.probe:
            head_width = architecture.head_width
            self.classifier = nn.Sequential(ProbeNorm(head_width), Linear(head_width, num_classes))
        else:
            self.classifier = Linear(width, num_classes)
        has_second = architecture.distill_head and num_classes > 0
        self.distill_norm = LayerNorm(width, architecture.norm_eps) if has_second else None
        self.distill_classifier = Linear(width, num_classes) if has_second else None
        for layer in self.sublayers():
            if isinstance(layer, nn.Linear):
                init_linear(layer, nn.initializer.Normal(std=0.02))
        self.pooler = None if architecture.pooler is None else build_pooler(architecture)  # draws its own weights

    @property
    def head(self) -> nn.Linear:
        """The linear layer that gives the logits."""
        return self.classifier[1] if isinstance(self.classifier, nn.Sequential) else self.classifier

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay leaves alone, besides biases and norms (official finetuning)."""
        return {"cls_token", "encoder_position_embedding"}

    def layer_index(self, name: str) -> int:
        """Return the layer of a parameter, see `layer_index`."""
        return layer_index(name, len(self.encoder.layers))

    def embed(self, images: paddle.Tensor) -> paddle.Tensor:
        """Turn images [B, C, H, W] into the encoder's input: class token first, then patches, [B, T, D]."""
        tokens = self.patch_embedding(images)  # [B, N, D]
        cls_token = self.cls_token.expand([tokens.shape[0], -1, -1]).astype(tokens.dtype)
        tokens = paddle.concat([cls_token, tokens], axis=1) + self.encoder_position_embedding  # [B, T, D]
        return self.token_dropout(tokens)

    def forward_tokens(self, images: paddle.Tensor) -> paddle.Tensor:
        """Encode images [B, C, H, W]: class token first, then patches, [B, T, D]; normalised unless global-pooled."""
        return self.encoder(self.embed(images))

    def forward_features(self, images: paddle.Tensor) -> paddle.Tensor:
        """Encode images [B, C, H, W] as the vector that the classifier reads, [B, D]."""
        tokens = self.forward_tokens(images)
        if self.pooler is not None:
            return self.pooler(self.pooled_tokens(tokens))
        if self.encoder_norm is not None:
            return self.encoder_norm(tokens[:, 1:].mean(axis=1))
        return self.pool(tokens)

    def pooled_tokens(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """Return the tokens [B, N or T, D] that the attentive pooler reads, of `forward_tokens`'s."""
        return tokens if self.architecture.pooler_tokens == "all" else tokens[:, 1:]

    def pool(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """Reduce normalised tokens [B, T, D] to what the classifier reads, [B, D]; not for global pooling."""
        return tokens[:, 1:].mean(axis=1) if self.architecture.pool_after_norm else tokens[:, 0]

    def forward(self, images: paddle.Tensor) -> paddle.Tensor | tuple[paddle.Tensor, paddle.Tensor]:
        """Classify images [B, C, H, W].

        Returns:
            logits [B, num_classes]. With a second classifier: while training, the logits of both; else their mean.
        """
        if self.distill_classifier is None:
            return self.classifier(self.forward_features(images))
        tokens = self.forward_tokens(images)
        logits = self.classifier(self.encoder_norm(tokens[:, 1:].mean(axis=1)))
        distilled = self.distill_classifier(self.distill_norm(tokens[:, 0]))
        return (logits, distilled) if self.training else (logits + distilled) / 2


def layer_index(name: str, depth: int) -> int:
    """Number the layers for layer-wise decay: 0 for embeddings, i + 1 for block i, depth + 1 for what follows.

    Args:
        name: structured name of a parameter of a model with an `encoder`.
        depth: blocks of the encoder.
    """
    if name in ("cls_token", "encoder_position_embedding") or name.startswith("patch_embedding."):
        return 0
    block = re.match(r"encoder\.layers\.(\d+)\.", name)
    return int(block.group(1)) + 1 if block else depth + 1


def init_linear(layer: nn.Linear, weight_init: nn.initializer.Initializer) -> None:
    """Initialise a linear layer's weight again, and set its bias to zero."""
    weight_init(layer.weight)
    if layer.bias is not None:
        nn.initializer.Constant(0.0)(layer.bias)


def regularisation(config) -> dict[str, object]:
    """Return a configuration's settings of a model that are not part of its architecture, as arguments."""
    model = config.MODEL
    return {
        "drop_path": model.DROPPATH,
        "dropout": model.DROPOUT,
        "attention_dropout": model.ATTENTION_DROPOUT,
        "recompute": config.TRAIN.RECOMPUTE,
    }


def build_transformer(config) -> VisionTransformer:
    """Build the classifier that a config describes; a method whose network is a probe gets the batch-norm head."""
    if config.MODEL.NUM_CLASSES is None:
        raise UserError("MODEL.NUM_CLASSES=None: follows the data in runs only; set it to a number")
    network = network_kind(config)
    kind = network if network in CLASSIFIERS else "classifier"  # from Python, an encoder may get a head
    return VisionTransformer(of_config(config, kind), **regularisation(config))
