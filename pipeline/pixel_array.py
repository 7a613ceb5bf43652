"""Images of any channels as numbers from 0 to 1 after a stated range (DATA.PIXELS array); beside the path of photos.

A `PixelArray` takes the place of a photo in `augment`'s functions. Pillow resizes channel by channel, in float32.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

_LOWEST_POWER = 1e-10  # -100 dB
_HALF = 0.5


class PixelArray:
    """An image of C channels.

    Attributes:
        pixels: float32 [H, W, C], from 0 to 1.
        shown: one or three channels, for pictures.
        missing: bool [H, W, C], where pixels only stand for numbers that are missing; None: nowhere.
    """

    def __init__(self, pixels: np.ndarray, shown: Sequence[int] = (0,), missing: np.ndarray | None = None):
        self.pixels, self.shown, self.missing = pixels, shown, missing

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, as Pillow has it."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def width(self) -> int:
        """In pixels."""
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        """In pixels."""
        return self.pixels.shape[0]

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        marked = self.pixels if self.missing is None else np.where(self.missing, np.float32("nan"), self.pixels)
        return np.asarray(marked, dtype)

    def crop(self, box: tuple[int, int, int, int]) -> "PixelArray":
        """Return a box (left, top, right, bottom); what lies outside the image is 0."""
        left, top, right, bottom = box
        width, height = self.size
        before, after = (max(-top, 0), max(-left, 0)), (max(bottom - height, 0), max(right - width, 0))

        def cut(array: np.ndarray) -> np.ndarray:
            inside = array[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            is_whole = not any((*before, *after))
            return inside if is_whole else np.pad(inside, [*zip(before, after, strict=True), (0, 0)])

        return PixelArray(cut(self.pixels), self.shown, None if self.missing is None else cut(self.missing))

    def resize(self, size: tuple[int, int], resample: Image.Resampling) -> "PixelArray":
        """Return the image at (width, height); bicubic filters overshoot, and are cut at each channel's own range."""
        if size == self.size:
            return self
        resized = _resize(self.pixels, size, resample)
        missing = None  # where more than half of a pixel is
        if self.missing is not None:
            missing = _resize(self.missing, size, Image.Resampling.BILINEAR) > _HALF
        return PixelArray(resized, self.shown, missing)

    def picture(self) -> Image.Image:
        """Return the shown channels as an 8-bit picture, grey or RGB."""
        shown = np.round(self.pixels[:, :, list(self.shown)] * 255).astype(np.uint8)
        return Image.fromarray(shown[:, :, 0] if shown.shape[2] == 1 else shown)


def _resize(array: np.ndarray, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    """Resize each channel of [H, W, C] by itself, and cut it at its own range."""
    resized = np.empty((size[1], size[0], array.shape[2]), np.float32)
    for channel in range(array.shape[2]):
        plane = np.ascontiguousarray(array[..., channel], np.float32)
        larger = np.asarray(Image.fromarray(plane).resize(size, resample))
        np.clip(larger, plane.min(), plane.max(), out=resized[..., channel])
    return resized


@dataclasses.dataclass(frozen=True)
class PixelFormat:
    """How the numbers of a file become pixels from 0 to 1.

    Attributes:
        channels: C.
        low, high: of each channel, [C]; what lies outside is cut.
        is_decibel: 10 log10 of the numbers comes first.
        bands: channels of the file to take, in this order; None: all.
        nodata: number that means missing; NaN always does.
        fill: what missing pixels become, from 0 to 1, [C].
        shown: one or three channels, for pictures.
    """

    channels: int
    low: tuple[float, ...]
    high: tuple[float, ...]
    is_decibel: bool = False
    bands: tuple[int, ...] | None = None
    nodata: float | None = None
    fill: tuple[float, ...] = ()
    shown: tuple[int, ...] = (0,)

    @classmethod
    def of_config(cls, config) -> "PixelFormat":
        """Return the format that a configuration states."""
        data = config.DATA
        ranges = data.PIXEL_RANGE if isinstance(data.PIXEL_RANGE[0], list) else [data.PIXEL_RANGE] * data.IMAGE_CHANNELS
        low, high = zip(*((float(a), float(b)) for a, b in ranges), strict=True)
        bands = None if data.BANDS is None else tuple(data.BANDS)
        shown = tuple(data.SHOW_BANDS or ((0, 1, 2) if data.IMAGE_CHANNELS == 3 else (0,)))
        is_decibel, fill = data.PIXEL_SCALE == "decibel", tuple(data.IMAGENET_MEAN)
        return cls(data.IMAGE_CHANNELS, low, high, is_decibel, bands, data.NODATA, fill, shown)

    @property
    def needed(self) -> int:
        """Number of channels that a file must have: exactly these without `bands`, else at least."""
        return self.channels if self.bands is None else 1 + max(self.bands)

    def select(self, array: np.ndarray) -> np.ndarray:
        """Return the channels of a file [H, W, channels of the file] that are taken, [H, W, C].

        Raises:
            ValueError: if it has others.
        """
        found = array.shape[2]
        if self.bands is None and found != self.channels:
            raise ValueError(
                f"has {found} channels, not {self.channels} (DATA.IMAGE_CHANNELS); DATA.BANDS chooses some"
            )
        if found < self.needed:
            raise ValueError(f"has {found} channels, and DATA.BANDS asks for number {self.needed - 1}, counted from 0")
        return array if self.bands is None else array[:, :, list(self.bands)]

    def values(self, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of `select` after the scale, [H, W, C], and where they are missing, bool.

        Types that float32 does not hold become float64, so that a narrow range of large numbers stays exact.
        """
        values = array.astype(np.float64 if array.dtype.itemsize > 2 and array.dtype != np.float32 else np.float32)
        is_whole = array.dtype.kind in "bui" and array.dtype.itemsize <= 2
        missing = np.zeros(values.shape, bool) if is_whole else ~np.isfinite(values)
        if self.nodata is not None:
            with np.errstate(over="ignore"):  # a number beyond a file's type is in none of its pixels
                missing |= np.isfinite(values) & (values == values.dtype.type(self.nodata))
        if self.is_decibel:
            values = 10.0 * np.log10(np.maximum(np.where(missing, 1.0, values), _LOWEST_POWER))
        return values, missing

    def pixels(self, array: np.ndarray) -> PixelArray:
        """Return the pixels of a file's numbers [H, W, channels of the file].

        Raises:
            ValueError: if it has other channels, or all is missing.
        """
        values, missing = self.values(self.select(array))
        low, high = (np.asarray(ends, values.dtype) for ends in (self.low, self.high))
        is_any = bool(missing.any())
        if is_any and missing.all():
            raise ValueError("has no known number: all are DATA.NODATA or not finite")
        pixels = np.where(missing, low, values) if is_any else values
        pixels -= low  # in place: an array of many channels is larger than a processor's cache
        pixels /= high - low
        np.clip(pixels, 0.0, 1.0, out=pixels)
        if is_any:
            pixels = np.where(missing, np.asarray(self.fill, np.float32), pixels)
        return PixelArray(pixels.astype(np.float32, copy=False), self.shown, missing if is_any else None)
