"""Files with the pixels' classes of photos: a palette PNG of each, and the photo with its classes painted over it."""

import collections
import hashlib
import itertools
import os
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from errors import UserError
from measures.prediction import Classifier
from pages import segments
from pipeline.array_source import read_picture
from pipeline.sources import Source
from storage import atomic, results
from storage.files import read_file

MASKS, OVERLAYS, _CLASSES = "masks", "overlays", "classes.txt"
_QUALITY = 90
_PALETTE = 256  # colours of a PNG with a palette
_ENDINGS = (".png", ".jpg")
_LONGEST = 200  # bytes of a name
_LARGEST_JPEG = 65_500  # pixels of a side


def file_names(source: Source) -> list[str]:
    """Return a name without ending for each photo: its path below the folder that all photos share.

    Photos whose names differ in their endings only keep them, and a number tells others that would share a name; one
    photo has one name, however often it is listed. Those of shards are numbered.
    """
    paths = [source.path(index) for index in range(len(source))]
    if None in paths:
        return [f"{index:06d}" for index in range(len(source))]
    absolute = [os.path.abspath(path) for path in paths]
    top = os.path.commonpath([os.path.dirname(path) for path in absolute])
    plain = {path: _plain(os.path.relpath(path, top)) for path in dict.fromkeys(absolute)}
    stems = {path: str(PurePosixPath(name).with_suffix("")) for path, name in plain.items()}
    counts = collections.Counter(stem.lower() for stem in stems.values())
    taken = {str(parent).lower() for name in plain.values() for parent in PurePosixPath(name).parents}  # folders
    found: dict[str, str] = {}
    for path in sorted(plain, key=lambda path: counts[stems[path].lower()]):  # those that share nothing come first
        first = stems[path] if counts[stems[path].lower()] == 1 else plain[path]
        names = itertools.chain([first], (f"{first}-{number}" for number in itertools.count(2)))
        found[path] = next(name for name in names if not {f"{name}{end}".lower() for end in _ENDINGS} & taken)
        taken |= {f"{found[path]}{end}".lower() for end in _ENDINGS}
    return [found[path] for path in absolute]


def _plain(name: str) -> str:
    """Return a relative path that is safe to list in a text file, with parts that leave room for an ending."""
    parts = []
    for part in PurePosixPath(name).parts:
        part = "".join(char if char.isprintable() and not "\ud800" <= char <= "\udfff" else "_" for char in part)
        if len(os.fsencode(part)) > _LONGEST:
            stem, suffix = os.path.splitext(part)
            digest = hashlib.sha256(part.encode()).hexdigest()[:8]
            kept = stem.encode()[: _LONGEST - 40].decode(errors="ignore")
            part = f"{kept}-{digest}{suffix[:20]}"
        parts.append(part)
    return "/".join(parts)


class MaskFiles:
    """Writes `masks/NAME.png`, `overlays/NAME.jpg` and `classes.txt` into a directory.

    A mask has the photo's size, and the number of the class in each pixel: an index into a palette, or, with more
    than 256 classes, 16-bit grey. The names of the classes are the lines of classes.txt.

    Args:
        directory: may hold the files of an earlier run.
        model: a segmenter.
        source: of the photos.

    Raises:
        UserError: if the directory holds files of these names that are not from here, or masks of other classes, or
            one of the photos would be overwritten.
    """

    def __init__(self, directory: Path, model: Classifier, source: Source):
        self.directory, self._model, self._source = directory, model, source
        self._names, self._colours = file_names(source), segments.palette(len(model.class_names))
        files = [path for index in range(len(source)) for path in self.paths(index)]
        photos = {os.path.realpath(source.path(index) or "") for index in range(len(source))}
        over = next((path for path in files if os.path.realpath(path) in photos), None)
        if over is not None:
            raise UserError(f"-masks {directory}: {over} is one of the photos, and would be overwritten")
        names = dict.fromkeys(str(path.relative_to(directory)) for path in files)
        results.claim(directory, [*names, _CLASSES], "-masks", only_check=True)
        text = "".join(f"{' '.join(name.split())}\n" for name in model.class_names)
        if (directory / _CLASSES).is_file() and read_file(directory / _CLASSES) != text.encode("utf-8"):
            raise UserError(f"-masks {directory}: holds masks of other classes; choose another directory")
        results.claim(directory, [*names, _CLASSES], "-masks")
        atomic.write_text(directory / _CLASSES, text)

    def paths(self, index: int) -> tuple[Path, Path]:
        """Return the files of a photo's mask and overlay."""
        name = self._names[index]
        return self.directory / MASKS / f"{name}.png", self.directory / OVERLAYS / f"{name}.jpg"

    def overlay(self, index: int) -> Image.Image:
        """Return the photo with its classes painted over it, which is written already."""
        return Image.open(self.paths(index)[1], formats=["JPEG"])

    def legend(self, classes: Collection[str]) -> str:
        """Return the colours of some classes as HTML."""
        names = self._model.class_names
        return segments.legend([label for label in range(len(names)) if names[label] in classes], names, self._colours)

    def is_written(self, index: int) -> bool:
        """Return True if the files of a photo are there."""
        return all(path.is_file() for path in self.paths(index))

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
        photo = np.asarray(read_picture(self._source, index, self._model.config.DATA.EXIF_TRANSPOSE))
        painted = Image.fromarray(segments.paint(photo, labels, self._colours))
        painted.thumbnail((_LARGEST_JPEG, _LARGEST_JPEG))
        _save(overlay, lambda file: painted.save(file, "JPEG", quality=_QUALITY))


def _save(path: Path, save: Callable[[Path], None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as temporary:
            save(temporary)
    except OSError as error:
        raise UserError(f"-masks: {path} cannot be written: {error.strerror or error}") from error
