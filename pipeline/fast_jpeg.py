"""JPEGs for training, decoded and cropped several times faster than by Pillow, with slightly other pixels.

Needs simplejpeg and OpenCV (requirements/fast.txt). The crop is known before the photo is decoded, so that a photo much
larger than its crop's result is decoded at a half or less. Evaluation does without: its pixels are Pillow's.
"""

import functools
import math

import numpy as np

from errors import UserError
from pipeline.decoding import most_pixels, open_image

_ORIENTATION = 0x0112  # EXIF
_AREA_FROM = 1.5  # below it, few pixels have no part in linear interpolation
_COLORSPACES = {1: "GRAY", 3: "RGB"}


class LazyJpeg:
    """A JPEG whose header was read.

    Attributes:
        size: (width, height) in pixels, as Pillow has it.
    """

    def __init__(self, data: bytes, size: tuple[int, int], channels: int):
        self.size, self._data, self._channels = size, data, channels
        self._whole: np.ndarray | None = None  # for the next crop

    def crop_and_resize(self, box: tuple[int, int, int, int], size_hw: tuple[int, int]) -> np.ndarray:
        """Return the pixels uint8 [H, W, C] of a box (left, top, right, bottom), resized.

        Pillow's bicubic filter widens as it shrinks. Nearest to it comes OpenCV's average of the pixels under each new
        one where it shrinks much, linear interpolation where it shrinks little, and bicubic where it enlarges.
        """
        cv2 = _modules()[1]
        left, top, right, bottom = box
        needed_hw = (size_hw[0] * self.size[1] / (bottom - top), size_hw[1] * self.size[0] / (right - left))
        pixels = self._decode(needed_hw)
        # JPEGs are scaled by eighths; a side that is not a multiple is rounded up, and its last pixel covers less.
        scale_x, scale_y = (
            round(8 * side / whole) / 8 for side, whole in zip(pixels.shape[1::-1], self.size, strict=True)
        )
        rows = slice(round(top * scale_y), max(round(bottom * scale_y), round(top * scale_y) + 1))
        columns = slice(round(left * scale_x), max(round(right * scale_x), round(left * scale_x) + 1))
        crop = pixels[rows, columns]
        shrinks_by = min(side / new for side, new in zip(crop.shape, size_hw, strict=False))
        much = cv2.INTER_AREA if shrinks_by >= _AREA_FROM else cv2.INTER_LINEAR
        method = much if shrinks_by >= 1 else cv2.INTER_CUBIC
        return cv2.resize(crop, (size_hw[1], size_hw[0]), interpolation=method).reshape(*size_hw, self._channels)

    def _decode(self, needed_hw: tuple[float, float]) -> np.ndarray:
        """Decode whole, or at a scale of a half or less that has the needed height and width; others cost more time.

        A whole photo is kept for further crops that need it; a crop that needs less looks the same without it.
        """
        width, height = self.size
        shrinks = height >= 2 * needed_hw[0] and width >= 2 * needed_hw[1]
        if self._whole is not None and not shrinks:
            return self._whole
        least_hw = [math.ceil(needed) for needed in needed_hw] if shrinks else [height, width]
        try:
            pixels = _modules()[0].decode_jpeg(
                self._data,
                colorspace=_COLORSPACES[self._channels],
                fastdct=True,
                fastupsample=True,
                min_height=least_hw[0],
                min_width=least_hw[1],
                min_factor=2 if shrinks else 1,
            )
        except ValueError:  # what only Pillow can read, or can say what is wrong with
            with open_image(self._data, ["JPEG"]) as image:
                pixels = np.asarray(image.convert("L" if self._channels == 1 else "RGB"))
            pixels = pixels.reshape(*pixels.shape[:2], self._channels)
        if pixels.shape[:2] == (height, width):
            self._whole = pixels
        return pixels


def open_jpeg(data: bytes, channels: int, upright: bool = True) -> LazyJpeg | None:
    """Return an encoded image if it is a JPEG for this module (grey or colour, no bomb), else None.

    Args:
        upright: leave images with another EXIF orientation to Pillow.
    """
    if not data.startswith(b"\xff\xd8") or channels not in _COLORSPACES:
        return None
    try:
        height, width, colorspace, _ = _modules()[0].decode_jpeg_header(data)
    except ValueError:
        return None
    if colorspace not in ("Gray", "YCbCr", "RGB") or width * height > most_pixels():
        return None
    if upright and not _is_upright(data):
        return None
    return LazyJpeg(data, (width, height), channels)


def _is_upright(data: bytes) -> bool:
    if (
        b"Exif" not in data and b"rientation" not in data
    ):  # EXIF anywhere in the file, or XMP, which Pillow reads as well
        return True
    with open_image(data, ["JPEG"]) as image:  # reads the header only
        return image.getexif().get(_ORIENTATION, 1) == 1


@functools.cache
def _modules():
    """Import what this module needs."""
    try:
        import cv2
        import simplejpeg
    except ImportError as error:
        raise UserError(
            f"DATA.FAST_DECODE True needs {error.name}: pip install -r requirements/fast.txt, or set it False"
        ) from error
    cv2.setNumThreads(0)  # the workers are the parallelism
    return simplejpeg, cv2


def mirror(pixels: np.ndarray) -> np.ndarray:
    """Swap left and right of [H, W, C]; of uint8, NumPy takes 20 times as long to copy such a view."""
    if pixels.dtype != np.uint8:
        return pixels[:, ::-1]
    return _modules()[1].flip(pixels, 1).reshape(pixels.shape)


def check_installed() -> None:
    """Raise UserError if a package is missing."""
    _modules()
