"""Sources of images, in files and in memory, and their decoding."""

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from errors import UserError, one_line, printable
from storage.regular_files import read_regular_file

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
_MOST_BYTES = 1 << 30  # of a photo
PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SKIP_ADVICE = "; -opts DATA.BAD_IMAGES skip goes on without it"
FORMATS = tuple(dict.fromkeys(FORMAT_OF_SUFFIX.values()))


def open_image(data: bytes, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Read the header of an encoded image; the pixels are decoded later, by its `load`.

    Raises:
        ValueError: if it is of another format, or claims more pixels than a photo has.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:  # Pillow's message contains a memory address
        raise ValueError(f"its content is of none of the formats {', '.join(formats)}") from error
    if image.width * image.height > Image.MAX_IMAGE_PIXELS:  # Pillow itself refuses twice as many
        raise ValueError(f"claims {image.width}x{image.height} pixels, which looks like a decompression bomb")
    return image


def find_images(folder: Path) -> list[Path]:
    """List the image files below a folder, in order; linked folders count, too.

    A folder that is reached in several ways, by links, is listed once.

    Raises:
        UserError: if a folder cannot be read.
    """
    found, waiting, seen = [], [Path(folder)], set()
    while waiting:
        current = waiting.pop()
        try:
            about = current.stat()
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(current) as entries:
                listed = sorted(entries, key=lambda entry: entry.name, reverse=True)
        except FileNotFoundError:  # a class without images
            continue
        except OSError as error:
            raise UserError(f"{printable(current)}: cannot be listed: {error.strerror}") from error
        waiting += [current / entry.name for entry in listed if entry.is_dir()]
        found += [current / entry.name for entry in listed if _is_image(entry.name) and not entry.is_dir()]
    return sorted(found)


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in FORMAT_OF_SUFFIX


class EncodedImages:
    """Images that are encoded until they are needed.

    Attributes:
        labels: [N] int64; -1 where there is none.
        origin: what lists them, for messages.
        class_names: in label order, if the data set has names.
    """

    labels: np.ndarray
    origin: Path
    class_names: list[str] | None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """Return an encoded image."""
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        raise NotImplementedError

    def alternative(self, index: int, attempt: int) -> int:
        """Return the image to take in the place of one that cannot be read, at an attempt from 1 on."""
        return (index + attempt) % len(self)

    def image(self, index: int) -> Image.Image:
        """Decode an image, see `open_image`."""
        with open_image(self.read(index)) as image:
            image.load()
            return image


class FileImages(EncodedImages):
    """Image files with labels.

    Args:
        paths: of the images.
        labels: [N] int64; -1 where there is none.
        origin: what lists them, for messages.
        class_names: of the folders, in label order, if the labels come from folders.
    """

    def __init__(self, paths: list[Path], labels: np.ndarray, origin: Path, class_names: list[str] | None = None):
        self.paths, self.labels, self.origin, self.class_names = paths, labels, origin, class_names

    def read(self, index: int) -> bytes:
        """Read an image file."""
        return read_regular_file(self.paths[index], _MOST_BYTES)

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        return str(self.paths[index])


class ArrayImages:
    """Images in memory: uint8 [N, H, W] or [N, H, W, C], with labels [N] int64."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, origin: str, class_names: list[str] | None = None):
        self.images, self.labels, self.origin, self.class_names = images, labels, origin, class_names

    def __len__(self) -> int:
        return len(self.images)

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        return f"{self.origin} image {index}"

    def image(self, index: int) -> Image.Image:
        """Return an image."""
        return Image.fromarray(self.images[index])


class Subset(EncodedImages):
    """Some images of a source."""

    def __init__(self, source: "Source", indices: np.ndarray):
        self._source, self.indices = source, np.asarray(indices)
        labels = source.labels
        is_array = isinstance(labels, np.ndarray)
        self.labels = labels[self.indices] if is_array else [labels[index] for index in self.indices]
        self.origin, self.class_names = source.origin, source.class_names
        captions = getattr(source, "captions", None)
        self.captions = None if captions is None else [captions[index] for index in self.indices]

    def read(self, index: int) -> bytes:
        """Return an encoded image."""
        return self._source.read(self.indices[index])

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        return self._source.describe(self.indices[index])

    def image(self, index: int) -> Image.Image:
        """Return an image."""
        return self._source.image(self.indices[index])


Source = EncodedImages | ArrayImages


# ---- decoding -----------------------------------------------------------------------------------


def read_image(source: Source, index: int, channels: int, upright: bool = True) -> Image.Image:
    """Decode an image of a source as 8-bit grey (1 channel), RGB (3) or RGBA (4).

    Args:
        upright: turn it upright by its EXIF orientation (DATA.EXIF_TRANSPOSE).
    """
    return as_mode(source.image(index), channels, upright)


def open_file(path: str | Path) -> Image.Image:
    """Decode an image file; raise UserError if it cannot be."""
    try:
        image = open_image(read_regular_file(Path(path), _MOST_BYTES))
        image.load()
        return image
    except Exception as error:  # damaged files raise nearly anything
        raise UserError(f"{printable(path)}: cannot be read as an image ({one_line(error)})") from error


def as_mode(image: Image.Image, channels: int, upright: bool = True) -> Image.Image:
    """Return a decoded image of any mode as 8-bit grey (1 channel), RGB (3) or RGBA (4); see `read_image`."""
    mode = PIL_MODES[channels]
    if upright:
        with contextlib.suppress(Exception):  # a damaged EXIF block must not cost us an intact image
            ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257.0).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels have mode {image.mode}, whose range is unknown; save it with 8 or 16 bits")
    elif "transparency" in image.info and mode == "RGB":
        image = image.convert("RGBA")  # else Pillow warns of palettes
    return image if image.mode == mode else image.convert(mode)


def why_unreadable(source: Source, index: int, channels: int) -> str | None:
    """Return why an image cannot be decoded; None if it can."""
    try:
        read_image(source, index, channels)
        return None
    except Exception as error:  # damaged files raise nearly anything
        return describe_unreadable(source, index, error)


def describe_unreadable(source: Source, index: int, error: Exception) -> str:
    """Return a message that names an image which cannot be decoded, and the reason."""
    return f"{source.describe(index)}: cannot be read as an image ({one_line(error)})"
