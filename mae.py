"""Masked autoencoder (arXiv 2111.06377): masking, decoder and pixel loss.

    from mae import build_mae_pretrain
    loss, pred, mask = build_mae_pretrain(config)(images)

Attribute names are PaddleViT's, because they are the keys of its weight files.

Shapes: B images, C channels, H x W pixels, P patch side, N patches, K patches kept, M patches predicted while
training, D encoder width, E decoder width. A mask is always 1 = hidden.
"""

import functools
import math
from collections.abc import Sequence

import paddle
from paddle import nn
from paddle.autograd import PyLayer

from errors import UserError
from layers import kernels
from layers.cross_decoder import CrossDecoder
from layers.patch_counts import num_predicted, num_visible
from layers.pos_embed import sincos_table
from storage.architecture import SELF, Architecture, of_config
from transformer import Linear, PatchEmbedding, Transformer, init_linear, layer_index, regularisation

_NORM_PIX_EPS = 1e-6


class MAEPretrain(nn.Layer):
    """Encoder on the visible patches, light decoder on all of them, mean squared error on the hidden ones.

    Two options make the decoder cheaper: a cross decoder (`Architecture.decoder_kind`), which has no predictions for
    visible patches, and `predict_ratio`, with which training predicts the hidden patches of the highest noise only.

    Differs from the official code: non-square images and any channel count work; the number of kept
    patches does not suffer from floating point (100 patches at 0.9 keep 10, not 9).

    Args:
        architecture: of the model, with a decoder. `norm_pix_loss` (None: True) reconstructs pixels normalised per
            patch (Sec. 3 "Reconstruction target"); the decoder reads the output of the encoder's layer `decode_layer`,
            from 1 (None: the last one).
        mask_ratio: share of the patches that is hidden.
        predict_ratio: share of all patches that is predicted while training; None: of all that are hidden.
        drop_path: rate of the encoder's last layer; 0 in the paper.
        options: `dropout` and `attention_dropout` of each layer, `recompute`.
    """

    def __init__(
        self,
        architecture: Architecture,
        mask_ratio: float = 0.75,
        drop_path: float = 0.0,
        predict_ratio: float | None = None,
        **options,
    ):
        super().__init__()
        encoder, decoder, grid_hw = architecture.encoder, architecture.decoder, architecture.grid_hw
        self.architecture, self.mask_ratio, self.predict_ratio = architecture, mask_ratio, predict_ratio
        self.is_cross = architecture.decoder_kind != SELF
        self.norm_pix_loss = architecture.norm_pix_loss is not False
        self.decode_layer = architecture.decode_layer or encoder.depth
        token_init = nn.initializer.Normal(std=0.02)

        self.patch_embedding = PatchEmbedding(architecture)
        self.cls_token = self.create_parameter([1, 1, encoder.width], default_initializer=token_init)
        self.register_buffer("encoder_position_embedding", paddle.to_tensor(sincos_table(encoder.width, grid_hw)))
        self.encoder = Transformer(encoder, architecture, drop_path, architecture.has_last_norm, **options)

        self.linear_projection = None if self.is_cross else Linear(encoder.width, decoder.width)
        self.mask_token = self.create_parameter([1, 1, decoder.width], default_initializer=token_init)
        self.register_buffer("decoder_position_embedding", paddle.to_tensor(sincos_table(decoder.width, grid_hw)))
        build = CrossDecoder if self.is_cross else functools.partial(Transformer, decoder)
        self.decoder = build(architecture, **options)
        self.decoder_pred = Linear(decoder.width, architecture.patch_px**2 * architecture.channels)
        self._last: dict[str, object] = {}  # a tensor of its own would become a buffer
        self._tables: dict[tuple[int, int], tuple[paddle.Tensor, paddle.Tensor]] = {}  # by grid
        self._init_weights()

    def use_stage(self, grid_hw: tuple[int, int], mask_ratio: float) -> None:
        """Take images of another size, and hide another share of their patches, from now on."""
        self.mask_ratio = mask_ratio
        self.patch_embedding.use_grid(grid_hw)
        if grid_hw != self.architecture.grid_hw and grid_hw not in self._tables:
            widths = (self.architecture.encoder.width, self.architecture.decoder.width)
            tables = (sincos_table(width, grid_hw, self.architecture.grid_hw) for width in widths)
            self._tables[grid_hw] = tuple(map(paddle.to_tensor, tables))

    def tables(self) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Return the position tables of encoder and decoder, [1, 1 + N, D] and [1, 1 + N, E]."""
        own = (self.encoder_position_embedding, self.decoder_position_embedding)
        return self._tables.get(self.patch_embedding.grid_hw, own)

    def _init_weights(self) -> None:
        for layer in self.sublayers():
            if isinstance(layer, nn.Linear):
                init_linear(layer, nn.initializer.XavierUniform())
        weight = self.patch_embedding.patch_embedding.weight  # as a linear layer: its conv fans would be wrong
        nn.initializer.XavierUniform(fan_in=math.prod(weight.shape[1:]), fan_out=weight.shape[0])(weight)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay leaves alone, besides biases and norms: none (official code)."""
        return set()

    def layer_index(self, name: str) -> int:
        """Return the layer of a parameter, see `transformer.layer_index`; the decoder is in the last one."""
        return layer_index(name, len(self.encoder.layers))

    def encode(self, images: paddle.Tensor, shuffle: paddle.Tensor) -> paddle.Tensor | list[paddle.Tensor]:
        """Encode the visible patches only.

        Args:
            images: [B, C, H, W].
            shuffle: [B, K] indices of the patches to keep.

        Returns:
            latent: [B, 1 + K, D], class token first, patches in the order of `shuffle`; with sources of the decoder,
                a list of them.
        """
        if self.architecture.decoder_sources:
            return self._outputs(embed_visible(self, images, shuffle, self.tables()[0]))
        latent = self.encoder(embed_visible(self, images, shuffle, self.tables()[0]), end=self.decode_layer)
        # In decoupled distillation, the decoder reads a lower block, and the last one only gives scores.
        is_lower = self.decode_layer < len(self.encoder.layers)
        return self.encoder.norm(latent) if is_lower else latent

    def _outputs(self, tokens: paddle.Tensor) -> list[paddle.Tensor]:
        """Return the outputs of the blocks that the decoder reads, [B, 1 + K, D] each; 0 is the encoder's input."""
        outputs = [kernels.to_residual(tokens)]
        for index in range(len(self.encoder.layers)):
            outputs.append(self.encoder.run_layer(index, outputs[-1])[0])
        return [outputs[source] for source in self.architecture.decoder_sources]

    def decode(self, latent: paddle.Tensor, restore: paddle.Tensor) -> paddle.Tensor:
        """Predict the pixels of every patch; of the ordinary decoder.

        Args:
            latent: [B, 1 + K, D] from `encode`.
            restore: [B, N] from `random_masking`.

        Returns:
            pred: [B, N, P*P*C], pixels in (row, column, channel) order.
        """
        tokens = self.linear_projection(latent)  # [B, 1 + K, E]
        batch, num_tokens, dim = tokens.shape
        num_hidden = max(1, restore.shape[1] + 1 - num_tokens)  # Paddle 2.6 cannot expand to none; one is never read
        hidden = self.mask_token.astype(tokens.dtype).expand([batch, num_hidden, dim])
        patches = permute_tokens(paddle.concat([tokens[:, 1:], hidden], axis=1), restore)  # [B, N, E]
        tokens = paddle.concat([tokens[:, :1], patches], axis=1) + self.tables()[1]
        return self.decoder_pred(self.decoder(tokens))[:, 1:]

    def decode_some(
        self, latent: paddle.Tensor | Sequence[paddle.Tensor], shuffle: paddle.Tensor, predicted: paddle.Tensor
    ) -> paddle.Tensor:
        """Predict the pixels of some hidden patches; the others cost nothing.

        Args:
            latent: from `encode`.
            shuffle: [B, K], from `random_masking`.
            predicted: [B, M] indices of patches.

        Returns:
            [B, M, P*P*C] in the order of `predicted`.
        """
        table = self.tables()[1]
        queries = self.mask_token + _rows(table, predicted)  # [B, M, E]
        if self.is_cross:
            outputs = latent if self.architecture.decoder_sources else [latent]
            return self.decoder_pred(self.decoder(queries, outputs))
        visible = self.linear_projection(latent)  # [B, 1 + K, E]
        visible = visible + paddle.concat([table[:, :1].expand([len(shuffle), -1, -1]), _rows(table, shuffle)], axis=1)
        tokens = paddle.concat([visible, queries.astype(visible.dtype)], axis=1)
        return self.decoder_pred(self.decoder(tokens)[:, visible.shape[1] :])

    def forward(
        self,
        images: paddle.Tensor,
        mask_ratio: float | None = None,
        noise: paddle.Tensor | None = None,
        mask: paddle.Tensor | None = None,
        predict_ratio: float | None = None,
    ):
        """Hide patches, reconstruct them, and measure the error on them.

        Args:
            images: [B, C, H, W], normalised.
            mask_ratio: instead of the model's own.
            noise: [B, N]; the K smallest of each row stay visible. Drawn uniformly if None.
            mask: [B, N], 1 = hidden, the same number in each row; takes the place of ratio and noise.
            predict_ratio: share of all patches that is predicted: those of the highest noise. None: the model's own
                while training, else all that are hidden.

        Returns:
            loss: scalar, float32.
            pred: [B, N, P*P*C]; zeros where nothing is predicted.
            mask: [B, N] float32.
        """
        hidden_ratio, is_given = self.mask_ratio if mask_ratio is None else mask_ratio, mask is not None
        shuffle, restore, mask = self.choose_patches(images.shape[0], mask_ratio, noise, mask)
        if is_given:  # by its number of patches, as a mean of float32 is not exact
            hidden_ratio = 1 - shuffle.shape[1] / self.patch_embedding.num_patches
        ratio = self.predict_ratio if predict_ratio is None and self.training else predict_ratio
        num_hidden, count = (num_predicted(self.patch_embedding.num_patches, hidden_ratio, p) for p in (None, ratio))
        self._last = {"restore": restore, "count": count}
        latent = self.encode(images, shuffle)
        if count < num_hidden or self.is_cross:
            return *self._predict_some(images, latent, shuffle, restore, count), mask
        pred = self.decode(latent, restore)
        return self.loss(images, pred, mask), pred, mask

    @property
    def predicted(self) -> paddle.Tensor:
        """Patches that the last call of `forward` predicted, [B, N] bool; a static graph does not record them."""
        restore = self._last["restore"]
        return restore >= restore.shape[1] - self._last["count"]

    def _predict_some(
        self, images: paddle.Tensor, latent, shuffle: paddle.Tensor, restore: paddle.Tensor, count: int
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Return loss and predictions of the `count` patches with the highest noise; of none, zeros."""
        target = patchify(images.astype("float32"), self.patch_embedding.patch_size)  # [B, N, P*P*C]
        if count == 0:
            return paddle.zeros([]), paddle.zeros_like(target)
        predicted = restore.argsort(axis=1)[:, self.patch_embedding.num_patches - count :]
        some = self.decode_some(latent, shuffle, predicted)  # [B, M, P*P*C]
        loss = self._errors(gather_tokens(target, predicted), some).mean()
        return loss, _put_back(some.astype("float32"), restore)

    def choose_patches(
        self,
        batch: int,
        mask_ratio: float | None = None,
        noise: paddle.Tensor | None = None,
        mask: paddle.Tensor | None = None,
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Choose the visible patches of `batch` images; arguments as in `forward`, results as of `random_masking`."""
        if mask is not None:
            return random_masking(*noise_from_mask(mask))
        num_patches = self.patch_embedding.num_patches
        num_kept = num_visible(num_patches, self.mask_ratio if mask_ratio is None else mask_ratio)
        return random_masking(paddle.rand([batch, num_patches]) if noise is None else noise, num_kept)

    def loss(self, images: paddle.Tensor, pred: paddle.Tensor, mask: paddle.Tensor) -> paddle.Tensor:
        """Average the squared error over the pixels of each patch, then over the hidden patches; in float32."""
        errors = self._errors(patchify(images.astype("float32"), self.patch_embedding.patch_size), pred)  # [B, N]
        return (errors * mask).sum() / mask.sum().clip(min=1.0)

    def _errors(self, target: paddle.Tensor, pred: paddle.Tensor) -> paddle.Tensor:
        """Return the mean squared error of each patch, [B, M], of pixels and predictions [B, M, P*P*C]."""
        if self.norm_pix_loss:
            mean, std = patch_statistics(target)
            target = (target - mean) / std
        return (pred.astype("float32") - target).square().mean(axis=-1)


def embed_visible(
    network: nn.Layer, images: paddle.Tensor, shuffle: paddle.Tensor, table: paddle.Tensor | None = None
) -> paddle.Tensor:
    """Turn the visible patches of images into the input of an encoder, class token first.

    Args:
        network: a `MAEPretrain`, or a `VisionTransformer`.
        images: [B, C, H, W].
        shuffle: [B, K] indices of the patches to keep.
        table: positions [1, 1 + N, D], other than the network's own.

    Returns:
        [B, 1 + K, D], patches in the order of `shuffle`.
    """
    patches = gather_tokens(network.patch_embedding.split(images), shuffle)  # [B, K, C*P*P]
    tokens = network.patch_embedding.project(patches)  # [B, K, D]
    table = network.encoder_position_embedding if table is None else table
    tokens = tokens + _rows(table, shuffle)
    cls_token = (network.cls_token + table[:, :1]).expand([tokens.shape[0], -1, -1])
    return paddle.concat([cls_token.astype(tokens.dtype), tokens], axis=1)


def _rows(table: paddle.Tensor, index: paddle.Tensor) -> paddle.Tensor:
    """Return the positions of patches [B, K], as rows [B, K, D] of a table [1, 1 + N, D]."""
    return paddle.gather(table[0, 1:], index.flatten()).reshape([*index.shape, -1])


def _put_back(some: paddle.Tensor, restore: paddle.Tensor) -> paddle.Tensor:
    """Put predictions [B, M, F] of the M patches with the highest noise in their places among N; zeros elsewhere."""
    place = restore - (restore.shape[1] - some.shape[1])
    place = paddle.where(place < 0, paddle.full_like(place, some.shape[1]), place)
    return gather_tokens(paddle.concat([some, paddle.zeros_like(some[:, :1])], axis=1), place)


def random_masking(noise: paddle.Tensor, num_kept: int) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """Choose the patches with the K smallest noise values of each image (Sec. 3 "Masking").

    Returns:
        shuffle: [B, K] indices of the kept patches, in ascending order of noise.
        restore: [B, N]; entry n is the place of patch n in (kept, hidden) order.
        mask: [B, N] float32, 1 = hidden.
    """
    order = noise.argsort(axis=1)  # [B, N]
    restore = order.argsort(axis=1)  # [B, N]
    return order[:, :num_kept], restore, (restore >= num_kept).astype("float32")


def noise_from_mask(mask: paddle.Tensor) -> tuple[paddle.Tensor, int]:
    """Turn a mask [B, N], 1 = hidden, into noise that reproduces it, and the number of patches kept."""
    mask = mask.astype("float32")
    num_patches = mask.shape[1]
    num_hidden = sorted(set(mask.sum(axis=1).astype("int64").tolist()))
    if len(num_hidden) != 1 or num_hidden[0] >= num_patches:
        raise ValueError(
            f"a mask must hide the same number of patches, and not all, in each image; it hides {num_hidden}"
        )
    return mask + paddle.arange(num_patches, dtype="float32") / (2 * num_patches), num_patches - num_hidden[0]


def gather_tokens(tokens: paddle.Tensor, index: paddle.Tensor) -> paddle.Tensor:
    """Pick tokens[b, index[b, k]] from [B, N, D] by [B, K]; one flat gather, whose gradient is cheap."""
    batch, num_tokens, dim = tokens.shape
    flat = (index + paddle.arange(batch, dtype=index.dtype).unsqueeze(1) * num_tokens).flatten()  # [B*K]
    return paddle.gather(tokens.reshape([-1, dim]), flat).reshape([batch, index.shape[1], dim])


class _Permute(PyLayer):
    @staticmethod
    def forward(ctx, tokens, index):
        ctx.save_for_backward(index)
        return gather_tokens(tokens, index)

    @staticmethod
    def backward(ctx, gradient):
        (index,) = ctx.saved_tensor()
        return gather_tokens(gradient, index.argsort(axis=1)), None


def permute_tokens(tokens: paddle.Tensor, index: paddle.Tensor) -> paddle.Tensor:
    """Reorder [B, N, D] by a permutation [B, N]. The gradient is its inverse: a gather, no additions to memory."""
    if not paddle.in_dynamic_mode() or tokens.shape[1] != index.shape[1]:
        return gather_tokens(tokens, index)
    return _Permute.apply(tokens, index)


def patchify(images: paddle.Tensor, patch_size: int) -> paddle.Tensor:
    """Cut images [B, C, H, W] into patches [B, N, P*P*C], pixels in (row, column, channel) order."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape([batch, channels, rows, patch_size, columns, patch_size])
    return patches.transpose([0, 2, 4, 3, 5, 1]).reshape([batch, rows * columns, -1])


def unpatchify(patches: paddle.Tensor, patch_size: int, grid_hw: tuple[int, int]) -> paddle.Tensor:
    """Put patches [B, N, P*P*C] back together as images [B, C, H, W]; the inverse of `patchify`."""
    (rows, columns), side = grid_hw, patch_size
    images = patches.reshape([patches.shape[0], rows, columns, side, side, -1])
    return images.transpose([0, 5, 1, 3, 2, 4]).reshape([patches.shape[0], -1, rows * side, columns * side])


def patch_statistics(target: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Return mean and standard deviation of each patch [B, N, 1]; unbiased variance, as the official code has it."""
    mean = target.mean(axis=-1, keepdim=True)
    variance = (target - mean).square().sum(axis=-1, keepdim=True) / (target.shape[-1] - 1)
    return mean, (variance + _NORM_PIX_EPS).sqrt()


def build_mae_pretrain(config) -> MAEPretrain:
    """Build the autoencoder that a config describes."""
    model, depth = config.MODEL, config.MODEL.ENCODER.DEPTH
    if model.ENCODER.RELATIVE_POSITION_BIAS or model.ENCODER.LAYER_SCALE is not None:
        raise UserError(
            "MODEL.ENCODER.RELATIVE_POSITION_BIAS and LAYER_SCALE are for finetuning, which starts from plain weights; "
            "set them to False and None to pretrain"
        )
    architecture = of_config(config, "autoencoder")
    if architecture.decode_layer is not None and not 1 <= architecture.decode_layer <= depth:
        raise UserError(f"DISTILL.DECODE_LAYER={architecture.decode_layer}: the encoder has layers 1 to {depth}")
    ratio = config.MODEL.get("PREDICT_RATIO")
    num_predicted(math.prod(architecture.grid_hw), model.MASK_RATIO, ratio)  # raises for what cannot be
    return MAEPretrain(architecture, model.MASK_RATIO, predict_ratio=ratio, **regularisation(config))
