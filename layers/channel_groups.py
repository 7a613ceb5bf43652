"""Channels of patches in groups (SatMAE, arXiv 2207.08051), and errors of predicted pixels, by group.

Shapes: B images, C channels, G groups, N patches on the grid, P patch side.
"""

from collections.abc import Sequence

import paddle
from paddle import nn

from layers.patches import patch_errors, patch_statistics


class ChannelGroups(nn.Layer):
    """Takes the channels of patches apart into groups, and puts them together again.

    Args:
        groups: lists of channels, in which each of 0 to C - 1 is once; one group of all leaves patches as they are.
    """

    def __init__(self, groups: Sequence[Sequence[int]]):
        super().__init__()
        order = [channel for group in groups for channel in group]
        self.sizes = [len(group) for group in groups]
        self.register_buffer("order", paddle.to_tensor(order, "int64"), persistable=False)
        inverse = [order.index(channel) for channel in range(len(order))]
        self.register_buffer("inverse", paddle.to_tensor(inverse, "int64"), persistable=False)

    def split(self, patches: paddle.Tensor) -> list[paddle.Tensor]:
        """Return the pixels of each group, [B, N, P*P*c] of c channels, of patches [B, N, P*P*C]."""
        if len(self.sizes) == 1:
            return [patches]
        batch, count, _ = patches.shape
        channels = patches.reshape([batch, count, -1, len(self.order)])
        parts = paddle.split(channels.index_select(self.order, axis=3), self.sizes, axis=3)
        return [part.reshape([batch, count, -1]) for part in parts]

    def join(self, parts: Sequence[paddle.Tensor]) -> paddle.Tensor:
        """Return patches [B, N, P*P*C] of the pixels of each group, [B, N, P*P*c]; the opposite of `split`."""
        if len(self.sizes) == 1:
            return parts[0]
        batch, count, _ = parts[0].shape
        parts = [parts[index].reshape([batch, count, -1, size]) for index, size in enumerate(self.sizes)]
        return paddle.concat(parts, axis=3).index_select(self.inverse, axis=3).reshape([batch, count, -1])

    def errors(
        self, target: paddle.Tensor, pred: paddle.Tensor, is_normalised: bool, valid: paddle.Tensor | None = None
    ) -> paddle.Tensor:
        """Return `patch_errors` of each group's patches, [B, G*N], of pixels and predictions [B, N, P*P*C].

        Differs from SatMAE's official code, which normalises over all groups, and takes the predictions of its groups,
        one after another, for channels in order.
        """
        targets, guesses, known = self.split(target), self.split(pred), self._split(valid)
        parts = range(len(self.sizes))  # Paddle's tracing knows no zip with `strict`
        return _concat([patch_errors(targets[g], guesses[g], is_normalised, known[g]) for g in parts])

    def statistics(
        self, target: paddle.Tensor, valid: paddle.Tensor | None = None
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Return mean and standard deviation by which `errors` normalises each pixel, [B, N, P*P*C]."""
        parts = zip(self.split(target), self._split(valid), strict=True)
        pairs = [[values.expand(own.shape) for values in patch_statistics(own, known)] for own, known in parts]
        return tuple(self.join(own) for own in zip(*pairs, strict=True))

    def known(self, valid: paddle.Tensor | None) -> paddle.Tensor | float:
        """Return which patches have a pixel that is not missing, [B, G*N]; 1 where none can be missing."""
        return 1.0 if valid is None else _concat([part.max(axis=-1) for part in self.split(valid)])

    def hidden(self, mask: paddle.Tensor, patch_px: int) -> paddle.Tensor:
        """Return which pixels a mask [B, G*N] hides, [B, N, P*P*C] of the patches on the grid."""
        masks = paddle.split(mask, len(self.sizes), axis=1)
        shape = masks[0].shape
        parts = [own.unsqueeze(-1).expand([*shape, patch_px**2 * self.sizes[group]]) for group, own in enumerate(masks)]
        return self.join(parts)

    def _split(self, valid: paddle.Tensor | None) -> list[paddle.Tensor | None]:
        return [None] * len(self.sizes) if valid is None else self.split(valid)


def _concat(parts: list[paddle.Tensor]) -> paddle.Tensor:
    return parts[0] if len(parts) == 1 else paddle.concat(parts, axis=1)
