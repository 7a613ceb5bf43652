"""Data sets with a mask for each image, in the layouts in which they are published. No Paddle here.

masks        images and masks in two folders, with the same names: train/images/ and train/masks/, or
images/train/ and masks/train/ (labels, annotations, img_dir and ann_dir will do), or PaddleSeg's
lists train.txt and val.txt (images/a.jpg labels/a.png). classes.txt has a name per line, the first
one of the value 0; classes.json has {"classes": [{"name": "road", "values": [0, 7]}, ...],
"ignore": [255]}, where a value is an integer or a colour [red, green, blue].
voc          VOCdevkit/VOC2012/ or what is in it: JPEGImages/, SegmentationClass/, ImageSets/Segmentation/; where
SegmentationClassAug/ and trainaug.txt are there, train is that
ade20k       ADEChallengeData2016/ or what is in it: images/training/, annotations/training/; validation likewise
cityscapes   leftImg8bit/train/, gtFine/train/ (labelTrainIds where they are there, else labelIds); val likewise
coco_polygons  annotations/instances_train2017.json and train2017/ (also train.json, or train/_annotations.coco.json),
val likewise; see `coco_masks`
scenes       nothing: generated scenes of 64 pixels, eight classes
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from errors import UserError, abridge, one_line, printable
from pipeline.coco_masks import open_coco
from pipeline.file_images import FileImages, PathList
from pipeline.folders import find_images
from pipeline.left_out import LeftOut
from pipeline.masks import Codes, read_values, without_colours
from pipeline.sources import BadMask
from storage.files import read_file, read_json, read_lines, reading

NAMES = ("masks", "voc", "ade20k", "cityscapes", "coco_polygons", "scenes")
_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation", "test")}
_FOLDERS = (("images", "masks"), ("images", "labels"), ("images", "annotations"), ("img_dir", "ann_dir"))
_ENDINGS = re.compile(r"(_leftImg8bit|_gtFine_labelIds|_gtFine_labelTrainIds|_image|_img|_mask|_labels?|_seg)$")
_VOC = (
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,"
    "pottedplant,sheep,sofa,train,tvmonitor"
)
_CITY = (
    "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,truck,"
    "bus,train,motorcycle,bicycle"
)
_CITY_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_ADE_CLASSES = 150
_MOST_NAME_BYTES = 1 << 20


class MaskedImages(FileImages):
    """Image files, and a mask file for each.

    Args:
        pairs: paths of image and mask.
        codes: of the masks' pixels.
        origin: what lists them, for messages.
        notes: on what was left out.
        without_codes: `ignored` and `zero_is_other` of `Codes.of_range`, where the codes are None.
    """

    has_masks = True

    def __init__(
        self, pairs: list[tuple[str, str]], codes: Codes | None, origin: Path, notes: list[str], **without_codes: object
    ):
        self._without_codes = without_codes
        super().__init__([image for image, _ in pairs], np.full(len(pairs), -1, np.int64), origin, None, notes)
        self._masks, self._codes = PathList(mask for _, mask in pairs), codes
        self.class_names = None if codes is None else codes.names

    @property
    def codes(self) -> Codes:
        """What the pixels stand for; without names of classes, those of all masks are looked at once."""
        if self._codes is None:
            self._codes = Codes.of_range(self.count_classes(), **self._without_codes)
        return self._codes

    def mask(self, index: int) -> np.ndarray:
        """Return the labels of an image's pixels, int16 [H, W]; see `masks.IGNORED`.

        Raises:
            BadMask: naming the mask, if it cannot be read.
        """
        codes, path = self.codes, self._masks[index]
        try:
            return codes.apply(read_values(read_file(path)))
        except (ValueError, OSError) as error:
            why = str(error) if type(error) is ValueError else one_line(error)
            raise BadMask(f"its mask {path.name} {why}") from error

    def count_classes(self) -> int:
        """Return the number of classes, by their names, or by all masks of the split."""
        if self._codes is not None:
            return self._codes.num_classes
        largest = -1
        for path in self._masks:
            try:
                values = without_colours(read_values(read_file(path)))
            except (ValueError, OSError) as error:
                raise UserError(f"{path}: {one_line(error)}") from error
            if values.ndim == 3:
                raise UserError(f"{path}: has colours, and no classes.json says what they stand for")
            counted = values[~np.isin(values, self._without_codes.get("ignored", ()))]
            largest = max(largest, int(counted.max(initial=-1)))
        return largest + (0 if self._without_codes.get("zero_is_other") else 1)

    def use_class_names(self, class_names: list[str]) -> None:
        """Give the pixels the labels that their classes have in another order of names."""
        try:
            self._codes = self.codes.renumbered(class_names)
        except ValueError as error:
            raise UserError(f"{self.origin}: {error}; the classes are {abridge(class_names, 20)}") from error
        self.class_names = class_names

    def missing_masks(self, indices: np.ndarray | None = None) -> list[str]:
        """Return the files of masks that are not there, of all images or at these indices."""
        missing = np.array(self._masks.missing(), np.int64)
        return [str(self._masks[index]) for index in (missing if indices is None else np.intersect1d(missing, indices))]

    def summary(self) -> str:
        """Return a line with the numbers of images and classes."""
        classes = "" if self._codes is None else f" of {self._codes.num_classes:,} classes"
        return f"{len(self):,} images with masks{classes}"


def open_masked(
    name: str, root: Path, split: str, num_classes: int | None, ignored: int | None = 255, zero_is_other: bool = False
) -> FileImages:
    """Open one split, with a mask for each image.

    Args:
        name: one of NAMES, but scenes.
        num_classes: of `masks` without names of classes; None: found in the masks.
        ignored: value of `masks` that is of no class, besides those of classes.json; None: none.
        zero_is_other: of `masks`, 0 is of no class, and 1 is the first one.

    Raises:
        UserError: if the layout is another one, or no mask has an image.
    """
    if name == "coco_polygons":
        return open_coco(root, split)
    if name != "masks":
        return {"voc": _open_voc, "ade20k": _open_ade20k, "cityscapes": _open_cityscapes}[name](root, split)
    codes = _read_classes(root, ignored, zero_is_other)
    without_codes = {"ignored": () if ignored is None else (ignored,), "zero_is_other": zero_is_other}
    if codes is None and num_classes:
        codes = Codes.of_range(num_classes, **without_codes)
    listed = next((root / f"{own}.txt" for own in _SPLITS[split] if (root / f"{own}.txt").is_file()), None)
    if listed is not None:
        source = MaskedImages(_read_list(root, listed), codes, listed, [], **without_codes)
    else:
        source = _pair(*_find_folders(root, split), codes, **without_codes)
    if split == "val" and "test" in (Path(source.origin).stem, Path(source.origin).parent.name):
        source.notes = [*source.notes, f"{root}: has no val split; test is evaluated"]
    return source


def _find_folders(root: Path, split: str) -> tuple[Path, Path]:
    """Return the folders of images and of masks of a split."""
    for own in _SPLITS[split]:
        for images, masks in _FOLDERS:
            for pair in ((root / own / images, root / own / masks), (root / images / own, root / masks / own)):
                if all(folder.is_dir() for folder in pair):
                    return pair
    raise UserError(
        f"{root}: no images and masks of the split {split}; expected {split}/images and {split}/masks, images/{split} "
        f"and masks/{split}, or a list {split}.txt"
    )


def _read_list(root: Path, file: Path) -> list[tuple[str, str]]:
    """Read lines "image mask", separated by a space, a tab or a bar, relative to the root."""
    pairs, problems = [], []
    for number, line in enumerate(read_lines(file), start=1):
        separator = next((mark for mark in "\t|" if mark in line), " ")
        parts = [part.strip() for part in line.strip().rsplit(separator, maxsplit=1)]
        if len(parts) == 2 and not any(Path(part).is_absolute() or ".." in Path(part).parts for part in parts):
            pairs.append((str(root / parts[0]), str(root / parts[1])))
        elif line.strip():
            problems.append(f"line {number}: expected 'image mask' below {root}, found {printable(line, 60)!r}")
    if problems or not pairs:
        raise UserError(f"{file}: {abridge(problems, 3) if problems else 'is empty'}")
    return pairs


def _read_classes(root: Path, ignored: int | None, zero_is_other: bool) -> Codes | None:
    """Return the codes of classes.json or classes.txt; None without these."""
    also = () if ignored is None else (ignored,)
    for file in (root / "classes.json", root / "classes.txt"):
        if os.path.lexists(file) and not file.is_file():
            raise UserError(f"{file}: not a file that can be read")
    if (root / "classes.json").is_file():
        if zero_is_other:
            raise UserError(
                f"DATA.MASK_ZERO_IS_OTHER=True: {root / 'classes.json'} says what 0 stands for; leave it out"
            )
        return _read_class_table(root / "classes.json", also)
    if not (root / "classes.txt").is_file():
        return None
    with reading(root / "classes.txt", "a text file"):
        text = read_file(root / "classes.txt", _MOST_NAME_BYTES).decode("utf-8-sig")
    names = [line.strip() for line in text.rstrip().splitlines()]
    if len(set(names)) < len(names) or not all(names) or not names:
        raise UserError(f"{root / 'classes.txt'}: expected a name per line, each once, and no empty line between them")
    return Codes.of_range(len(names), also, zero_is_other, names)


def _read_class_table(file: Path, ignored: tuple[int, ...]) -> Codes:
    advice = 'expected {"classes": [{"name": "road", "values": [0, [128, 64, 128]]}, ...], "ignore": [255]}'
    table = read_json(file, {"classes": list}, advice=advice)
    names, labels = [], {}
    try:
        for label, entry in enumerate(table["classes"]):
            names.append(entry["name"])
            if not isinstance(names[-1], str) or not names[-1] or names[-1] in names[:-1]:
                raise ValueError(f"{printable(names[-1], 40)!r} is not a name that no other class has")
            if not entry["values"]:
                raise ValueError(f"{names[-1]} has no values")
            for value in map(_value, entry["values"]):
                if value in labels:
                    raise ValueError(f"{value} stands for {names[labels[value]]} and {names[label]}")
                labels[value] = label
        left_out = [_value(value) for value in table.get("ignore", [])]
        twice = [value for value in left_out if value in labels]
        unknown = sorted(set(table) - {"classes", "ignore"})
        if twice or unknown:
            raise ValueError(f"{twice[0]} is of a class and ignored" if twice else f"unknown entry {unknown[0]}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: {one_line(error)}; {advice}") from error
    return Codes(labels, [*left_out, *(value for value in ignored if value not in labels)], names)


def _value(value: object) -> int | tuple[int, int, int]:
    is_colour = isinstance(value, list) and len(value) == 3 and all(type(part) is int for part in value)
    if is_colour and all(0 <= part < 256 for part in value):
        return tuple(value)
    if type(value) is int and 0 <= value < 65536:
        return value
    raise ValueError(f"{printable(value, 40)} is neither an integer below 65,536 nor a colour")


def _by_key(folder: Path, left_out: LeftOut) -> Iterator[tuple[str, str]]:
    """Yield what an image and its mask have in common, and the path, of the pictures below a folder."""
    for path in find_images(folder, left_out):
        own = Path(path).relative_to(folder)
        yield str(own.parent / _ENDINGS.sub("", own.stem)), path


def _pair(
    images: Path, masks: Path, codes: Codes | None, mask_ending: str = "", **without_codes: object
) -> MaskedImages:
    """Pair pictures of two folders by name; those without a partner are counted in the notes.

    Args:
        mask_ending: only masks whose names end so.
    """
    left_out, found = LeftOut(), {}
    for key, path in _by_key(masks, left_out):
        if Path(path).stem.endswith(mask_ending) and found.setdefault(key, path) != path:
            raise UserError(f"{masks}: {found[key]} and {path} are both masks of {key}")
    pairs, alone = [], []
    for key, path in _by_key(images, left_out):
        mask = found.pop(key, None)
        (alone.append(key) if mask is None else pairs.append((path, mask)))
    if not pairs:
        raise UserError(f"{images}: none of its images has a mask of the same name in {masks}")
    notes = left_out.notes(images.parent, "files or folders")
    if alone:
        notes.append(f"{images}: {len(alone):,} images have no mask, and are left out: {abridge(alone, 3)}")
    if found:
        notes.append(f"{masks}: {len(found):,} masks have no image, and are left out: {abridge(sorted(found), 3)}")
    return MaskedImages(pairs, codes, images, notes, **without_codes)


def _named(names: str) -> Codes:
    return Codes.of_range(names.count(",") + 1, names=names.split(","))


def _open_voc(root: Path, split: str) -> MaskedImages:
    root = next((path for path in (root / "VOCdevkit" / "VOC2012", root / "VOC2012") if path.is_dir()), root)
    lists = root / "ImageSets" / "Segmentation"
    is_augmented = split == "train" and (lists / "trainaug.txt").is_file() and (root / "SegmentationClassAug").is_dir()
    file = lists / ("trainaug.txt" if is_augmented else f"{split}.txt")
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected VOCdevkit/VOC2012 with JPEGImages and SegmentationClass")
    folder = root / ("SegmentationClassAug" if is_augmented else "SegmentationClass")
    ids = [line.strip() for line in read_lines(file) if line.strip()]
    if split == "train" and (lists / "val.txt").is_file():
        shared = sorted(set(ids) & {line.strip() for line in read_lines(lists / "val.txt")})
        if shared:
            raise UserError(f"{file}: {len(shared):,} of its images are in val.txt, too: {abridge(shared, 5)}")
    pairs = [(str(root / "JPEGImages" / f"{name}.jpg"), str(folder / f"{name}.png")) for name in ids]
    notes = [f"{file}: train is the augmented one, with masks in {folder.name}"] if is_augmented else []
    return MaskedImages(pairs, _named(_VOC), file, notes)


def _open_ade20k(root: Path, split: str) -> MaskedImages:
    root = root / "ADEChallengeData2016" if (root / "ADEChallengeData2016").is_dir() else root
    images, masks = (root / kind / _SPLITS[split][-1 if split == "train" else 2] for kind in ("images", "annotations"))
    if not images.is_dir() or not masks.is_dir():
        raise UserError(f"{root}: expected {images} and {masks}, as in ADEChallengeData2016")
    return _pair(images, masks, Codes.of_range(_ADE_CLASSES, zero_is_other=True))


def _open_cityscapes(root: Path, split: str) -> MaskedImages:
    images, masks = root / "leftImg8bit" / split, root / "gtFine" / split
    if not images.is_dir() or not masks.is_dir():
        raise UserError(f"{root}: expected {images} and {masks}")
    if any(masks.rglob("*_labelTrainIds.png")):
        return _pair(images, masks, _named(_CITY), "_labelTrainIds")
    others = [value for value in range(34) if value not in _CITY_IDS]
    codes = Codes({value: label for label, value in enumerate(_CITY_IDS)}, [*others, 255], _CITY.split(","))
    return _pair(images, masks, codes, "_labelIds")
