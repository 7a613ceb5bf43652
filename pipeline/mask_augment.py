"""Crops, flips and colours of an image together with its mask, as segmentation trains on them. No Paddle here."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from config import image_size_hw
from errors import UserError
from pipeline import augment
from pipeline.masks import IGNORED, resize_mask
from pipeline.transforms import Transform, levels_of

_TRIES = 10
Pair = tuple[Image.Image, np.ndarray]


def train_transform(config) -> Transform:
    """Return a transform of pairs: a random scale, a crop, a flip, and colour jitter of the image alone.

    The shorter side becomes that of DATA.IMAGE_SIZE times a factor from SEG.SCALE; what is missing at the right and the
    bottom is filled with the mean colour, and is of no class. A crop in which one class has more than
    SEG.MAX_CLASS_SHARE of the pixels that have one is drawn again, up to ten times.
    """
    size_hw, data, seg, train = image_size_hw(config), config.DATA, config.SEG, config.TRAIN
    fill, is_array = fill_of(config), data.PIXELS == "array"
    if is_array and train.COLOR_JITTER:
        raise UserError(
            f"TRAIN.COLOR_JITTER={train.COLOR_JITTER}: is for photos, and DATA.PIXELS is array; set it to 0"
        )

    def view(pair: Pair, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        image, labels = resize_to_cover(pair, size_hw, rng.uniform(*seg.SCALE))
        pixels, labels = pad(augment.as_pixels(image), labels, size_hw, fill)
        top, left = draw_crop(labels, size_hw, seg.MAX_CLASS_SHARE, rng)
        box = np.s_[top : top + size_hw[0], left : left + size_hw[1]]
        pixels, labels = pixels[box], labels[box]
        if rng.random() < train.FLIP_PROB:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        if train.VERTICAL_FLIP_PROB or train.ROTATE_90:
            pixels, labels = _turn(pixels, labels, rng, train)
        if is_array:
            pixels = augment.change_channels(pixels, rng, train.CHANNEL_GAIN, train.CHANNEL_DROP)
        if train.COLOR_JITTER > 0 and pixels.shape[2] == 3:
            image = augment.color_jitter(augment.as_image(pixels), rng, train.COLOR_JITTER)
            pixels = augment.as_pixels(image)
        return np.ascontiguousarray(pixels), np.ascontiguousarray(labels)

    return Transform((view,), data.IMAGENET_MEAN, data.IMAGENET_STD, takes_masks=True, levels=levels_of(config))


def fill_of(config) -> list[float]:
    """Return the mean colour, as the pixels of images are before they are normalised."""
    is_array, means = config.DATA.PIXELS == "array", config.DATA.IMAGENET_MEAN
    return list(means) if is_array else [round(255 * mean) for mean in means]


def _turn(pixels: np.ndarray, labels: np.ndarray, rng: np.random.Generator, train) -> tuple[np.ndarray, np.ndarray]:
    """Turn pixels [H, W, C] and labels [H, W] alike, see `augment.turn`."""
    seed, options = rng.integers(1 << 32), (train.VERTICAL_FLIP_PROB, train.ROTATE_90)
    pixels, labels = (augment.turn(a, np.random.default_rng(seed), *options) for a in (pixels, labels[..., None]))
    return pixels, labels[..., 0]


def resize_to_cover(pair: Pair, size_hw: tuple[int, int], factor: float = 1.0) -> Pair:
    """Resize an image (bilinear) and its mask (nearest) so that they just cover `size_hw` times a factor."""
    image, labels = pair
    scale = factor * max(size_hw[0] / image.height, size_hw[1] / image.width)
    new_hw = max(1, round(scale * image.height)), max(1, round(scale * image.width))
    if new_hw == (image.height, image.width):
        return image, labels
    return image.resize(new_hw[::-1], Image.Resampling.BILINEAR), resize_mask(labels, new_hw)


def pad(
    pixels: np.ndarray, labels: np.ndarray, size_hw: tuple[int, int], fill: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Fill pixels [H, W, C] and labels [H, W] up to a size, at the right and at the bottom."""
    below, right = (max(0, wanted - there) for wanted, there in zip(size_hw, labels.shape, strict=True))
    if not below and not right:
        return pixels, labels
    room = np.empty((labels.shape[0] + below, labels.shape[1] + right, pixels.shape[2]), pixels.dtype)
    room[:] = fill
    room[: labels.shape[0], : labels.shape[1]] = pixels
    return room, np.pad(labels, ((0, below), (0, right)), constant_values=IGNORED)


def draw_crop(
    labels: np.ndarray, size_hw: tuple[int, int], most_share: float, rng: np.random.Generator
) -> tuple[int, int]:
    """Return top and left of a crop of labels [H, W] in which no class has more than a share of the pixels."""
    for _ in range(_TRIES):
        top, left = (int(rng.integers(there - wanted + 1)) for there, wanted in zip(labels.shape, size_hw, strict=True))
        inside = labels[top : top + size_hw[0], left : left + size_hw[1]]
        counts = np.bincount(inside[inside >= 0])
        if np.count_nonzero(counts) > 1 and counts.max() <= most_share * counts.sum():
            break
    return top, left
