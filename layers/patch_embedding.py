"""Patches of images as tokens; by groups of channels, too (SatMAE, arXiv 2207.08051).

With groups, the tokens of an image are those of the first group's patches, then of the second's, and so on.

Shapes: B images, C channels, G groups, N patches on the grid, P patch side, D width.
"""

import math

import paddle
from paddle import nn

from layers import kernels
from layers.basic import LayerNorm, Linear
from layers.channel_groups import ChannelGroups
from layers.patches import patchify


class PatchEmbedding(nn.Layer):
    """Cut images into patches and project each to D: a convolution with stride = kernel, as one matmul.

    Args:
        architecture: `storage.architecture.Architecture`.
    """

    def __init__(self, architecture):
        super().__init__()
        self.patch_size, self.in_channels = architecture.patch_px, architecture.channels
        self.use_grid(architecture.grid_hw)
        embed_dim, patch_size = architecture.encoder.width, architecture.patch_px
        # The convolution only holds the weight [D, C, P, P] under the name that weight files use.
        self.patch_embedding = nn.Conv2D(self.in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)
        init_like_torch_conv(self.patch_embedding)
        if architecture.patch_norm:
            self.norm_pixels = LayerNorm(self.in_channels * patch_size**2, architecture.norm_eps)
            self.norm_tokens = LayerNorm(embed_dim, architecture.norm_eps)
        else:
            self.norm_pixels = self.norm_tokens = None

    @property
    def projections(self) -> list[nn.Conv2D]:
        """The layers that hold the weights."""
        return [self.patch_embedding]

    def use_grid(self, grid_hw: tuple[int, int]) -> None:
        """Take images of another size from now on."""
        self.grid_hw, self.image_hw = grid_hw, (grid_hw[0] * self.patch_size, grid_hw[1] * self.patch_size)
        self.num_patches = grid_hw[0] * grid_hw[1]

    def split(self, images: paddle.Tensor) -> paddle.Tensor:
        """Cut images [B, C, H, W] into patches [B, N, C*P*P], pixels in the weight's (channel, row, column) order."""
        check_size(images, self)
        (rows, columns), side = self.grid_hw, self.patch_size
        patches = images.reshape([-1, self.in_channels, rows, side, columns, side])
        patches = patches.transpose([0, 2, 4, 1, 3, 5])  # [B, rows, columns, C, P, P]
        return patches.reshape([-1, self.num_patches, self.in_channels * side * side])

    def project(self, patches: paddle.Tensor) -> paddle.Tensor:
        """Project patches [..., C*P*P] to tokens [..., D]."""
        weight = self.patch_embedding.weight
        weight, bias = weight.reshape([weight.shape[0], -1]).t(), self.patch_embedding.bias
        if self.norm_pixels is None:
            return kernels.linear(patches, weight, bias)
        return self.norm_tokens(kernels.linear(self.norm_pixels(patches), weight, bias))

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Embed images [B, C, H, W] as tokens [B, N, D]."""
        return self.project(self.split(images))


class GroupedPatchEmbedding(nn.Layer):
    """Cut images into patches, and project each group of its channels to D; see `PatchEmbedding`, whose place it takes.

    Args:
        architecture: of the model, with `channel_groups`.
    """

    def __init__(self, architecture):
        super().__init__()
        self.patch_size, self.channel_groups = architecture.patch_px, architecture.channel_groups
        self.in_channels = architecture.channels
        self.use_grid(architecture.grid_hw)
        width, side = architecture.encoder.width, self.patch_size
        # A convolution only holds the weight [D, c, P, P], as that of `PatchEmbedding` does.
        self.groups = nn.LayerList([nn.Conv2D(len(group), width, side, stride=side) for group in self.channel_groups])
        for conv in self.groups:
            init_like_torch_conv(conv)
        self.orders = ChannelGroups(self.channel_groups)

    @property
    def projections(self) -> list[nn.Conv2D]:
        """The layers that hold the weights."""
        return list(self.groups)

    def use_grid(self, grid_hw: tuple[int, int]) -> None:
        """Take images of another size from now on."""
        self.grid_hw, self.image_hw = grid_hw, (grid_hw[0] * self.patch_size, grid_hw[1] * self.patch_size)
        self.num_patches = grid_hw[0] * grid_hw[1] * len(self.channel_groups)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Embed images [B, C, H, W] as tokens [B, G*N, D]."""
        check_size(images, self)
        parts, tokens = self.orders.split(patchify(images, self.patch_size)), []
        for index, conv in enumerate(self.groups):
            weight = conv.weight.transpose([2, 3, 1, 0]).reshape([-1, conv.weight.shape[0]])  # [P*P*c, D]
            tokens.append(kernels.linear(parts[index], weight, conv.bias))
        return paddle.concat(tokens, axis=1)


class GroupedPrediction(nn.LayerList):
    """Predict the pixels of each group from the tokens of its patches.

    Args:
        architecture: of the model, with a decoder and `channel_groups`.
    """

    def __init__(self, architecture):
        width, pixels = architecture.decoder.width, architecture.patch_px**2
        super().__init__([Linear(width, pixels * len(group)) for group in architecture.channel_groups])

    def predict(self, tokens: paddle.Tensor) -> list[paddle.Tensor]:
        """Return the pixels of each group, [B, N, P*P*c], of tokens [B, G*N, E]."""
        own = tokens.reshape([tokens.shape[0], len(self), -1, tokens.shape[2]])
        return [layer(own[:, index]) for index, layer in enumerate(self)]


def check_size(images: paddle.Tensor, embedding: PatchEmbedding | GroupedPatchEmbedding) -> None:
    """Raise ValueError if images are not of the channels and size of an embedding."""
    wanted = (embedding.in_channels, *embedding.image_hw)
    if tuple(images.shape[1:]) != wanted:
        channels, height, width = wanted
        raise ValueError(f"expected images of shape [B, {channels}, {height}, {width}], got {list(images.shape)}")


def on_grid(patches: paddle.Tensor, num_groups: int) -> paddle.Tensor:
    """Return one token per patch of the grid, [B, N, D], of the tokens [B, G*N, D]: the mean over groups."""
    if num_groups <= 1:
        return patches
    return patches.reshape([patches.shape[0], num_groups, -1, patches.shape[2]]).mean(axis=1)


def build_patch_embedding(architecture) -> PatchEmbedding | GroupedPatchEmbedding:
    """Build the patch embedding of an architecture."""
    return (GroupedPatchEmbedding if architecture.channel_groups else PatchEmbedding)(architecture)


def init_like_torch_conv(conv: nn.Conv2D) -> None:
    """Draw weight and bias uniformly within 1 / sqrt(fan_in), torch's default for a convolution."""
    bound = 1.0 / math.sqrt(math.prod(conv.weight.shape[1:]))
    for parameter in (conv.weight, conv.bias):
        nn.initializer.Uniform(-bound, bound)(parameter)
