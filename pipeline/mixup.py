"""Augmentation of whole batches, on their device: random erasing, Mixup and CutMix with the soft targets they make.

Semantics are timm's: the partner of an image is its mirror image in the batch (first with last), lambda
is corrected for the clipped box, label smoothing is folded into the targets. Any batch size works.

Shapes: B images, C channels, H x W pixels, K classes.
"""

import math
from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F

from pipeline.device_copy import to_device


class Mixup:
    """Mix each image of a batch with another one, and their labels with it.

    Args:
        num_classes: K.
        mixup_alpha: Beta(alpha, alpha) of mixup's lambda; 0 switches mixup off.
        cutmix_alpha: the same of CutMix.
        cutmix_minmax: sides of the box as shares of the image, [smallest, largest]; takes the place of
            `cutmix_alpha`.
        prob: of mixing at all.
        switch_prob: of CutMix where both are on.
        mode: one draw per batch ("batch"), per pair of images ("pair") or per image ("elem").
        smoothing: label smoothing.
    """

    def __init__(
        self,
        num_classes: int,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        cutmix_minmax: Sequence[float] | None = None,
        prob: float = 1.0,
        switch_prob: float = 0.5,
        mode: str = "batch",
        smoothing: float = 0.1,
    ):
        self.num_classes = num_classes
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = 1.0 if cutmix_minmax else cutmix_alpha
        self.cutmix_minmax = cutmix_minmax
        self.prob = prob if self.mixup_alpha > 0 or self.cutmix_alpha > 0 else 0.0
        self.switch_prob = switch_prob
        self.mode = mode
        self.smoothing = smoothing

    def __call__(
        self, images: paddle.Tensor, labels: paddle.Tensor, rng: np.random.Generator
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Mix images [B, C, H, W] with labels [B] int64, or [B, L] padded with -1.

        Returns:
            images: [B, C, H, W].
            targets: [B, K] float32; each row sums to 1 where images have one label.
        """
        batch, _, height, width = images.shape
        num_draws = {"batch": 1, "pair": (batch + 1) // 2, "elem": batch}[self.mode]
        draws = [self._draw(height, width, rng) for _ in range(num_draws)]
        if self.mode == "pair":
            draws += draws[: batch // 2][::-1]  # both of a pair share one
        rows = draws * batch if self.mode == "batch" else draws
        # Each pixel's share of the image itself; its partner has the rest.
        weights = np.ones([batch if self.mode != "batch" else 1, 1, height, width], np.float32)
        for row, (lam, box) in enumerate(draws):
            if box is None:
                weights[row] = lam
            else:
                top, bottom, left, right = box
                weights[row, :, top:bottom, left:right] = 0.0
        weights, lam = to_device([weights, np.array([[lam] for lam, _ in rows], np.float32)])  # lam: [B, 1]
        images = images * weights + images.flip(axis=[0]) * (1.0 - weights)
        targets = smooth_one_hot(labels, self.num_classes, self.smoothing)  # [B, K]
        return images, targets * lam + targets.flip(axis=[0]) * (1.0 - lam)

    def _draw(self, height: int, width: int, rng: np.random.Generator):
        """Draw (lambda, box); box is None for mixup, else (top, bottom, left, right) of the partner's patch."""
        if rng.random() >= self.prob:
            return 1.0, None
        use_cutmix = self.cutmix_alpha > 0 and (self.mixup_alpha <= 0 or rng.random() < self.switch_prob)
        if not use_cutmix:
            return float(rng.beta(self.mixup_alpha, self.mixup_alpha)), None
        if self.cutmix_minmax:
            low, high = self.cutmix_minmax
            box_h, box_w = (int(side * rng.uniform(low, high)) for side in (height, width))
            top, left = rng.integers(height - box_h + 1), rng.integers(width - box_w + 1)
            box = (int(top), int(top + box_h), int(left), int(left + box_w))
        else:
            share = np.sqrt(1.0 - rng.beta(self.cutmix_alpha, self.cutmix_alpha))
            box_h, box_w = int(height * share), int(width * share)
            center_y, center_x = rng.integers(height), rng.integers(width)
            top, bottom = (int(np.clip(center_y + edge, 0, height)) for edge in (-(box_h // 2), box_h // 2))
            left, right = (int(np.clip(center_x + edge, 0, width)) for edge in (-(box_w // 2), box_w // 2))
            box = (top, bottom, left, right)
        area = (box[1] - box[0]) * (box[3] - box[2])
        return 1.0 - area / (height * width), box


def random_erase(
    images: paddle.Tensor, rng: np.random.Generator, prob: float = 0.25, mode: str = "pixel", max_count: int = 1
) -> paddle.Tensor:
    """Erase random rectangles of normalised images [B, C, H, W] (arXiv 1708.04896, as in timm).

    Args:
        prob: of an image to be erased at all.
        mode: fill with normal noise per pixel ("pixel"), per channel and rectangle ("rand"), or zero ("const"); noise
            comes from Paddle's generator.
        max_count: rectangles; an image's number is drawn from 1 to this, and they share the area of 2 % to 1/3.
    """
    batch, channels, height, width = images.shape
    counts = np.where(rng.random(batch) < prob, rng.integers(1, max_count + 1, batch), 0) if max_count else np.zeros(1)
    for number in range(1, int(counts.max(initial=0)) + 1):
        boxes = _draw_boxes(counts, number, (height, width), rng)  # [B, 4]
        rows, columns = np.arange(height), np.arange(width)
        in_rows = (rows >= boxes[:, :1]) & (rows < boxes[:, 1:2])  # [B, H]
        in_columns = (columns >= boxes[:, 2:3]) & (columns < boxes[:, 3:])  # [B, W]
        in_rows, in_columns = to_device([in_rows[:, None, :, None], in_columns[:, None, None, :]])
        inside = in_rows & in_columns
        if mode == "const":
            noise = paddle.zeros([1], images.dtype)
        else:
            noise = paddle.randn(images.shape if mode == "pixel" else [batch, channels, 1, 1], images.dtype)
        images = paddle.where(inside.expand(images.shape), noise.expand(images.shape), images)
    return images


def _draw_boxes(counts: np.ndarray, number: int, size_hw: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw the boxes (top, bottom, left, right) of the images with at least `number` of them; empty ones elsewhere.

    Of ten draws of area and aspect, the first that fits is taken; where none does, nothing is erased.
    """
    height, width = size_hw
    area = rng.uniform(0.02, 1 / 3, (len(counts), 10)) * height * width / np.maximum(counts, 1)[:, None]
    aspect = np.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3), area.shape))
    box_h, box_w = np.rint(np.sqrt(area / aspect)).astype(int), np.rint(np.sqrt(area * aspect)).astype(int)
    fits = (box_h < height) & (box_w < width)
    first = fits.argmax(axis=1)[:, None]
    box_h, box_w = (np.take_along_axis(sides, first, axis=1)[:, 0] for sides in (box_h, box_w))
    is_used = fits.any(axis=1) & (counts >= number)
    box_h, box_w = np.where(is_used, box_h, 0), np.where(is_used, box_w, 0)
    top, left = rng.integers(height - box_h + 1), rng.integers(width - box_w + 1)
    return np.stack([top, top + box_h, left, left + box_w], axis=1)


def smooth_one_hot(labels: paddle.Tensor, num_classes: int, smoothing: float) -> paddle.Tensor:
    """Return targets [B, K]: smoothing / K everywhere, and 1 - smoothing on top at each label.

    Args:
        labels: [B], or [B, L] padded with -1: rows of targets sum to 1 only where an image has one label.
    """
    if labels.ndim == 1:
        targets = F.one_hot(labels, num_classes)
    else:
        column = paddle.where(labels < 0, paddle.full_like(labels, num_classes), labels)  # cut off below
        targets = paddle.zeros([labels.shape[0], num_classes + 1], "float32")
        targets = paddle.put_along_axis(targets, column, 1.0, axis=1)[:, :num_classes]
    return targets * (1.0 - smoothing) + smoothing / num_classes
