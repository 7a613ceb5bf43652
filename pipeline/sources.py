"""Sources of encoded images: what they have in common, and files."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from errors import UserError, printable
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
FORMATS = tuple(dict.fromkeys(FORMAT_OF_SUFFIX.values()))


def open_image(data: bytes, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Read the header of an encoded image; the pixels are decoded later, by its `load`.

    Raises:
        ValueError: if it is of another format, or claims more pixels than a photo has.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:  # which names an address in memory
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
