"""Files with the pixels' classes of photos: a palette PNG of each, and the photo with its classes painted over it."""

import collections
import os
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from errors import UserError
from measures.prediction import Classifier
from pages import segments
from pipeline.sources import Source, read_image
from storage import atomic, results

_MASKS, _OVERLAYS, _CLASSES = "masks", "overlays", "classes.txt"
_QUALITY = 90
_PALETTE = 256  # colours of a PNG with a palette


def file_names(source: Source) -> list[str]:
    """Return a name without ending for each photo: its path below the folder that all photos share.

    Photos whose names differ in their endings only keep them; those of shards are numbered.
    """
    paths = [source.path(index) for index in range(len(source))]
    if None in paths:
        return [f"{index:06d}" for index in range(len(source))]
    absolute = [os.path.abspath(path) for path in paths]
    top = os.path.commonpath([os.path.dirname(path) for path in absolute])
    relative = [PurePosixPath(os.path.relpath(path, top)) for path in absolute]
    stems = [str(path.with_suffix("")) for path in relative]
    photos_of = collections.defaultdict(set)
    for stem, path in zip(stems, relative, strict=True):
        photos_of[stem.lower()].add(path)
    return [
        stem if len(photos_of[stem.lower()]) == 1 else str(path) for stem, path in zip(stems, relative, strict=True)
    ]


class MaskFiles:
    """Writes `masks/NAME.png`, `overlays/NAME.jpg` and `classes.txt` into a directory.

    A mask has the photo's size, and the number of the class in each pixel: an index into a palette, or, with more
    than 256 classes, 16-bit grey. The names of the classes are the lines of classes.txt.

    Args:
        directory: may hold the files of an earlier run.
        model: a segmenter.
        source: of the photos.

    Raises:
        UserError: if the directory holds files of these names that are not from here.
    """

    def __init__(self, directory: Path, model: Classifier, source: Source):
        self.directory, self._model, self._source = directory, model, source
        self._names, self._colours = file_names(source), segments.palette(len(model.class_names))
        files = [str(path.relative_to(directory)) for index in range(len(source)) for path in self.paths(index)]
        results.claim(directory, [*dict.fromkeys(files), _CLASSES], "-masks")
        lines = (" ".join(name.split()) for name in model.class_names)
        atomic.write_text(directory / _CLASSES, "".join(f"{line}\n" for line in lines))

    def paths(self, index: int) -> tuple[Path, Path]:
        """Return the files of a photo's mask and overlay."""
        name = self._names[index]
        return self.directory / _MASKS / f"{name}.png", self.directory / _OVERLAYS / f"{name}.jpg"

    def overlay(self, index: int) -> Image.Image:
        """Return the photo with its classes painted over it, which is written already."""
        return Image.open(self.paths(index)[1], formats=["JPEG"])

    def legend(self, classes: Collection[str]) -> str:
        """Return the colours of some classes as HTML."""
        names = self._model.class_names
        return segments.legend([label for label in range(len(names)) if names[label] in classes], names, self._colours)

    def write(self, index: int, labels: np.ndarray) -> None:
        """Write the files of a photo.

        Args:
            labels: [H, W].
        """
        mask, overlay = self.paths(index)
        if len(self._colours) <= _PALETTE:
            picture = Image.fromarray(labels.astype(np.uint8), "P")
            picture.putpalette(self._colours.tobytes())
        else:
            picture = Image.fromarray(labels.astype(np.uint16))
        _save(mask, lambda file: picture.save(file, "PNG"))
        photo = np.asarray(read_image(self._source, index, 3, self._model.config.DATA.EXIF_TRANSPOSE))
        painted = Image.fromarray(segments.paint(photo, labels, self._colours))
        _save(overlay, lambda file: painted.save(file, "JPEG", quality=_QUALITY))


def _save(path: Path, save: Callable[[Path], None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as temporary:
            save(temporary)
    except OSError as error:
        raise UserError(f"-masks: {path} cannot be written: {error.strerror or error}") from error
