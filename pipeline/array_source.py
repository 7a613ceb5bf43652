"""A data set whose images are arrays of any channels, see `pixel_array`."""

from pathlib import Path

import numpy as np
from PIL import Image

from errors import UserError
from pipeline.array_files import decode
from pipeline.array_tags import not_applied
from pipeline.pixel_array import PixelArray, PixelFormat
from pipeline.sources import Source, read_image
from pipeline.wrapped_sources import Wrapper


class ArraySource(Wrapper):
    """Another source, whose images become `PixelArray`.

    Args:
        source: whose files hold arrays; one whose images are in memory will do, too.
        form: how its numbers become pixels.
    """

    def __init__(self, source: Source, form: PixelFormat):
        super().__init__(source)
        self._form, self._was_encoded = form, source.is_encoded
        self.is_encoded = False  # as a photo
        self.numbers = self._read_numbers
        self.image = lambda index: form.pixels(self.numbers(index))
        self.check_channels, self.lost = self._check_channels, self._lost

    def _read_numbers(self, index: int) -> np.ndarray:
        if self._was_encoded:
            return decode(self._source.read(index), Path(self.describe(index)).suffix, self._form.needed)
        array = np.asarray(self._source.image(index))
        return array[:, :, None] if array.ndim == 2 else array

    def _lost(self, index: int) -> str | None:
        return not_applied(self._source.read(index), self._form.nodata) if self._was_encoded else None

    def _check_channels(self, channels: int) -> None:
        if channels != self._form.channels:
            raise UserError(
                f"DATA.IMAGE_CHANNELS={channels}: {self.origin} is read with {self._form.channels} channels"
            )


def as_configured(config, source: Source) -> Source:
    """Return a source as DATA.PIXELS has it: as it is, or with arrays for images."""
    if config.DATA.PIXELS == "photo" and source.holds_arrays:
        raise UserError(
            f"{source.origin}: its images are arrays, not photos; set DATA.PIXELS array and DATA.PIXEL_RANGE"
        )
    return source if config.DATA.PIXELS == "photo" else ArraySource(source, PixelFormat.of_config(config))


def read_picture(source: Source, index: int, upright: bool = True) -> Image.Image:
    """Return an image as an RGB picture; of an array, its shown channels."""
    return as_picture(read_image(source, index, 3, upright)).convert("RGB")


def as_picture(image: object) -> object:
    """Return an image that can be drawn: of an array, its shown channels."""
    return image.picture() if isinstance(image, PixelArray) else image
