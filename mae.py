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

from errors import UserError
from layers import kernels
from layers.channel_groups import ChannelGroups
from layers.cross_decoder import CrossDecoder
from layers.patch_counts import num_predicted, num_visible
from layers.patch_embedding import GroupedPrediction, build_patch_embedding
from layers.patches import gather_tokens, noise_from_mask, patchify, permute_tokens, put_back, random_masking
from layers.patches import unpatchify as unpatchify
from layers.pos_embed import position_table, sincos_table
from storage.architecture import SELF, Architecture, of_config
from transformer import Linear, Transformer, init_linear, layer_index, regularisation


class MAEPretrain(nn.Layer):
    """Encoder on the visible patches, light decoder on all of them, mean squared error on the hidden ones.

    Two options make the decoder cheaper: a cross decoder (`Architecture.decoder_kind`), which has no predictions for
    visible patches, and `predict_ratio`, with which training predicts the hidden patches of the highest noise only.

    Differs from the official code: non-square images and any channel count work; the number of kept
    patches does not suffer from floating point (100 patches at 0.9 keep 10, not 9).

    Attributes:
        has_missing: images may have pixels that are not a number: they are 0 to the encoder, and nothing to the loss.

    Args:
        architecture: of the model, with a decoder. `norm_pix_loss` (None: True) reconstructs pixels normalised per
            patch (Sec. 3 "Reconstruction target"); the decoder reads the output of the encoder's layer `decode_layer`,
            from 1 (None: the last one).
        mask_ratio: share of the patches that is hidden.
        predict_ratio: share of all patches that is predicted while training; None: of all that are hidden.
        drop_path: rate of the encoder's last layer; 0 in the paper.
        are_masks_consistent: with groups of channels, all hide the same patches; else each group hides its own.
        options: `dropout` and `attention_dropout` of each layer, `recompute`.
    """

    def __init__(
        self,
        architecture: Architecture,
        mask_ratio: float = 0.75,
        drop_path: float = 0.0,
        predict_ratio: float | None = None,
        are_masks_consistent: bool = False,
        **options,
    ):
        super().__init__()
        encoder, decoder = architecture.encoder, architecture.decoder
        self.architecture, self.mask_ratio, self.predict_ratio = architecture, mask_ratio, predict_ratio
        self.has_missing = False
        self.num_groups, self.are_masks_consistent = max(1, len(architecture.channel_groups)), are_masks_consistent
        self.groups = ChannelGroups(architecture.channel_groups or [range(architecture.channels)])
        self.is_cross = architecture.decoder_kind != SELF
        self.norm_pix_loss = architecture.norm_pix_loss is not False
        self.decode_layer = architecture.decode_layer or encoder.depth
        token_init = nn.initializer.Normal(std=0.02)

        self.patch_embedding = build_patch_embedding(architecture)
        self.cls_token = self.create_parameter([1, 1, encoder.width], default_initializer=token_init)
        self._register_table("encoder", encoder.width)
        self.encoder = Transformer(encoder, architecture, drop_path, architecture.has_last_norm, **options)

        self.linear_projection = None if self.is_cross else Linear(encoder.width, decoder.width)
        self.mask_token = self.create_parameter([1, 1, decoder.width], default_initializer=token_init)
        self._register_table("decoder", decoder.width)
        build = CrossDecoder if self.is_cross else functools.partial(Transformer, decoder)
        self.decoder = build(architecture, **options)
        pixels = architecture.patch_px**2 * architecture.channels
        self.decoder_pred = (
            GroupedPrediction(architecture) if architecture.channel_groups else Linear(decoder.width, pixels)
        )
        self._last: dict[str, object] = {}  # a tensor of its own would become a buffer
        self._tables: dict[tuple[int, int], tuple[paddle.Tensor, paddle.Tensor]] = {}  # by grid
        self._init_weights()

    def _register_table(self, part: str, width: int) -> None:
        table = position_table(
            width, self.architecture.grid_hw, len(self.architecture.channel_groups), part == "decoder"
        )
        self.register_buffer(f"{part}_position_embedding", paddle.to_tensor(table))

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
        for projection in self.patch_embedding.projections:  # as linear layers: their conv fans would be wrong
            weight = projection.weight
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
        if self.num_groups > 1:
            return self.groups.join(self.decoder_pred.predict(self.decoder(tokens)[:, 1:]))
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
        images, valid = self.split_missing(images)
        width = self.num_masked if noise is None else noise.shape[1]  # Paddle 2.6 traces shapes as tensors
        if valid is not None and mask is None and self.predict_ratio is None:
            noise = self._hide_missing(noise, valid, width)
        hidden_ratio, is_given = self.mask_ratio if mask_ratio is None else mask_ratio, mask is not None
        shuffle, restore, mask = self.choose_patches(images.shape[0], mask_ratio, noise, mask, width)
        num_patches = self.patch_embedding.num_patches
        num_kept = shuffle.shape[1] if is_given else self._num_kept(hidden_ratio, width)
        if is_given:  # by its number of patches, as a mean of float32 is not exact
            hidden_ratio = 1 - num_kept / num_patches
        ratio = self.predict_ratio if predict_ratio is None and self.training else predict_ratio
        num_hidden = num_patches - num_kept
        count = num_hidden if ratio is None else num_predicted(num_patches, hidden_ratio, ratio)
        self._last = {"restore": restore, "count": count}
        latent = self.encode(images, shuffle)
        if count < num_hidden or self.is_cross:
            return *self._predict_some(images, latent, shuffle, restore, count, valid), mask
        pred = self.decode(latent, restore)
        return self.loss(images, pred, mask, valid), pred, mask

    @property
    def predicted(self) -> paddle.Tensor:
        """Patches that the last call of `forward` predicted, [B, N] bool; a static graph does not record them."""
        if not self._last:
            raise ValueError("the model has not been called yet")
        restore = self._last["restore"]
        return restore >= restore.shape[1] - self._last["count"]

    def _predict_some(
        self, images: paddle.Tensor, latent, shuffle: paddle.Tensor, restore: paddle.Tensor, count: int, valid
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Return loss and predictions of the `count` patches with the highest noise; of none, zeros."""
        target = patchify(images.astype("float32"), self.patch_embedding.patch_size)  # [B, N, P*P*C]
        if count == 0:
            return paddle.zeros([]), paddle.zeros_like(target)
        predicted = restore.argsort(axis=1)[:, self.patch_embedding.num_patches - count :]
        some = self.decode_some(latent, shuffle, predicted)  # [B, M, P*P*C]
        known = None if valid is None else gather_tokens(valid, predicted)
        errors = self.groups.errors(gather_tokens(target, predicted), some, self.norm_pix_loss, known)
        weight = self.groups.known(known)
        loss = errors.mean() if known is None else (errors * weight).sum() / weight.sum().clip(min=1.0)
        return loss, put_back(some.astype("float32"), restore)

    def choose_patches(
        self,
        batch: int,
        mask_ratio: float | None = None,
        noise: paddle.Tensor | None = None,
        mask: paddle.Tensor | None = None,
        width: int | None = None,
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Choose the visible patches of `batch` images; arguments as in `forward`, results as of `random_masking`.

        Args:
            width: of the noise, where a static graph does not tell; None: as it is.
        """
        if mask is not None:
            is_of_grid = mask.shape[1] < self.patch_embedding.num_patches  # all groups hide the same
            return random_masking(*noise_from_mask(mask.tile([1, self.num_groups]) if is_of_grid else mask))
        width = width or (self.num_masked if noise is None else noise.shape[1])
        noise = paddle.rand([batch, width]) if noise is None else noise
        copies = self.patch_embedding.num_patches // width  # all groups hide the same
        num_kept = self._num_kept(self.mask_ratio if mask_ratio is None else mask_ratio, width)
        return random_masking(noise.tile([1, copies]) if copies > 1 else noise, num_kept)

    def _num_kept(self, mask_ratio: float, width: int) -> int:
        """Return the number of visible patches of all groups, for noise [B, width]."""
        return num_visible(width, mask_ratio) * (self.patch_embedding.num_patches // width)

    @property
    def num_masked(self) -> int:
        """Patches of which a mask hides a share: those of the grid, or, where groups hide their own, of all groups."""
        return self.patch_embedding.num_patches // (self.num_groups if self.are_masks_consistent else 1)

    def loss(
        self, images: paddle.Tensor, pred: paddle.Tensor, mask: paddle.Tensor, valid: paddle.Tensor | None = None
    ) -> paddle.Tensor:
        """Average the squared error over the pixels of each patch, then over the hidden patches; in float32.

        Args:
            valid: [B, N, P*P*C], see `patch_errors`.
        """
        target = patchify(images.astype("float32"), self.patch_embedding.patch_size)
        errors = self.groups.errors(target, pred, self.norm_pix_loss, valid)  # [B, N]
        mask = mask * self.groups.known(valid)
        return (errors * mask).sum() / mask.sum().clip(min=1.0)

    def split_missing(self, images: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """Return images with zeros for missing pixels, and which pixels are known, [B, N, P*P*C]; None: all."""
        if not self.has_missing:
            return images, None
        is_known = paddle.isfinite(images)
        images = paddle.where(is_known, images, paddle.zeros_like(images))
        return images, patchify(is_known.astype("float32"), self.patch_embedding.patch_size)

    def _hide_missing(self, noise: paddle.Tensor | None, valid: paddle.Tensor, width: int) -> paddle.Tensor:
        """Return noise that hides patches without a known pixel first, so that the encoder sees others."""
        noise = paddle.rand([valid.shape[0], width]) if noise is None else noise
        known, copies = self.groups.known(valid), self.patch_embedding.num_patches // width
        known = known.reshape([-1, copies, width]).max(axis=1) if copies > 1 else known
        return noise + 2.0 * (1.0 - known)


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
    embedding = network.patch_embedding
    if network.architecture.channel_groups:
        tokens = gather_tokens(embedding(images), shuffle)  # [B, K, D]
    else:
        tokens = embedding.project(gather_tokens(embedding.split(images), shuffle))
    table = network.encoder_position_embedding if table is None else table
    tokens = tokens + _rows(table, shuffle)
    cls_token = (network.cls_token + table[:, :1]).expand([tokens.shape[0], -1, -1])
    return paddle.concat([cls_token.astype(tokens.dtype), tokens], axis=1)


def _rows(table: paddle.Tensor, index: paddle.Tensor) -> paddle.Tensor:
    """Return the positions of patches [B, K], as rows [B, K, D] of a table [1, 1 + N, D]."""
    return paddle.gather(table[0, 1:], index.flatten()).reshape([*index.shape, -1])


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
    num_predicted(architecture.num_patches, model.MASK_RATIO, ratio)  # raises for what cannot be
    options = {"predict_ratio": ratio, "are_masks_consistent": model.get("GROUP_MASKS") == "consistent"}
    return MAEPretrain(architecture, model.MASK_RATIO, **options, **regularisation(config))
