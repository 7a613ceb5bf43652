"""Patches of images: cutting, joining, picking and statistics.

Shapes: B images, C channels, N patches, P patch side, D width, K patches picked.
"""

import paddle
from paddle.autograd import PyLayer

_NORM_PIX_EPS = 1e-6


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
