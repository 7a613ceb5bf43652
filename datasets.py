"""Data sets by name: layouts, opening, checks.

Expected layouts below DATA_PATH:

    imagenet2012   train_list.txt, val_list.txt with a line "relative/path label" per image;
                   without lists: as folder
    folder         train/<class>/*.jpg, val/<class>/*.jpg (to pretrain, any images below train/ or DATA_PATH)
    cifar10        cifar-10-python.tar.gz, or its folder cifar-10-batches-py/
    cifar100       cifar-100-python.tar.gz, or its folder cifar-100-python/
    digits         nothing: 1,797 handwritten digits, 8x8 pixels, that come with scikit-learn
    synthetic      nothing: generated patterns, one per class
    lists          train.tsv (path<TAB>caption), train.jsonl or train_list.txt (path label,label); val likewise
    webdataset     train/*.tar, or *.tar: WebDataset shards with captions or labels; val/*.tar
    others         see `pipeline/published_datasets.py`

A directory that `tools.pack_dataset` made takes the place of the first two. A new set is a function in
`pipeline/published_datasets.py` and its name in `config.DATASETS`.
"""

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from arguments import user_path
from errors import UserError, abridge, printable
from pipeline import builtin_sets, packed_images, published_datasets
from pipeline.image_lists import ListedImages, RaggedLists, find_list
from pipeline.sources import PIL_MODES, FileImages, Source, find_images
from pipeline.web_shards import WebShards
from storage.regular_files import read_regular_file

NAMES = ("imagenet2012", "folder", *builtin_sets.CIFAR, "digits", "synthetic", "lists", "webdataset")
NAMES += tuple(published_datasets.READERS)
_LONGEST_PATH = 4095  # bytes, Linux
_MOST_CLASSES = 1_000_000  # a larger label is a mistake, and would take the memory of so large a classifier


def open_source(
    name: str,
    data_path: str,
    split: str,
    *,
    num_classes: int,
    needs: str = "label",
    synthetic_hw: tuple[int, int] = (32, 32),
    list_outside: bool = False,
    bad_images: str = "error",
) -> Source:
    """Open one split of a data set; see the module's docstring for layouts.

    Args:
        name: DATA.DATASET.
        split: "train" or "val".
        num_classes: how many patterns the synthetic set has; 0 or None: 10.
        needs: what each image must have: "label", "labels" (several), "caption" or "none". To pretrain, "none":
            unsorted folders will do; labels are those of class folders, if all images are in some.
        synthetic_hw: size of the synthetic images.
        list_outside: list files may name files outside their directory.
        bad_images: "error", or "skip": of damaged shards, the images before the damage are used.
    """
    root = user_path(data_path, "-data_path")
    if name == "digits":
        return builtin_sets.open_digits(split)
    if name == "synthetic":
        return builtin_sets.make_synthetic(split, num_classes, synthetic_hw)
    if packed_images.is_packed(root):
        return packed_images.PackedImages(root, split)
    if not root.exists():
        raise UserError(f"DATA.DATA_PATH={data_path}: no such directory; set it with -data_path")
    if name in ("webdataset", "lists"):
        return _open_web(name, root, split, needs, list_outside, bad_images)
    if name in published_datasets.READERS:
        return published_datasets.READERS[name](root, split)
    if name in builtin_sets.CIFAR:
        return builtin_sets.open_cifar(name, root, split)
    list_file = root / f"{split}_list.txt"
    if name == "imagenet2012" and list_file.is_file():
        return _read_list(list_file, list_outside)
    return _scan_folders(root, split, needs in ("label", "labels"))


def _open_web(
    name: str, root: Path, split: str, needs: str, list_outside: bool, bad_images: str
) -> WebShards | ListedImages:
    """Open shards or a list; where one label per image is needed, all are read, and each image must have one."""
    if name == "webdataset":
        source = WebShards(root, split, needs, bad_images)
    else:
        source = ListedImages(find_list(root, split), needs, list_outside)
    if needs == "label":
        labels = source.read_labels() if isinstance(source, WebShards) else source.labels
        odd = np.flatnonzero(labels.lengths != 1)
        if len(odd):
            name, count = source.describe(odd[0]), labels.lengths[odd[0]]
            raise UserError(f"{name}: has {count} labels, and here each image must have one")
        source.labels = labels.flat
    return source


