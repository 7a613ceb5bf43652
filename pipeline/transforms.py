"""Transforms of images before a model sees them: crops, flips, normalisation."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
import paddle
from PIL import Image

from config import image_size_hw
from pipeline import augment
from pipeline.fast_jpeg import LazyJpeg

View = Callable[[Image.Image | LazyJpeg, np.random.Generator], np.ndarray]
Crop = Callable[..., Image.Image | LazyJpeg]


_PHOTO_LEVELS = 255.0


@dataclasses.dataclass(frozen=True)
class Transform:
    """The steps from an image to a model's input: crops and colours in worker processes, normalisation on the device.

    Attributes:
        views: a function (image, generator) -> uint8 [H, W, C] for each view that is made of an image; uint8 is a
            quarter of what float32 would take on the way to the device.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        takes_jpegs: the functions begin with a crop, so they take a `fast_jpeg.LazyJpeg`, too.
        takes_masks: the one function takes a pair of image and mask, see `mask_augment`.
        keeps_missing: missing pixels of arrays stay NaN; else they become 0, each channel's mean.
        levels: number that stands for 1 in what the functions return: 255; of arrays (DATA.PIXELS), float32, 1.
    """

    views: tuple[View, ...]
    mean: Sequence[float]
    std: Sequence[float]
    takes_jpegs: bool = False
    takes_masks: bool = False
    levels: float = _PHOTO_LEVELS
    keeps_missing: bool = False

    def normalise(self, images: paddle.Tensor) -> paddle.Tensor:
        """Turn uint8 or float32 [B, H, W, C] into normalised float32 [B, C, H, W], on the tensor's device."""
        scale, shift = self._scale_and_shift
        images = images.transpose([0, 3, 1, 2]).astype("float32") * scale + shift
        if self.levels == _PHOTO_LEVELS or self.keeps_missing:
            return images
        return paddle.where(paddle.isnan(images), paddle.zeros_like(images), images)

    @functools.cached_property
    def _scale_and_shift(self) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Return factor and summand that normalise, [1, C, 1, 1]; copied to the device once."""
        std = np.asarray(self.std, np.float64)
        values = (1.0 / (self.levels * std), -np.asarray(self.mean, np.float64) / std)
        scale, shift = (paddle.to_tensor(value.reshape(1, -1, 1, 1).astype(np.float32)) for value in values)
        return scale, shift

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Return the first view of one image as the model takes it, float32 [C, H, W]."""
        return self.normalise(paddle.to_tensor(self.views[0](image, rng)[None].copy()))[0].numpy()


def crop_and_flip(config, scale: Sequence[float], crop: Crop = augment.random_resized_crop) -> View:
    """Return a view: a random crop, resized to DATA.IMAGE_SIZE, and a random flip.

    Args:
        scale: smallest and largest area of the crop as a share of the image; TRAIN.CROP_SCALE goes first.
        crop: `augment.random_resized_crop`, or another function like it.
    """
    size_hw, scale, flip_prob = image_size_hw(config), config.TRAIN.CROP_SCALE or scale, config.TRAIN.FLIP_PROB
    if config.TRAIN.INTERPOLATION == "random" and crop is augment.random_resized_crop:
        crop = augment.crop_by_a_random_filter

    def view(image: Image.Image | LazyJpeg, rng: np.random.Generator) -> np.ndarray:
        return augment.as_pixels(augment.random_flip(crop(image, size_hw, rng, scale), rng, flip_prob))

    return then_turn(config, view)


def then_turn(config, view: View) -> View:
    """Return a view that turns what another one returns, and changes its channels, as the configuration asks for."""
    train, is_array = config.TRAIN, config.DATA.PIXELS == "array"
    if not (train.VERTICAL_FLIP_PROB or train.ROTATE_90 or train.CHANNEL_GAIN or train.CHANNEL_DROP):
        return view

    def turned(image: Image.Image | LazyJpeg, rng: np.random.Generator) -> np.ndarray:
        pixels = augment.turn(view(image, rng), rng, train.VERTICAL_FLIP_PROB, train.ROTATE_90)
        return augment.change_channels(pixels, rng, train.CHANNEL_GAIN, train.CHANNEL_DROP) if is_array else pixels

    return turned


def train_transform(config, *views: View) -> Transform:
    """Return the transform that makes these views for training."""
    return Transform(views, *_normalisation(config.DATA), takes_jpegs=True, levels=levels_of(config))


def crop_share(config) -> float:
    """Return the side of the centre crop as a share of the resized image: DATA.CROP_PCT, or the official rule."""
    return config.DATA.CROP_PCT or (0.875 if max(image_size_hw(config)) <= 224 else 1.0)


def eval_transform(config) -> Transform:
    """Return the evaluation transform: resize, centre crop, normalise; or resize both sides, for DATA.EVAL_RESIZE."""
    size_hw, data = image_size_hw(config), config.DATA
    if data.EVAL_RESIZE == "squash":
        views = (lambda image, rng: augment.as_pixels(augment.squash(image, size_hw)),)
        return Transform(views, *_normalisation(data), levels=levels_of(config))
    crop_pct = crop_share(config)

    def view(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        return augment.as_pixels(augment.resize_and_center_crop(image, size_hw, crop_pct))

    return Transform((view,), *_normalisation(data), levels=levels_of(config))


def levels_of(config) -> float:
    """Return the number that stands for 1 in the pixels of views; see `Transform`."""
    return _PHOTO_LEVELS if config.DATA.PIXELS == "photo" else 1.0


def _normalisation(data) -> tuple[Sequence[float], Sequence[float]]:
    return data.IMAGENET_MEAN, data.IMAGENET_STD
