"""Patches of images: cutting, joining, hiding, picking, statistics and errors.

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


def patch_statistics(target: paddle.Tensor, valid: paddle.Tensor | None = None) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Return mean and standard deviation of each patch [B, N, 1]; unbiased variance, as the official code has it.

    Args:
        target: pixels [B, N, F].
        valid: [B, N, F], 1 where a pixel is known, and 0 where it is missing; None: all are known.
    """
    if valid is None:
        mean, count = target.mean(axis=-1, keepdim=True), target.shape[-1]
        squares = (target - mean).square()
    else:
        count = valid.sum(axis=-1, keepdim=True)
        mean = (target * valid).sum(axis=-1, keepdim=True) / count.clip(min=1.0)
        squares, count = (target - mean).square() * valid, count.clip(min=2.0)
    return mean, (squares.sum(axis=-1, keepdim=True) / (count - 1) + _NORM_PIX_EPS).sqrt()


def patch_errors(
    target: paddle.Tensor, pred: paddle.Tensor, is_normalised: bool, valid: paddle.Tensor | None = None
) -> paddle.Tensor:
    """Return the mean squared error of each patch over its known pixels, [B, N], in float32.

    Args:
        target, pred: pixels [B, N, F].
        is_normalised: the target is normalised by each patch's mean and standard deviation.
        valid: see `patch_statistics`.
    """
    if is_normalised:
        mean, std = patch_statistics(target, valid)
        target = (target - mean) / std
    squares = (pred.astype("float32") - target).square()
    if valid is None:
        return squares.mean(axis=-1)
    return (squares * valid).sum(axis=-1) / valid.sum(axis=-1).clip(min=1.0)


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


def put_back(some: paddle.Tensor, restore: paddle.Tensor) -> paddle.Tensor:
    """Put predictions [B, M, F] of the M patches with the highest noise in their places among N; zeros elsewhere."""
    place = restore - (restore.shape[1] - some.shape[1])
    place = paddle.where(place < 0, paddle.full_like(place, some.shape[1]), place)
    return gather_tokens(paddle.concat([some, paddle.zeros_like(some[:, :1])], axis=1), place)
