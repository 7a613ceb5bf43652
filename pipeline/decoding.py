"""Pictures from files, of every kind that a user may give: one reader, and one rule for each kind."""

import contextlib
import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from storage.files import read_file, reading

# Image files of a data set have one of these suffixes. Pillow is told the formats, because it would go by content, and
# start Ghostscript for an EPS file of any name.
FORMAT_OF_SUFFIX = {
    **dict.fromkeys((".jpg", ".jpeg"), "JPEG"),
    ".png": "PNG",
    ".bmp": "BMP",
    ".webp": "WEBP",
    ".gif": "GIF",
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm"), "PPM"),
}
ARRAY_SUFFIXES = (".npy", ".npz", ".dcm", ".dicom")  # images only where DATA.PIXELS is array
FORMATS = tuple(dict.fromkeys(FORMAT_OF_SUFFIX.values()))
PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}

# Pillow warns of more than MAX_IMAGE_PIXELS, and refuses twice as many, 179 million: phones make 108 million.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


_has_arrays = False
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # how such files begin
AS_ARRAYS = "DATA.PIXELS array reads them"
_AS_ARRAY = "DATA.PIXELS array reads it whole, see docs/any_images.md"


def allow_arrays(is_allowed: bool) -> None:
    """Count files of NumPy and DICOM among the images of data sets, or not (DATA.PIXELS)."""
    global _has_arrays
    _has_arrays = is_allowed


def takes_arrays() -> bool:
    """Return True if files of NumPy and DICOM count as images."""
    return _has_arrays


def is_image_name(name: str) -> bool:
    """Return True if a file in a folder of images is one by its suffix."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in FORMAT_OF_SUFFIX or (_has_arrays and suffix in ARRAY_SUFFIXES)


def most_pixels() -> int:
    """Return the number of pixels from which on Pillow refuses an image."""
    return 2 * Image.MAX_IMAGE_PIXELS


def allow_pixels(count: int | None) -> None:
    """Set the largest image that Pillow decodes, in pixels (DATA.MAX_PIXELS); None: its own limit."""
    if count is not None:
        Image.MAX_IMAGE_PIXELS = -(-count // 2)


def open_image(data: bytes, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Read the header of an encoded image; the pixels are decoded later, by its `load`.

    Raises:
        ValueError: if it is of another format, or claims more pixels than are allowed.
    """
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:  # Pillow's message contains a memory address
        advice = f"; {_AS_ARRAY}" if data.startswith(_TIFF) else ""
        raise ValueError(f"its content is of none of the formats {', '.join(formats)}{advice}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"claims more than {most_pixels():,} pixels; a decompression bomb? DATA.MAX_PIXELS allows more"
        ) from error


def decode(data: bytes, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Decode an image; see `open_image`."""
    with open_image(data, formats) as image:
        image.load()
        return image


def lost_as_photo(data: bytes) -> str | None:
    """Return what an encoded image has beyond the first page and 8 bits, which photos are cut to; None: nothing."""
    with open_image(data) as image:
        layout = str(image.tile[0].args) if image.tile else ""
        bits = 16 if image.mode.startswith("I;16") or ";16" in layout else 8
        pages = 1
        if image.format == "TIFF":
            pages, bits = image.n_frames, max(bits, *np.ravel(image.tag_v2.get(258, 8)).tolist())
    found = [f"{pages} pages, of which the first is read"] * (pages > 1)
    found += [f"{bits} bits per channel, of which 8 are read"] * (bits > 8)
    return f"has {' and '.join(found)}; {_AS_ARRAY}" if found else None


def open_file(path: str | Path) -> Image.Image:
    """Decode an image file; raise UserError if it cannot be."""
    with reading(path, "an image"):
        return decode(read_file(path))


def image_suffix(image: Image.Image) -> str:
    """Return the suffix that the file of a decoded image has by its content."""
    name = "JPEG" if image.format == "MPO" else image.format  # a JPEG with further pictures
    return next(suffix for suffix, known in FORMAT_OF_SUFFIX.items() if known == name)


def as_mode(image: Image.Image, channels: int, upright: bool = True) -> Image.Image:
    """Return a decoded image of any mode as 8-bit grey (1 channel), RGB (3) or RGBA (4).

    16-bit grey is divided by 257. What has an alpha channel or a transparent colour loses it in grey and RGB.

    Args:
        upright: turn it upright by its EXIF orientation.

    Raises:
        ValueError: for 32-bit pixels, whose range is unknown.
    """
    mode = PIL_MODES[channels]
    if upright:
        with contextlib.suppress(Exception):  # a damaged EXIF block must not cost us an intact image
            ImageOps.exif_transpose(image, in_place=True)
    image = _in_8_bits(image)
    if image.mode == mode:
        return image
    if "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns of palettes, and puts the transparent colour into grey
    return image if image.mode == mode else image.convert(mode)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Return an image whose mode Pillow converts into every other one."""
    is_16_bit_pgm = image.mode == "I" and image.format == "PPM"  # Pillow scales it to 65,535
    if image.mode.startswith("I;16") or is_16_bit_pgm:  # Pillow would clip at 255 instead of scaling
        return Image.fromarray((np.asarray(image).astype(np.float32) / 257.0).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels have mode {image.mode}, whose range is unknown; save it with 8 or 16 bits")
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    if image.mode in ("La", "RGBa"):  # alpha is multiplied in
        return image.convert(image.mode.upper())
    return image
