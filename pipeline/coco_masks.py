"""Images with COCO's polygons as masks of segmentation. No Paddle here.

A JSON file has images, annotations and categories. Uncovered pixels are background, label 0; the categories follow in
the order of their ids, which have gaps. A later annotation covers an earlier one. `segmentation` is a list of polygons
[x, y, x, y, ...] or a run-length code, whose counts go down the columns.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from errors import UserError, abridge, one_line, printable
from pipeline.file_images import FileImages
from pipeline.masks import MOST_CLASSES
from pipeline.sources import BadMask
from storage.files import read_file, reading

BACKGROUND = "background"
_MOST_BYTES, _MOST_PIXELS = 2 << 30, 1 << 28
_LARGEST = 1e7  # coordinate
_FILES = {
    split: [
        *(f"annotations/instances_{name}.json" for name in names),
        *(f"annotations/{name}.json" for name in names),
        *(f"{name}.json" for name in names),
        *(f"{name}/_annotations.coco.json" for name in names),
    ]
    for split, names in {"train": ("train2017", "train"), "val": ("val2017", "val", "valid")}.items()
}
_ADVICE = 'expected COCO\'s {"images": [...], "annotations": [...], "categories": [...]}'


class CocoImages(FileImages):
    """Image files whose masks are drawn from polygons and run lengths.

    Args:
        paths: of the images.
        sizes_hw: of the images, as the file of annotations says.
        drawn: a list of (label, segmentation) for each image.
        names: of the classes, in label order.
        origin: the file of annotations.
        notes: on what was left out.
    """

    has_masks = True

    def __init__(
        self,
        paths: Sequence[str],
        sizes_hw: np.ndarray,
        drawn: Sequence[list],
        names: list[str],
        origin: Path,
        notes: list[str],
    ):
        super().__init__(paths, np.full(len(paths), -1, np.int64), origin, None, notes)
        self.class_names, self._sizes_hw, self._label_of = names, sizes_hw, np.arange(len(names))
        texts = [json.dumps(entries).encode() for entries in drawn]  # objects would take ten times the memory
        self._ends, self._block = np.cumsum([0, *map(len, texts)]), b"".join(texts)

    def mask(self, index: int) -> np.ndarray:
        """Return the labels of an image's pixels, int16 [H, W].

        Raises:
            BadMask: if an annotation cannot be drawn.
        """
        labels = np.zeros(self._sizes_hw[index], np.int16)
        try:
            for label, segmentation in json.loads(self._block[self._ends[index] : self._ends[index + 1]]):
                labels[draw_segmentation(segmentation, labels.shape)] = label
        except ValueError as error:
            raise BadMask(f"{error} (in {self.origin.name})") from error
        return self._label_of[labels].astype(np.int16)

    def count_classes(self) -> int:
        """Return the number of categories, and the background."""
        return len(self.class_names)

    def use_class_names(self, class_names: list[str]) -> None:
        """Give the pixels the labels that their classes have in another order of names."""
        unknown = [name for name in self.class_names if name not in class_names]
        if unknown:
            raise UserError(
                f"{self.origin}: has classes that were not trained: {abridge(unknown, 8)}; the classes are "
                f"{abridge(class_names, 20)}"
            )
        self._label_of = np.array([class_names.index(name) for name in self.class_names])[self._label_of]
        self.class_names = class_names

    def summary(self) -> str:
        """Return a line with the numbers of images and classes."""
        return f"{len(self):,} images with masks of {len(self.class_names):,} classes"


def draw_segmentation(segmentation: object, size_hw: tuple[int, int]) -> np.ndarray:
    """Return which pixels an annotation covers, bool [H, W].

    Raises:
        ValueError: if it is neither a list of polygons nor a run-length code of this size.
    """
    covered = np.zeros(size_hw, bool)
    if isinstance(segmentation, dict):
        return _decode_runs(segmentation, size_hw)
    if not isinstance(segmentation, list):
        raise ValueError(f"its annotation is {printable(segmentation, 40)}, neither polygons nor run lengths")
    for polygon in segmentation:
        is_whole = isinstance(polygon, list) and len(polygon) % 2 == 0 and all(map(_is_coordinate, polygon))
        points = np.array(polygon if is_whole else [], np.float64).reshape(-1, 2)
        if len(points) < 3:
            raise ValueError(f"its polygon {printable(polygon, 60)} is not a list of at least three x, y")
        covered |= fill_polygon(points, size_hw)
    return covered


def _is_coordinate(value: object) -> bool:
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST


def fill_polygon(points: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Return which pixels have their centre inside a polygon, by the even-odd rule, bool [H, W].

    Args:
        points: [n, 2] of x and y, in pixels from the upper left corner of the image.
    """
    height, width = size_hw
    crossings = np.zeros((height, width + 1), np.int32)
    following = np.roll(points, -1, axis=0)
    for (x0, y0), (x1, y1) in zip(points.tolist(), following.tolist(), strict=True):
        if y0 == y1:
            continue
        low, high = min(y0, y1), max(y0, y1)
        first, last = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in (low, high))  # centres from low to below high
        rows = np.arange(first, last)
        columns = np.ceil(x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0) - 0.5)
        np.add.at(crossings, (rows, np.clip(columns, 0, width).astype(np.int64)), 1)
    return np.cumsum(crossings[:, :width], axis=1) % 2 == 1


