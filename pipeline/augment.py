"""Per-image augmentation on PIL images and NumPy arrays.

Every random function takes a NumPy `Generator`. `loading.Reader` seeds it from (seed, epoch, image index, view), so
results do not depend on workers. Names and semantics are those of the official MAE recipe: timm's
`rand-m9-mstd0.5-inc1` and torchvision's random resized crop.

Sizes are (height, width) in pixels; PIL's own `size` is (width, height).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from pipeline.fast_jpeg import LazyJpeg, mirror
from pipeline.pixel_array import PixelArray

BICUBIC = Image.Resampling.BICUBIC
_MAX_LEVEL = 10.0


# ---- geometry ----------------------------------------------------------------------------------


def random_resized_crop(
    image: Image.Image | LazyJpeg,
    size_hw: tuple[int, int],
    rng: np.random.Generator,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
    resample: Image.Resampling = BICUBIC,
) -> Image.Image | np.ndarray:
    """Crop a random area and aspect ratio, and resize it; ten tries, then a centre crop.

    Args:
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height, drawn log-uniformly.
        resample: filter; a `LazyJpeg` has its own.
    """
    width, height = image.size
    for _ in range(10):
        crop_h, crop_w = _draw_sides(width * height, rng, scale, ratio)
        if 0 < crop_w <= width and 0 < crop_h <= height:
            top, left = rng.integers(height - crop_h + 1), rng.integers(width - crop_w + 1)
            return _crop_and_resize(image, top, left, crop_h, crop_w, size_hw, resample)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_w = min(width, round(height * aspect))
    crop_h = max(1, min(height, round(crop_w / aspect)))
    return _crop_and_resize(image, (height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w, size_hw, resample)


def crop_by_a_random_filter(
    image: Image.Image | LazyJpeg, size_hw: tuple[int, int], rng: np.random.Generator, scale: Sequence[float]
) -> Image.Image | np.ndarray:
    """Do `random_resized_crop` by a bilinear or a bicubic filter, with even chances, as timm's "random" does."""
    resample = (Image.Resampling.BILINEAR, BICUBIC)[rng.integers(2)]
    return random_resized_crop(image, size_hw, rng, scale, resample=resample)


def random_resized_crop_tf(
    image: Image.Image | LazyJpeg,
    size_hw: tuple[int, int],
    rng: np.random.Generator,
    scale: Sequence[float] = (0.08, 1.0),
    ratio: Sequence[float] = (3 / 4, 4 / 3),
) -> Image.Image | np.ndarray:
    """Crop as the linear probe's recipe does: one draw, its sides clipped to the image (MAE, Appendix A.1)."""
    width, height = image.size
    crop_h, crop_w = _draw_sides(width * height, rng, scale, ratio)
    crop_h, crop_w = min(height, max(1, crop_h)), min(width, max(1, crop_w))
    top, left = rng.integers(height - crop_h + 1), rng.integers(width - crop_w + 1)
    return _crop_and_resize(image, top, left, crop_h, crop_w, size_hw)


def resize_and_center_crop(image: Image.Image, size_hw: tuple[int, int], crop_pct: float) -> Image.Image:
    """Resize (bicubic, aspect kept) to cover size / crop_pct, then crop the centre; the evaluation transform."""
    width, height = image.size
    target_h, target_w = (int(side / crop_pct) for side in size_hw)
    if height * target_w >= width * target_h:  # the width is the tighter side
        resized_w, resized_h = target_w, max(target_h, int(target_w * height / width))
    else:
        resized_w, resized_h = max(target_w, int(target_h * width / height)), target_h
    if resized_w * resized_h > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{width}x{height} pixels are too narrow: they become {resized_w}x{resized_h} before the crop")
    if (resized_w, resized_h) != image.size:
        image = image.resize((resized_w, resized_h), BICUBIC)
    top, left = round((resized_h - size_hw[0]) / 2.0), round((resized_w - size_hw[1]) / 2.0)
    return image.crop((left, top, left + size_hw[1], top + size_hw[0]))


def squash(image: Image.Image, size_hw: tuple[int, int]) -> Image.Image:
    """Resize (bicubic) both sides, whatever the aspect; the evaluation of MAWS's finetuned models."""
    size = (size_hw[1], size_hw[0])
    return image if image.size == size else image.resize(size, BICUBIC)


