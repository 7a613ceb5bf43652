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

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from arguments import user_path
from config import DEFAULT_DATA_PATH
from errors import UserError, abridge
from pipeline import builtin_sets, packed_images, published_datasets
from pipeline.decoding import PIL_MODES
from pipeline.folders import LeftOut, class_folders, find_images, images_in
from pipeline.image_lists import ListedImages, RaggedLists, find_list
from pipeline.sources import FileImages, Source
from pipeline.web_shards import WebShards
from storage.text_files import read_lines

NAMES = ("imagenet2012", "folder", *builtin_sets.CIFAR, "digits", "synthetic", "lists", "webdataset")
NAMES += tuple(published_datasets.READERS)
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
    class_names: Sequence[str] | None = None,
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
        class_names: in label order, of what was trained; the labels of a set that has names are found by them.

    Raises:
        UserError: if there is no such set, or it has classes of other names.
    """
    source = _open(name, data_path, split, num_classes, needs, synthetic_hw, list_outside, bad_images, class_names)
    if class_names is not None and source.class_names is not None:
        use_class_names(source, list(class_names))
    return source


def _open(
    name: str,
    data_path: str,
    split: str,
    num_classes: int,
    needs: str,
    synthetic_hw: tuple[int, int],
    list_outside: bool,
    bad_images: str,
    class_names: Sequence[str] | None,
) -> Source:
    root = user_path(data_path, "-data_path")
    if name == "digits":
        return builtin_sets.open_digits(split)
    if name == "synthetic":
        return builtin_sets.make_synthetic(split, num_classes, synthetic_hw)
    if packed_images.is_packed(root):
        return packed_images.PackedImages(root, split)
    if not root.exists():
        if data_path == DEFAULT_DATA_PATH:
            raise UserError(f"-data_path is missing: the directory of the data set {name} (DATA.DATA_PATH)")
        raise UserError(f"DATA.DATA_PATH={data_path}: no such directory; set it with -data_path")
    if name in ("webdataset", "lists"):
        return _open_web(name, root, split, needs, list_outside, bad_images)
    if name in published_datasets.READERS:
        return published_datasets.READERS[name](root, split)
    if name in builtin_sets.CIFAR:
        return builtin_sets.open_cifar(name, root, split)
    list_file = root / f"{split}_list.txt"
    if name == "imagenet2012" and list_file.is_file():
        return ListedImages(list_file, needs, list_outside, must_have=True)
    return _scan_folders(root, split, needs in ("label", "labels"), class_names is not None)


def use_class_names(source: Source, class_names: list[str]) -> None:
    """Give the images of a source the labels that their classes have in another order of names.

    Raises:
        UserError: if there are images of a class that has none of these names.
    """
    label_of = {name: label for label, name in enumerate(class_names)}
    table = np.array([label_of.get(name, -1) for name in source.class_names] or [-1], np.int64)
    found = np.unique(source.labels[source.labels >= 0])
    unknown = [source.class_names[label] for label in found.tolist() if table[label] < 0]
    if unknown:
        raise UserError(
            f"{source.origin}: has images of classes that were not trained: {abridge(unknown, 8)}; the classes are "
            f"{abridge(class_names, 20)} (DATA.CLASS_NAMES)"
        )
    source.labels = np.where(source.labels >= 0, table[source.labels], source.labels)
    source.class_names = class_names


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
        if isinstance(labels, np.ndarray):
            return source
        odd = np.flatnonzero(labels.lengths != 1)
        if len(odd):
            name, count = source.describe(odd[0]), labels.lengths[odd[0]]
            raise UserError(f"{name}: has {count} labels, and here each image must have one")
        source.labels = labels.flat
    return source


def find_listed(source: Source, list_file: str | Path, flag: str) -> np.ndarray:
    """Return the indices of the images that a file names, one per line, in ascending order.

    A name is that of the file, or folder/name where several files have it. So are the subsets of ImageNet published by
    MSN and SimCLR v2; labels are those of the data set.

    Args:
        flag: that names the file, for messages.

    Raises:
        UserError: if the file cannot be read, or a line is not the name of exactly one image.
    """
    names = [Path(line) for line in read_lines(list_file, 1 << 30, f"{flag} ")]
    found: dict[str, list[int]] = {key: [] for name in names for key in (name.name, f"{name.parent.name}/{name.name}")}
    for number in range(len(source)):
        own = Path(source.describe(number))
        for key in (own.name, f"{own.parent.name}/{own.name}"):
            if key in found:
                found[key].append(number)
    matches = [found[name.name] for name in names]
    pairs = zip(names, matches, strict=True)
    matches = [found[f"{n.parent.name}/{n.name}"] if len(match) > 1 else match for n, match in pairs]
    problems = [str(name) for name, match in zip(names, matches, strict=True) if len(match) != 1]
    if problems or not names:
        what = f"not one image of the train split each: {abridge(problems, 5)}" if names else "empty"
        raise UserError(f"{flag} {list_file}: {what}")
    return np.array(sorted({number for (number,) in matches}))


def _scan_folders(root: Path, split: str, needs_labels: bool, has_names: bool) -> FileImages:
    """Open folders of images.

    Args:
        has_names: the names of the classes are known, so those of the train split need not be looked at.
    """
    folder = root / split
    if not folder.is_dir() and needs_labels:
        raise UserError(
            f"{folder}: no such directory; expected {split}/<class>/*.jpg below DATA.DATA_PATH={root}, "
            f"or for imagenet2012 a {split}_list.txt there"
        )
    folder, left_out = folder if folder.is_dir() else root, LeftOut()
    names_from = root / "train" if (root / "train").is_dir() and not has_names else folder
    class_names = class_folders(names_from) if folder != root else []
    if not needs_labels:
        paths = list(find_images(folder, left_out))
        notes, labels = left_out.notes(folder), _labels_by_folder(paths, folder, class_names)
        if not len(labels) or labels.min() < 0:
            return FileImages(paths, np.full(len(paths), -1, np.int64), folder, notes=notes)
        return FileImages(paths, labels, folder, class_names, notes)
    extra = sorted(set(class_folders(folder)) - set(class_names))
    if extra:
        raise UserError(f"{folder}: classes that {root / 'train'} does not have: {abridge(extra, 5)}")
    outside = images_in(folder, left_out)
    if not class_names and outside:
        raise UserError(f"{folder}: {len(outside):,} images, and no folders of classes; expected {split}/<class>/*.jpg")
    paths, labels = [], []
    for label, name in enumerate(class_names):  # one at a time: one class may be a link to another
        found = list(find_images(folder / name, left_out, below=folder))
        paths += found
        labels += [label] * len(found)
    notes = left_out.notes(folder)
    if outside:
        what = "images are in no folder of a class, and are left out"
        notes.append(f"{folder}: {len(outside):,} {what}: {abridge(outside, 3)}")
    return FileImages(paths, np.array(labels, np.int64), folder, class_names, notes)


def _labels_by_folder(paths: list[str], folder: Path, class_names: list[str]) -> np.ndarray:
    """Return the label of each image below a folder, [N]; -1 for one that is in no folder of a class."""
    label_of, first = {name: label for label, name in enumerate(class_names)}, len(str(folder).rstrip("/")) + 1
    return np.array([label_of.get(path[first:].partition("/")[0], -1) for path in paths], np.int64)


# ---- checks ------------------------------------------------------------------------------------


def check_source(source: Source, *, num_classes: int | None, channels: int, is_val: bool = False) -> list[str]:
    """Check a source before anything is trained on it.

    Args:
        num_classes: labels must be below this; None: labels are not used.
        channels: of the images that the model wants.
        is_val: a class without images is a warning, not an error.

    Returns:
        Warnings: what is not used, and things that may be meant.

    Raises:
        UserError: naming missing files, labels out of range, and empty classes.
    """
    if channels not in PIL_MODES:
        raise UserError(f"DATA.IMAGE_CHANNELS={channels}: image files are read with 1, 3 or 4 channels")
    if len(source) == 0:
        raise UserError(f"{source.origin}: no images found")
    problems, notes = [], list(source.notes)
    if isinstance(source, WebShards):
        _check_shards(source, num_classes)
        return notes
    missing = source.missing()
    if missing:
        named = abridge([source.describe(index) for index in missing[:5]], 5, total=len(missing))
        problems.append(f"{len(missing)} files are missing: {named}")
    labels, owners = _flat_labels(source)
    if len(labels) and labels.max() >= _MOST_CLASSES:
        place = int(labels.argmax())
        name = source.describe(owners[place])
        problems.append(f"{name} has the label {labels[place]:,}; at most {_MOST_CLASSES - 1:,}")
    if num_classes is not None and not problems:
        own_problems, own_notes = _check_labels(source, labels, owners, num_classes, is_val)
        problems, notes = problems + own_problems, notes + own_notes
    if problems:
        raise UserError(f"{source.origin}: " + "; ".join(problems))
    return notes


def _check_shards(source: WebShards, num_classes: int | None) -> None:
    """Check what the index of the shards tells; raise UserError as `check_source`."""
    largest = source.index.largest_label
    if num_classes is not None and largest >= num_classes:
        raise UserError(
            f"{source.origin}: has the label {largest:,}, and labels go from 0 to {num_classes - 1} "
            f"(MODEL.NUM_CLASSES={num_classes})"
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
    source: Source, labels: np.ndarray, owners: np.ndarray, num_classes: int, is_val: bool
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
            what = f"{len(folders)} classes have no images: {abridge(folders, 5)}"
            (notes if is_val else problems).append(f"{source.origin}: {what}" if is_val else what)
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
    with_captions = "" if source.captions is None else " with captions"
    if isinstance(source, WebShards):
        return f"{len(source):,} images{with_captions} in {len(source.counts):,} shards"
    labels, counts = np.unique(_flat_labels(source)[0], return_counts=True)
    if not len(labels) or labels[0] < 0:
        return f"{len(source):,} images{with_captions or ' without labels'}"
    return f"{len(source):,} images of {len(labels):,} classes, {counts.min():,} to {counts.max():,} each"