def _decode_runs(code: dict, size_hw: tuple[int, int]) -> np.ndarray:
    """Return the pixels of a run-length code: runs of uncovered and covered pixels in turn, down the columns."""
    counts = code.get("counts")
    counts = _unpack_counts(counts) if isinstance(counts, str) else counts
    if code.get("size") != list(size_hw) or not isinstance(counts, list):
        raise ValueError(f"its run-length code has the size {code.get('size')}; the image is {list(size_hw)}")
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != size_hw[0] * size_hw[1]:
        raise ValueError("its run-length code is damaged: its counts do not add up to the image's pixels")
    covered = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return covered.reshape(size_hw[::-1]).T


def _unpack_counts(text: str) -> list[int]:
    """Unpack counts as COCO's tools write them: five bits in a character, from the third on as differences."""
    counts, value, shift = [], 0, 0
    for char in text:
        bits = ord(char) - 48
        if not 0 <= bits < 64:
            raise ValueError("its run-length code is damaged: it has characters that are not part of one")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def open_coco(root: Path, split: str) -> CocoImages:
    """Open a split.

    Raises:
        UserError: if there is no file of annotations, or it is damaged.
    """
    file = next((root / name for name in _FILES[split] if (root / name).is_file()), None)
    if file is None:
        raise UserError(f"{root}: no annotations of the split {split}; expected one of {', '.join(_FILES[split])}")
    with reading(file, "a JSON file", advice=_ADVICE):
        table = json.loads(read_file(file, _MOST_BYTES))
        if not isinstance(table, dict) or not all(
            isinstance(table.get(key), list) for key in ("images", "annotations", "categories")
        ):
            raise ValueError("one of its lists is missing")
    try:
        return _read_table(table, file, root, split)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: {one_line(error)} is missing or of another kind; {_ADVICE}") from error


def _read_table(table: dict, file: Path, root: Path, split: str) -> CocoImages:
    categories = sorted((_integer(category, "id"), _text(category, "name")) for category in table["categories"])
    names = [BACKGROUND, *(name for _, name in categories)]
    if len(set(names)) < len(names) or len({number for number, _ in categories}) < len(categories):
        raise UserError(
            f"{file}: categories share an id or a name, or one is called {BACKGROUND}, as pixels without one are here"
        )
    if len(names) >= MOST_CLASSES:
        raise UserError(f"{file}: {len(categories):,} categories; fewer than {MOST_CLASSES:,} are taken")
    label_of = {number: label for label, (number, _) in enumerate(categories, start=1)}
    images = table["images"]
    if not images:
        raise UserError(f"{file}: lists no images")
    folder = _find_images(root, file, split, _text(images[0], "file_name"))
    drawn: dict[int, list] = {_integer(image, "id"): [] for image in images}
    if len(drawn) < len(images):
        raise UserError(f"{file}: images share an id")
    strange = []
    for annotation in table["annotations"]:
        image, category = _integer(annotation, "image_id"), _integer(annotation, "category_id")
        if image not in drawn or category not in label_of or not annotation.get("segmentation"):
            strange.append(f"annotation {annotation.get('id')} of image {image}, category {category}")
            continue
        drawn[image].append([label_of[category], annotation["segmentation"]])
    what = "annotations are of no listed image or category, or without a segmentation"
    notes = [f"{file}: {len(strange):,} {what}, and are left out: {abridge(strange, 3)}"] if strange else []
    if strange and len(strange) == len(table["annotations"]):
        raise UserError(f"{file}: all {len(strange):,} {what}: {abridge(strange, 3)}")
    sizes_hw = np.array([_size(image, file) for image in images], np.int64)
    paths = [str(folder / _text(image, "file_name")) for image in images]
    outside = [path for path in paths if ".." in Path(path).parts or not Path(path).is_relative_to(folder)]
    if outside:
        raise UserError(f"{file}: images outside {folder}: {abridge(outside, 3)}")
    return CocoImages(paths, sizes_hw, list(drawn.values()), names, file, notes)


def _integer(entry: dict, key: str) -> int:
    """Return an entry that is an integer; raise KeyError or ValueError otherwise."""
    if type(entry[key]) is not int:
        raise ValueError(f"{key} {printable(repr(entry[key]), 40)}, which must be an integer,")
    return entry[key]


def _text(entry: dict, key: str) -> str:
    """Return an entry that is a text; raise KeyError or ValueError otherwise."""
    if not isinstance(entry[key], str) or not entry[key]:
        raise ValueError(f"{key} {printable(repr(entry[key]), 40)}, which must be a text,")
    return entry[key]


def _size(image: dict, file: Path) -> tuple[int, int]:
    """Return height and width of an image."""
    height, width = _integer(image, "height"), _integer(image, "width")
    if min(height, width) < 1 or height * width > _MOST_PIXELS:
        raise UserError(
            f"{file}: {printable(image['file_name'])} has {printable(width, 20)} x {printable(height, 20)} pixels"
        )
    return height, width


def _find_images(root: Path, file: Path, split: str, name: str) -> Path:
    """Return the folder in which an image is."""
    own = [stem.removesuffix(".json") for stem in _FILES[split] if "/" not in stem]
    folders = [file.parent, *(root / part for part in own), *(root / "images" / part for part in own)]
    folders += [root / "images", root]
    for folder in folders:
        if (folder / name).is_file():
            return folder
    shown = ", ".join(str(folder) for folder in folders)
    raise UserError(f"{file}: its image {printable(name)} is in none of {shown}")
