"""Vision Transformer (arXiv 2010.11929), as MAE uses it, and its classifier.

    from transformer import build_transformer as build_model
    model = build_model(config)
    logits = model(images)

Attribute names are PaddleViT's, because they are the keys of its weight files.

Shapes: B images, C channels, H x W pixels, P patch side, N patches, T = 1 + N tokens, D width, A heads.
"""

import math
import re
from collections.abc import Collection, Iterator

import paddle
from paddle import nn
from paddle.distributed import fleet

from config import image_size_hw, network_of
from errors import UserError
from layers import kernels
from layers.attention import Attention, PositionBias
from layers.basic import DropPath, LayerNorm, Linear, Mlp, ProbeNorm
from layers.pos_embed import sincos_table


class PatchEmbedding(nn.Layer):
    """Cut images into patches and project each to D: a convolution with stride = kernel, as one matmul.

    Args:
        image_hw: image height and width in pixels, multiples of `patch_size`.
        patch_size: P in pixels.
        in_channels: C.
        embed_dim: D.
    """

    def __init__(self, image_hw: tuple[int, int], patch_size: int, in_channels: int, embed_dim: int):
        super().__init__()
        self.image_hw = tuple(image_hw)
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.grid_hw = (image_hw[0] // patch_size, image_hw[1] // patch_size)
        self.num_patches = self.grid_hw[0] * self.grid_hw[1]
        # The convolution only holds the weight [D, C, P, P] under the name that weight files use.
        self.patch_embedding = nn.Conv2D(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        init_like_torch_conv(self.patch_embedding)

    def split(self, images: paddle.Tensor) -> paddle.Tensor:
        """Cut images [B, C, H, W] into patches [B, N, C*P*P], pixels in the weight's (channel, row, column) order."""
        if tuple(images.shape[1:]) != (self.in_channels, *self.image_hw):
            raise ValueError(
                f"expected images of shape [B, {self.in_channels}, {self.image_hw[0]}, "
                f"{self.image_hw[1]}], got {list(images.shape)}"
            )
        (rows, columns), side = self.grid_hw, self.patch_size
        patches = images.reshape([-1, self.in_channels, rows, side, columns, side])
        patches = patches.transpose([0, 2, 4, 1, 3, 5])  # [B, rows, columns, C, P, P]
        return patches.reshape([-1, self.num_patches, self.in_channels * side * side])

    def project(self, patches: paddle.Tensor) -> paddle.Tensor:
        """Project patches [..., C*P*P] to tokens [..., D]."""
        weight = self.patch_embedding.weight
        return kernels.linear(patches, weight.reshape([weight.shape[0], -1]).t(), self.patch_embedding.bias)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Embed images [B, C, H, W] as tokens [B, N, D]."""
        return self.project(self.split(images))


class TransformerLayer(nn.Layer):
    """Pre-norm block: attention, then MLP, each behind a residual connection.

    Args:
        layer_scale: first value of a learned factor of each branch and channel (arXiv 2103.17239); None: no factors.
        bias_grid_hw: see `Attention`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        bias_grid_hw: tuple[int, int] | None = None,
    ):
        super().__init__()
        self.attn_norm = LayerNorm(embed_dim)
        self.attn = Attention(embed_dim, num_heads, qkv_bias, dropout, attention_dropout, bias_grid_hw)
        self.mlp_norm = LayerNorm(embed_dim)
        self.mlp = Mlp(embed_dim, mlp_ratio, dropout)
        self.drop_path = DropPath(drop_path)
        self.has_scale = layer_scale is not None
        if self.has_scale:
            start = nn.initializer.Constant(layer_scale)
            self.gamma_1, self.gamma_2 = (self.create_parameter([embed_dim], default_initializer=start) for _ in "12")

    def forward(self, tokens: paddle.Tensor, bias: paddle.Tensor | None = None, return_logits: bool = False):
        """Transform tokens [B, T, D]; see `Attention.forward` for the other arguments."""
        mixed = self.attn(self.attn_norm(tokens), bias, return_logits)
        mixed, logits = mixed if return_logits else (mixed, None)
        tokens = tokens + self.drop_path(mixed * self.gamma_1 if self.has_scale else mixed)
        changed = self.mlp(self.mlp_norm(tokens))
        tokens = tokens + self.drop_path(changed * self.gamma_2 if self.has_scale else changed)
        return (tokens, logits) if return_logits else tokens


class Transformer(nn.Layer):
    """A stack of layers, whose drop path grows linearly from 0 to `drop_path`, and a norm unless `final_norm=False`.

    With `recompute`, training keeps the input of each layer only, and computes the rest again in the backward pass.

    Args:
        position_bias: True: each layer has position biases of its own; "shared": one set for all.
        grid_hw: of the patches; needed for position biases.
    """

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        drop_path: float = 0.0,
        final_norm: bool = True,
        recompute: bool = False,
        position_bias: bool | str = False,
        grid_hw: tuple[int, int] | None = None,
        **layer_options,
    ):
        super().__init__()
        self.recompute = recompute
        self.position_bias = PositionBias(grid_hw, num_heads) if position_bias == "shared" else None
        layer_options["bias_grid_hw"] = grid_hw if position_bias is True else None
        rates = [drop_path * index / max(depth - 1, 1) for index in range(depth)]
        self.layers = nn.LayerList(
            [TransformerLayer(embed_dim, num_heads, drop_path=rate, **layer_options) for rate in rates]
        )
        self.norm = LayerNorm(embed_dim) if final_norm else None

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
        layer = self.layers[index]
        if return_logits:
            return layer(tokens, bias, return_logits=True)
        if self.recompute and layer.training and any(not p.stop_gradient for p in layer.parameters()):
            if tokens.stop_gradient:  # Paddle would compute no gradients at all, not even of the layer's parameters
                tokens = tokens.detach()
                tokens.stop_gradient = False
            return fleet.utils.recompute(layer, tokens, bias), None
        return layer(tokens, bias), None

    def walk(
        self, tokens: paddle.Tensor, return_logits: bool = False
    ) -> Iterator[tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor | None]]:
        """Yield input and output of each layer, [B, T, D], and its attention scores if wanted, one layer at a time.

        Scores of all layers together can be larger than the memory.
        """
        bias = None if self.position_bias is None else self.position_bias()
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
        image_hw: image height and width in pixels.
        patch_size: P in pixels.
        in_channels: C.
        num_classes: outputs of the classifier; 0: none, the model returns the features.
        embed_dim, depth, num_heads: size of the encoder.
        global_pool: classify the normalised mean of the patch tokens, not the class token.
        pool_after_norm: classify the mean of the normalised patch tokens.
        distill_head: a second classifier reads the normalised class token, and learns from a teacher (DeiT, arXiv
            2012.12877; here the first one reads the patches). Needs `global_pool`.
        batch_norm_head: put a batch norm without affine parameters before the classifier (linear probe).
        drop_path: rate of the last layer.
        layer_options: `mlp_ratio`, `qkv_bias`, `dropout`, `attention_dropout` of each layer, `recompute`.
    """

    def __init__(
        self,
        image_hw: tuple[int, int] = (224, 224),
        patch_size: int = 16,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        global_pool: bool = False,
        pool_after_norm: bool = False,
        distill_head: bool = False,
        batch_norm_head: bool = False,
        drop_path: float = 0.0,
        **layer_options,
    ):
        super().__init__()
        self.pool_after_norm = pool_after_norm
        self.patch_embedding = PatchEmbedding(image_hw, patch_size, in_channels, embed_dim)
        self.cls_token = self.create_parameter([1, 1, embed_dim], default_initializer=nn.initializer.Normal(std=0.02))
        self.encoder_position_embedding = self.create_parameter(
            [1, 1 + self.patch_embedding.num_patches, embed_dim],
            default_initializer=nn.initializer.Assign(sincos_table(embed_dim, self.patch_embedding.grid_hw)),
        )
        self.token_dropout = nn.Dropout(layer_options.get("dropout", 0.0))
        layer_options["grid_hw"] = self.patch_embedding.grid_hw
        self.encoder = Transformer(embed_dim, depth, num_heads, drop_path, final_norm=not global_pool, **layer_options)
        self.encoder_norm = LayerNorm(embed_dim) if global_pool else None
        if num_classes == 0:
            self.classifier = nn.Identity()
        elif batch_norm_head:
            self.classifier = nn.Sequential(ProbeNorm(embed_dim), Linear(embed_dim, num_classes))
        else:
            self.classifier = Linear(embed_dim, num_classes)
        self.distill_norm = LayerNorm(embed_dim) if distill_head and num_classes else None
        self.distill_classifier = Linear(embed_dim, num_classes) if distill_head and num_classes else None
        for layer in self.sublayers():
            if isinstance(layer, nn.Linear):
                init_linear(layer, nn.initializer.Normal(std=0.02))

    @property
    def head(self) -> nn.Linear:
        """The linear layer that gives the logits."""
        return self.classifier[1] if isinstance(self.classifier, nn.Sequential) else self.classifier

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay leaves alone, besides biases and norms (official finetuning)."""
        return {"cls_token", "encoder_position_embedding"}

    def layer_of(self, name: str) -> int:
        """Return the layer of a parameter, see `layer_of`."""
        return layer_of(name, len(self.encoder.layers))

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
        if self.encoder_norm is not None:
            return self.encoder_norm(tokens[:, 1:].mean(axis=1))
        return self.pool(tokens)

    def pool(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """Reduce normalised tokens [B, T, D] to what the classifier reads, [B, D]; not for global pooling."""
        return tokens[:, 1:].mean(axis=1) if self.pool_after_norm else tokens[:, 0]

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


def layer_of(name: str, depth: int) -> int:
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
    """Draw a linear layer's weight anew, and set its bias to zero."""
    weight_init(layer.weight)
    if layer.bias is not None:
        nn.initializer.Constant(0.0)(layer.bias)


def init_like_torch_conv(conv: nn.Conv2D) -> None:
    """Draw weight and bias uniformly within 1 / sqrt(fan_in), torch's default for a convolution."""
    bound = 1.0 / math.sqrt(math.prod(conv.weight.shape[1:]))
    for parameter in (conv.weight, conv.bias):
        nn.initializer.Uniform(-bound, bound)(parameter)


def encoder_options(config) -> dict:
    """Return a configuration's settings of images, patches and encoder, as arguments of a model."""
    model = config.MODEL
    return {
        "image_hw": image_size_hw(config),
        "patch_size": model.PATCH_SIZE,
        "in_channels": config.DATA.IMAGE_CHANNELS,
        "embed_dim": model.ENCODER.EMBED_DIM,
        "depth": model.ENCODER.DEPTH,
        "num_heads": model.ENCODER.NUM_HEADS,
        "drop_path": model.DROPPATH,
        "mlp_ratio": model.MLP_RATIO,
        "qkv_bias": model.QKV_BIAS,
        "dropout": model.DROPOUT,
        "attention_dropout": model.ATTENTION_DROPOUT,
        "recompute": config.TRAIN.RECOMPUTE,
    }


def build_transformer(config) -> VisionTransformer:
    """Build the classifier that a config describes; a method whose network is a probe gets the batch-norm head."""
    if config.MODEL.NUM_CLASSES is None:
        raise UserError("MODEL.NUM_CLASSES=None: follows the data in runs only; set it to a number")
    return VisionTransformer(
        num_classes=config.MODEL.NUM_CLASSES,
        position_bias=config.MODEL.ENCODER.RELATIVE_POSITION_BIAS,
        layer_scale=config.MODEL.ENCODER.LAYER_SCALE,
        global_pool=config.MODEL.GLOBAL_POOL,
        pool_after_norm=config.MODEL.POOL_AFTER_NORM,
        distill_head=config.MODEL.DISTILL_HEAD,
        batch_norm_head=network_of(config) == "probe",
        **encoder_options(config),
    )