def random_flip(
    image: Image.Image | np.ndarray, rng: np.random.Generator, prob: float = 0.5
) -> Image.Image | np.ndarray:
    """Mirror left and right."""
    if rng.random() >= prob:
        return image
    return mirror(image) if isinstance(image, np.ndarray) else image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def turn(pixels: np.ndarray, rng: np.random.Generator, flip_prob: float, rotates: bool) -> np.ndarray:
    """Swap top and bottom of pixels [H, W, C], and turn them by a multiple of 90 degrees, where these are asked for."""
    if flip_prob > 0 and rng.random() < flip_prob:
        pixels = pixels[::-1]
    if rotates and pixels.shape[0] == pixels.shape[1]:
        pixels = np.rot90(pixels, rng.integers(4))
    return pixels


def change_channels(pixels: np.ndarray, rng: np.random.Generator, gain: float, drop: float) -> np.ndarray:
    """Multiply the channels of pixels [H, W, C] by random factors, and take some away.

    Args:
        gain: factors are from 1 / (1 + gain) to 1 + gain, log-uniformly; pixels may be above 1 then.
        drop: probability that all pixels of a channel become missing, NaN; one channel at least stays as it is.
    """
    channels = pixels.shape[2]
    if gain > 0:
        pixels = pixels * np.exp(rng.uniform(-math.log1p(gain), math.log1p(gain), channels)).astype(np.float32)
    if drop > 0:
        is_dropped, kept = rng.random(channels) < drop, rng.integers(channels)
        is_dropped[kept] = False
        pixels = np.where(is_dropped, np.float32("nan"), pixels)
    return pixels


def _draw_sides(
    area: float, rng: np.random.Generator, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[int, int]:
    """Draw height and width of a box: a share of the area, and width / height on a logarithmic scale."""
    area = area * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    return round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))


def _crop_and_resize(
    image: Image.Image | LazyJpeg,
    top: int,
    left: int,
    height: int,
    width: int,
    size_hw: tuple[int, int],
    resample: Image.Resampling = BICUBIC,
) -> Image.Image | np.ndarray:
    box = (left, top, left + width, top + height)
    if isinstance(image, LazyJpeg):
        return image.crop_and_resize(box, size_hw)
    if isinstance(image, PixelArray):
        return np.asarray(image.crop(box).resize((size_hw[1], size_hw[0]), resample))
    return image.crop(box).resize((size_hw[1], size_hw[0]), resample)


# ---- single operations: (image, strength, fill) -> image ---------------------------------------


def _affine(image: Image.Image, matrix: tuple, fill: object) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=BICUBIC, fillcolor=fill)


def _solarize_add(image: Image.Image, added: int) -> Image.Image:
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * len(image.getbands()))


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    return (
        image
        if bits >= 8
        else image.point([value & ~(2 ** (8 - bits) - 1) for value in range(256)] * len(image.getbands()))
    )


_APPLY: dict[str, Callable[[Image.Image, float, object], Image.Image]] = {
    "AutoContrast": lambda image, _, fill: ImageOps.autocontrast(image),
    "Equalize": lambda image, _, fill: ImageOps.equalize(image),
    "Invert": lambda image, _, fill: ImageOps.invert(image),
    "Rotate": lambda image, degrees, fill: image.rotate(degrees, resample=BICUBIC, fillcolor=fill),
    "Posterize": lambda image, bits, fill: _posterize(image, int(bits)),
    "Solarize": lambda image, threshold, fill: ImageOps.solarize(image, int(threshold)),
    "SolarizeAdd": lambda image, added, fill: _solarize_add(image, int(added)),
    "Color": lambda image, factor, fill: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor, fill: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor, fill: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor, fill: ImageEnhance.Sharpness(image).enhance(factor),
    "ShearX": lambda image, factor, fill: _affine(image, (1, factor, 0, 0, 1, 0), fill),
    "ShearY": lambda image, factor, fill: _affine(image, (1, 0, 0, factor, 1, 0), fill),
    "TranslateX": lambda image, share, fill: _affine(image, (1, 0, share * image.size[0], 0, 1, 0), fill),
    "TranslateY": lambda image, share, fill: _affine(image, (1, 0, 0, 0, 1, share * image.size[1]), fill),
}
_OPERATIONS = tuple(_APPLY)
_SIGNED = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 0.45, "TranslateY": 0.45}
_ENHANCE = ("Color", "Contrast", "Brightness", "Sharpness")


