"""Sources of encoded images: what they have in common, and files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError


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
        """Decode an image; one that claims more pixels than a photo has is refused before that."""
        try:
            opened = Image.open(io.BytesIO(self.read(index)))
        except UnidentifiedImageError as error:  # which names an address in memory
            raise ValueError("its content is of no image format that Pillow knows") from error
        with opened as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:  # Pillow itself refuses twice as many
                raise ValueError(f"claims {image.width}x{image.height} pixels, which looks like a decompression bomb")
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
        return self.paths[index].read_bytes()

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        return str(self.paths[index])
