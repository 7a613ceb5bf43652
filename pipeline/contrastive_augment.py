"""The augmentations of two views for contrastive methods, on PIL images. They are BYOL's (arXiv 2006.07733, Table 6).

Every random function takes a NumPy `Generator`; see `loading.Reader` for its seed.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from config import image_size_hw
from errors import UserError
from pipeline import augment
from pipeline.fast_jpeg import LazyJpeg
from pipeline.transforms import View, crop_and_flip, then_turn

_CROP_SCALE = (0.08, 1.0)


@dataclasses.dataclass(frozen=True)
class ViewRecipe:
    """Probabilities and strengths of one view, after the crop and the flip, in this order.

    Attributes:
        jitter_prob: of colour jitter.
        jitter: largest change of brightness, contrast, saturation (as factors) and hue (as a part of the circle).
        blur_prob: of a Gaussian blur with a deviation from 0.1 to 2 pixels.
        grey_prob: of losing all colour.
        solarize_prob: of inverting pixels from 128 on.
    """

    jitter_prob: float = 0.0
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    blur_prob: float = 0.0
    grey_prob: float = 0.0
    solarize_prob: float = 0.0


AUGMENTATIONS: dict[str, tuple[ViewRecipe, ViewRecipe]] = {
    "minimal": (ViewRecipe(), ViewRecipe()),
    # For images of some 32 pixels, of which a blur would leave nothing, as SimCLR has it for CIFAR (arXiv 2002.05709).
    "colour": (ViewRecipe(jitter_prob=0.8, grey_prob=0.2), ViewRecipe(jitter_prob=0.8, grey_prob=0.2)),
    "byol": (
        ViewRecipe(jitter_prob=0.8, blur_prob=1.0, grey_prob=0.2),
        ViewRecipe(jitter_prob=0.8, blur_prob=0.1, grey_prob=0.2, solarize_prob=0.2),
    ),
}


def two_views(config, name: str) -> tuple[View, View]:
    """Return the functions that make the two views of an augmentation of `AUGMENTATIONS`.

    TRAIN.CROP_SCALE (default: [0.08, 1]) and TRAIN.FLIP_PROB apply to both.

    Raises:
        UserError: if it changes colours, and images have others than grey or RGB.
    """
    data = config.DATA
    if name != "minimal" and (data.IMAGE_CHANNELS not in (1, 3) or data.PIXELS == "array"):
        raise UserError(
            f"DATA.IMAGE_CHANNELS={data.IMAGE_CHANNELS} DATA.PIXELS={data.PIXELS}: the augmentation {name} changes "
            "colours, and is for grey and RGB photos; choose minimal (CONTRAST.AUGMENTATION, MOCO.AUGMENTATION)"
        )
    if data.PIXELS == "array":
        return crop_and_flip(config, _CROP_SCALE), crop_and_flip(config, _CROP_SCALE)
    return tuple(then_turn(config, _view(config, recipe)) for recipe in AUGMENTATIONS[name])


def _view(config, recipe: ViewRecipe) -> View:
    size_hw, scale = image_size_hw(config), config.TRAIN.CROP_SCALE or _CROP_SCALE
    flip_prob = config.TRAIN.FLIP_PROB

    def view(image: Image.Image | LazyJpeg, rng: np.random.Generator) -> np.ndarray:
        image = augment.random_flip(augment.random_resized_crop(image, size_hw, rng, scale), rng, flip_prob)
        return augment.as_pixels(distort(augment.as_image(image), rng, recipe))

    return view


def distort(image: Image.Image, rng: np.random.Generator, recipe: ViewRecipe) -> Image.Image:
    """Apply colour jitter, blur, greyscale and solarisation, each with its probability."""
    draws = rng.random(4)
    if draws[0] < recipe.jitter_prob:
        image = jitter(image, rng, *recipe.jitter)
    if draws[1] < recipe.blur_prob:
        image = blur(image, rng.uniform(0.1, 2.0))
    if draws[2] < recipe.grey_prob:
        image = to_grey(image)
    return solarize(image) if draws[3] < recipe.solarize_prob else image


def jitter(
    image: Image.Image, rng: np.random.Generator, brightness: float, contrast: float, saturation: float, hue: float
) -> Image.Image:
    """Change brightness, contrast, saturation and hue by random amounts, in random order; grey images have no hue."""
    factors = [rng.uniform(1.0 - strength, 1.0 + strength) for strength in (brightness, contrast, saturation)]
    shift, order = rng.uniform(-hue, hue), rng.permutation(4)
    for number in order:
        if number < 3:
            enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[number]
            image = enhancer(image).enhance(factors[number])
        elif hue > 0:  # the way through HSV rounds colours
            image = shift_hue(image, shift)
    return image


def shift_hue(image: Image.Image, shift: float) -> Image.Image:
    """Turn the hue by a part of the circle, from -0.5 to 0.5; as the original does, by whole steps towards zero."""
    if image.mode != "RGB":
        return image
    turn = int(shift * 255) % 256
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(turn)  # wraps around
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


def blur(image: Image.Image, deviation_px: float) -> Image.Image:
    """Blur by a Gaussian of a standard deviation in pixels."""
    return image.filter(ImageFilter.GaussianBlur(deviation_px))


def to_grey(image: Image.Image) -> Image.Image:
    """Replace colour by luminance; the mode stays."""
    return image if image.mode == "L" else image.convert("L").convert(image.mode)


def solarize(image: Image.Image) -> Image.Image:
    """Invert pixels from 128 on."""
    return ImageOps.solarize(image, 128)