def strength_at(operation: str, level: float, sign: int) -> float:
    """Return an operation's argument at a level from 0 (none) to 10 (most); timm's "increasing" set.

    Degrees for Rotate, a slope for Shear, a share of the side for Translate, a factor (1 = unchanged) for
    the enhancements, bits for Posterize, a threshold for Solarize, grey levels for SolarizeAdd.
    """
    share = level / _MAX_LEVEL
    if operation in _SIGNED:
        return sign * _SIGNED[operation] * share
    if operation in _ENHANCE:
        return max(0.1, 1.0 + sign * 0.9 * share)
    return {"Posterize": 4 - int(4 * share), "Solarize": 256 - int(256 * share), "SolarizeAdd": int(110 * share)}.get(
        operation, 0.0
    )


def rand_augment(
    image: Image.Image,
    rng: np.random.Generator,
    num_layers: int = 2,
    magnitude: float = 9,
    magnitude_std: float = 0.5,
    prob: float = 0.5,
    fill: object = (124, 116, 104),
) -> Image.Image:
    """Apply random operations (RandAugment, arXiv 1909.13719); the defaults are `rand-m9-mstd0.5-inc1`.

    Args:
        num_layers: operations drawn with replacement from 15.
        magnitude: mean level, 0 to 10.
        magnitude_std: spread of the level, which is clipped to 0 to 10.
        prob: of each drawn operation to be applied.
        fill: colour of the pixels that geometry uncovers.
    """
    for operation in rng.choice(_OPERATIONS, size=num_layers):
        if rng.random() >= prob:
            continue
        level = min(max(rng.normal(magnitude, magnitude_std), 0.0), _MAX_LEVEL)
        sign = 1 if rng.random() < 0.5 else -1
        image = _APPLY[operation](image, strength_at(operation, level, sign), fill)
    return image


# AutoAugment's ImageNet policy (arXiv 1805.09501, Table 9): two (operation, probability, level) a row.
_AUTO_POLICY = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 4), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 7)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 2)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 8), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 2)),
    (("Equalize", 0.0, 7), ("Equalize", 0.8, 8)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 8)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 9)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 3)),
    (("Equalize", 0.4, 7), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 5)),
    (("Invert", 0.6, 4), ("Equalize", 1.0, 8)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 8), ("Equalize", 0.6, 3)),
)


def auto_augment(image: Image.Image, rng: np.random.Generator, fill: object = (124, 116, 104)) -> Image.Image:
    """Apply one of AutoAugment's 25 ImageNet sub-policies; its levels are fixed, its signs are drawn."""
    for operation, prob, level in _AUTO_POLICY[rng.integers(len(_AUTO_POLICY))]:
        if rng.random() < prob:
            sign = 1 if rng.random() < 0.5 else -1
            image = _APPLY[operation](image, _auto_strength(operation, level, sign), fill)
    return image


def _auto_strength(operation: str, level: float, sign: int) -> float:
    """Return an operation's argument on AutoAugment's own scale, where enhancements go from 0.1 to 1.9."""
    share = level / _MAX_LEVEL
    if operation in _ENHANCE:
        return 0.1 + 1.8 * share
    if operation == "Posterize":
        return 4 + int(4 * share)
    return int(256 * share) if operation == "Solarize" else strength_at(operation, level, sign)


def color_jitter(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """Change brightness, contrast and saturation by factors from 1 - strength to 1 + strength, in random order."""
    for operation in rng.permutation(("Brightness", "Contrast", "Color")):
        image = _APPLY[operation](image, rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength), None)
    return image


# ---- pixels ------------------------------------------------------------------------------------


def as_pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    """Return an 8-bit image as uint8 [H, W, C]."""
    pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def as_image(pixels: Image.Image | np.ndarray) -> Image.Image:
    """Return uint8 [H, W, C] as an image."""
    if isinstance(pixels, Image.Image):
        return pixels
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