def _read_list(list_file: Path, list_outside: bool) -> FileImages:
    paths, labels, problems = [], [], []
    try:
        lines = read_regular_file(list_file, 4 << 30).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or not a file
        raise UserError(f"{list_file}: cannot be read as a UTF-8 text file ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        path, _, label = line.strip().rpartition(" ")  # a path may hold spaces
        path, label = path.strip(), label.strip()
        if "\0" in path or len(os.fsencode(path)) > _LONGEST_PATH:
            problems.append(f"line {number}: {printable(path, 60)!r} is no path")
            continue
        if not path or not re.fullmatch(r"-?\d{1,9}", label):
            problems.append(f"line {number}: expected 'path label', found {line.strip()[:80]!r}")
            continue
        if not list_outside and (os.path.isabs(path) or ".." in Path(path).parts):
            problems.append(f"line {number}: {path[:80]!r} is outside; -opts DATA.LIST_OUTSIDE True allows it")
            continue
        paths.append(list_file.parent / path)
        labels.append(int(label))
    if problems:
        raise UserError(f"{list_file}: " + abridge(problems, 5))
    return FileImages(paths, np.array(labels, np.int64), list_file)


def find_listed(source: Source, list_file: str | Path, flag: str) -> np.ndarray:
    """Return the indices of the images that a file names, one per line, in ascending order.

    A name is that of the file, or folder/name where several files have it. So are the subsets of ImageNet published by
    MSN and SimCLR v2; labels are those of the data set.

    Args:
        flag: that names the file, for messages.

    Raises:
        UserError: if the file cannot be read, or a line is not the name of exactly one image.
    """
    try:
        lines = read_regular_file(list_file, 1 << 30).decode("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {list_file}: cannot be read ({error})") from error
    found: dict[str, list[int]] = {}
    for number in range(len(source)):
        name = Path(source.describe(number))
        for key in (name.name, f"{name.parent.name}/{name.name}"):
            found.setdefault(key, []).append(number)
    names = [Path(line.strip()) for line in lines if line.strip()]
    matches = [found.get(name.name, []) for name in names]
    pairs = zip(names, matches, strict=True)
    matches = [found.get(f"{n.parent.name}/{n.name}", []) if len(match) > 1 else match for n, match in pairs]
    problems = [str(name) for name, match in zip(names, matches, strict=True) if len(match) != 1]
    if problems or not names:
        what = f"not one image of the train split each: {abridge(problems, 5)}" if names else "empty"
        raise UserError(f"{flag} {list_file}: {what}")
    return np.array(sorted({number for (number,) in matches}))


def _scan_folders(root: Path, split: str, needs_labels: bool) -> FileImages:
    folder = root / split
    if not needs_labels:
        folder = folder if folder.is_dir() else root
        paths = find_images(folder)
        class_names = _class_names(root, folder) if folder != root else []
        labels = _labels_by_folder(paths, folder, class_names)
        if labels is None:
            return FileImages(paths, np.full(len(paths), -1, np.int64), folder)
        return FileImages(paths, labels, folder, class_names)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such directory; expected {split}/<class>/*.jpg below DATA.DATA_PATH={root}, "
            f"or for imagenet2012 a {split}_list.txt there"
        )
    class_names = _class_names(root, folder)
    extra = sorted({entry.name for entry in folder.iterdir() if entry.is_dir()} - set(class_names))
    if extra:
        raise UserError(f"{folder}: classes that {root / 'train'} does not have: {abridge(extra, 5)}")
    paths, labels = [], []
    for label, class_name in enumerate(class_names):
        found = find_images(folder / class_name)
        paths += found
        labels += [label] * len(found)
    return FileImages(paths, np.array(labels, np.int64), folder, class_names)


def _class_names(root: Path, folder: Path) -> list[str]:
    """Return the class folders of the train split where it exists, so that a label means the same in both splits."""
    names_from = root / "train" if (root / "train").is_dir() else folder
    return sorted(entry.name for entry in names_from.iterdir() if entry.is_dir())


def _labels_by_folder(paths: list[Path], folder: Path, class_names: list[str]) -> np.ndarray | None:
    """Return the label of each image below a folder; None if one is in no class folder."""
    label_of, first = {name: label for label, name in enumerate(class_names)}, len(folder.parts)
    labels = [label_of.get(path.parts[first], -1) for path in paths]
    return None if -1 in labels or not labels else np.array(labels, np.int64)


# ---- checks ------------------------------------------------------------------------------------


def check_source(source: Source, *, num_classes: int | None, channels: int) -> list[str]:
    """Check a source before anything is trained on it.

    Args:
        num_classes: labels must be below this; None: labels are not used.
        channels: of the images that the model wants.

    Returns:
        Warnings: things that may be meant.

    Raises:
        UserError: naming missing files, labels out of range, and empty classes.
    """
    if channels not in PIL_MODES:
        raise UserError(f"DATA.IMAGE_CHANNELS={channels}: image files are read with 1, 3 or 4 channels")
    if len(source) == 0:
        raise UserError(f"{source.origin}: no images found")
    problems, notes = [], _left_out(source)
    if isinstance(source, WebShards):
        return notes + _check_shards(source, num_classes)
    if isinstance(source, ListedImages):
        missing = _find_missing(map(source.path, range(len(source))))
        if missing:
            problems.append(f"{len(missing)} files are missing: {abridge(missing, 5)}")
    if isinstance(source, FileImages):
        missing = _find_missing(source.paths)
        if missing:
            problems.append(f"{len(missing)} files are missing: {abridge(missing, 5)}")
        notes += _odd_paths(source)
    labels, owners = _flat_labels(source)
    if len(labels) and labels.max() >= _MOST_CLASSES:
        place = int(labels.argmax())
        name = source.describe(owners[place])
        problems.append(f"{name} has the label {labels[place]:,}; at most {_MOST_CLASSES - 1:,}")
    if num_classes is not None and not problems:
        own_problems, own_notes = _check_labels(source, labels, owners, num_classes)
        problems, notes = problems + own_problems, notes + own_notes
    if problems:
        raise UserError(f"{source.origin}: " + "; ".join(problems))
    return notes


def _left_out(source: Source) -> list[str]:
    """Return a note if images without what is needed were left out."""
    count = getattr(source, "left_out", 0)
    return [f"{source.origin}: {count:,} images without what is needed are left out"] if count else []


def _check_shards(source: WebShards, num_classes: int | None) -> list[str]:
    """Check what the index of the shards tells, and return warnings; raise UserError as `check_source`."""
    largest = source.index.largest_label
    if num_classes is not None and largest >= num_classes:
        raise UserError(
            f"{source.origin}: has the label {largest:,}, and labels go from 0 to {num_classes - 1} "
            f"(MODEL.NUM_CLASSES={num_classes})"
        )
    return [f"damaged shards, used up to the damage: {abridge(source.index.damaged, 3, '; ')}"] * bool(
        source.index.damaged
    )


def _flat_labels(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Return all labels of a source, and the index of the image that has each; -1 for an image without."""
    if isinstance(source.labels, RaggedLists):
        return source.labels.flat, source.labels.owners
    if isinstance(source.labels, np.ndarray):
        return source.labels, np.arange(len(source.labels))
    lists = [list(own) or [-1] for own in source.labels]
    owners = np.repeat(np.arange(len(lists)), [len(own) for own in lists])
    return np.array([label for own in lists for label in own], np.int64), owners


def _check_labels(
    source: Source, labels: np.ndarray, owners: np.ndarray, num_classes: int
) -> tuple[list[str], list[str]]:
    """Return problems and warnings of labels that must be from 0 to num_classes - 1."""
    problems, notes = [], []
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        named = [f"{source.describe(owners[i])} has {labels[i]}" for i in outside[:5]]
        problems.append(
            f"{len(outside)} labels are not from 0 to {num_classes - 1} (MODEL.NUM_CLASSES={num_classes}): "
            + abridge(named, 5, total=len(outside))
        )
    empty = np.setdiff1d(np.arange(num_classes), labels)
    if source.class_names is not None:
        folders = [source.class_names[i] for i in empty if i < len(source.class_names)]
        if folders:
            problems.append(f"{len(folders)} classes have no images: {abridge(folders, 5)}")
        empty = empty[empty >= len(source.class_names)]
    if len(empty) and not len(outside):
        named = abridge([str(label) for label in empty], 5)
        notes.append(
            f"{source.origin}: {len(empty)} of MODEL.NUM_CLASSES={num_classes} classes have no images: {named}; "
            "is MODEL.NUM_CLASSES right?"
        )
    return problems, notes


def count_classes(source: Source) -> int:
    """Return how many classes a data set has: its names, or one more than the largest label.

    Raises:
        UserError: if it has no labels.
    """
    if source.class_names is not None:
        return len(source.class_names)
    if isinstance(source, WebShards):
        largest = source.index.largest_label
    else:
        largest = int(_flat_labels(source)[0].max(initial=-1))
    if largest < 0:
        raise UserError(f"{source.origin}: has no labels; MODEL.NUM_CLASSES cannot follow them")
    if largest >= _MOST_CLASSES:
        raise UserError(f"{source.origin}: has the label {largest:,}; at most {_MOST_CLASSES - 1:,}")
    return largest + 1


def describe_source(source: Source) -> str:
    """Return a line with the numbers of images and classes."""
    with_captions = "" if getattr(source, "captions", None) is None else " with captions"
    if isinstance(source, WebShards):
        return f"{len(source):,} images{with_captions} in {len(source.counts):,} shards"
    labels, counts = np.unique(_flat_labels(source)[0], return_counts=True)
    if not len(labels) or labels[0] < 0:
        return f"{len(source):,} images{with_captions or ' without labels'}"
    return f"{len(source):,} images of {len(labels):,} classes, {counts.min():,} to {counts.max():,} each"


def _odd_paths(source: FileImages) -> list[str]:
    """Warn of files that are listed twice, and of names that are not UTF-8."""
    notes, label_of, num_twice, differing, odd = [], {}, 0, [], []
    for path, label in zip(source.paths, map(_as_plain, source.labels), strict=True):
        name = str(path)
        if name in label_of:
            num_twice += 1
            if label_of[name] != label:
                differing.append(f"{printable(name)} as {label_of[name]} and {label}")
        label_of[name] = label
        if not name.isascii() and any("\ud800" <= char <= "\udfff" for char in name):
            odd.append(printable(name))
    if num_twice:
        with_labels = f", {len(differing)} of them with two labels: {abridge(differing, 3)}" if differing else ""
        notes.append(f"{source.origin}: {num_twice} images are listed more than once{with_labels}")
    if odd:
        notes.append(f"{source.origin}: {len(odd)} names are not UTF-8, and are shown with escapes: {abridge(odd, 3)}")
    return notes


def _as_plain(label: object) -> int | tuple[int, ...]:
    return tuple(label) if isinstance(label, (list, tuple)) else int(label)


def _find_missing(paths: Iterable[Path]) -> list[str]:
    """List the paths that are no files (absent, or pipes and devices), with one listing per directory."""
    present: dict[Path, set[str]] = {}
    missing = []
    for path in paths:
        folder = path.parent
        if folder not in present:
            present[folder] = set()
            # No directory, or not even a possible name of one.
            with contextlib.suppress(OSError, ValueError), os.scandir(folder) as entries:
                present[folder] = {entry.name for entry in entries if entry.is_file()}
        if path.name not in present[folder]:
            missing.append(printable(path))
    return missing
