"""The network of segmentation: a linear classifier of the patches of an encoder, and its use on whole images."""

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from config import image_size_hw, network_kind
from errors import UserError
from layers.heads import JointBatchNorm
from layers.patch_embedding import on_grid
from storage.architecture import Architecture, of_config
from transformer import VisionTransformer, regularisation

_WINDOWS_AT_ONCE = 8
_CLASSES_AT_ONCE = 8  # whose logits are enlarged at a time: all of a large photo would take gigabytes


class Segmenter(VisionTransformer):
    """A batch norm and a linear layer over the patches of one or more blocks, behind the encoder's last norm.

    The head is DINOv2's (arXiv 2304.07193, Sec. 7.4), but for the scale and shift of its batch norm, which the linear
    layer has anyway.

    Args:
        architecture: `segmented_layers` names the blocks.
        options: see `VisionTransformer`.

    Raises:
        UserError: if the encoder has no such block.
    """

    def __init__(self, architecture: Architecture, **options):
        super().__init__(architecture, **options)
        depth = architecture.encoder.depth
        self._numbers = [number if number > 0 else depth + 1 + number for number in architecture.segmented_layers]
        if not all(1 <= number <= depth for number in self._numbers) or len(set(self._numbers)) < len(self._numbers):
            raise UserError(
                f"SEG.LAYERS={list(architecture.segmented_layers)}: must be different blocks from 1 to {depth}"
            )
        self.classifier = nn.Sequential(JointBatchNorm(architecture.head_width, affine=False), self.classifier[1])

    def patch_features(self, images: paddle.Tensor) -> paddle.Tensor:
        """Return the normed patches of the blocks side by side, [B, N, D * blocks]."""
        encoder, tokens, done, found = self.encoder, self.embed(images), 0, {}
        for number in sorted(self._numbers):
            tokens = encoder(tokens, first=done, end=number)  # behind the last block comes the norm
            normed = tokens if number == len(encoder.layers) else encoder.norm(tokens)
            found[number] = on_grid(normed[:, 1:], len(self.architecture.channel_groups))
            done = number
        return paddle.concat([found[number] for number in self._numbers], axis=-1)

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        """Return the logits of each patch, [B, K, rows, columns]."""
        rows, columns = self.patch_embedding.grid_hw
        logits = self.classifier(self.patch_features(images).flatten(0, 1))
        return logits.reshape([-1, rows, columns, logits.shape[-1]]).transpose([0, 3, 1, 2])


def build_segmenter(config) -> Segmenter:
    """Build the network that a configuration describes."""
    return Segmenter(of_config(config, network_kind(config)), **regularisation(config))


def upsample(logits: paddle.Tensor, size_hw: tuple[int, int]) -> paddle.Tensor:
    """Resize logits [B, K, h, w] bilinearly to [B, K, H, W], in float32; corners are not aligned."""
    return F.interpolate(logits.astype("float32"), size=list(size_hw), mode="bilinear", align_corners=False)


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Return where windows begin along a side; the last one ends at its end, so that nothing is left out."""
    count = max(size - window + stride - 1, 0) // stride + 1
    return [max(min(number * stride + window, size) - window, 0) for number in range(count)]


@paddle.no_grad()
def segment(model: nn.Layer, image: paddle.Tensor, window_hw: tuple[int, int], stride: float) -> paddle.Tensor:
    """Return logits [K, H, W] of an image [C, H, W]: the mean over windows that overlap.

    Args:
        model: from images of `window_hw` to logits of patches.
        image: no side is shorter than the window.
        stride: from window to window, as a share of the window.
    """
    size_hw = image.shape[1:]
    steps = [max(1, round(stride * side)) for side in window_hw]
    tops, lefts = (window_starts(*sides) for sides in zip(size_hw, window_hw, steps, strict=True))
    boxes = [np.s_[:, top : top + window_hw[0], left : left + window_hw[1]] for top in tops for left in lefts]
    total, counts = None, paddle.zeros([1, *size_hw])
    for first in range(0, len(boxes), _WINDOWS_AT_ONCE):
        some = boxes[first : first + _WINDOWS_AT_ONCE]
        logits = upsample(model(paddle.stack([image[box] for box in some])), window_hw)
        total = paddle.zeros([logits.shape[1], *size_hw]) if total is None else total
        for box, own in zip(some, logits, strict=True):
            total[box] += own
            counts[box] += 1.0
    return total / counts


@paddle.no_grad()
def label_map(model: nn.Layer, config, image: paddle.Tensor, size_hw: tuple[int, int]) -> np.ndarray:
    """Return the class of each pixel, int16 [H, W], of a whole image.

    Args:
        image: normalised, [C, h, w], see `segment`.
        size_hw: of the result.

    Raises:
        UserError: if the network's outputs are not finite.
    """
    logits = segment(model, image, image_size_hw(config), config.SEG.STRIDE)
    if not bool(paddle.isfinite(logits).all()):
        raise UserError("the model's outputs are not finite; are its weights whole?")
    largest, labels = paddle.full(size_hw, -np.inf), paddle.zeros(size_hw, "int32")
    for first in range(0, len(logits), _CLASSES_AT_ONCE):
        some = upsample(logits[first : first + _CLASSES_AT_ONCE].unsqueeze(0), size_hw)[0]
        is_larger = some.max(axis=0) > largest
        labels = paddle.where(is_larger, some.argmax(axis=0).astype("int32") + first, labels)
        largest = paddle.where(is_larger, some.max(axis=0), largest)
    return labels.numpy().astype(np.int16)
