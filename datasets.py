"""Data sets by name: layouts, and opening.

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

A directory that `tools.pack_dataset` made takes the place of any of them. docs/CONTRIBUTING.md says how to add one.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from arguments import user_path
from config import DEFAULT_DATA_PATH
from errors import UserError, abridge
from pipeline import builtin_sets, published_datasets
from pipeline.file_images import FileImages
from pipeline.folders import class_folders, find_images, images_in
from pipeline.image_lists import ListedImages, find_list
from pipeline.left_out import LeftOut
from pipeline.sources import Source
from pipeline.web_shards import WebShards, is_packed

NAMES = ("imagenet2012", "folder", *builtin_sets.CIFAR, "digits", "synthetic", "lists", "webdataset")
NAMES += tuple(published_datasets.READERS)


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
        source.use_class_names(list(class_names))
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
    if not root.exists():
        if data_path == DEFAULT_DATA_PATH:
            raise UserError(f"-data_path is missing: the directory of the data set {name} (DATA.DATA_PATH)")
        raise UserError(f"DATA.DATA_PATH={data_path}: no such directory; set it with -data_path")
    if name == "webdataset" or is_packed(root):
        return WebShards(root, split, needs, bad_images)
    if name == "lists":
        source = ListedImages(find_list(root, split), needs, list_outside)
        if needs == "label":
            source.labels = source.single_labels()
        return source
    if name in published_datasets.READERS:
        return published_datasets.open_published(name, root, split)
    if name in builtin_sets.CIFAR:
        return builtin_sets.open_cifar(name, root, split)
    list_file = root / f"{split}_list.txt"
    if name == "imagenet2012" and list_file.is_file():
        return ListedImages(list_file, needs, list_outside, strict=True)
    return _scan_folders(root, split, needs in ("label", "labels"), class_names is not None)


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
        notes, labels = left_out.notes(folder, "files or folders"), _labels_by_folder(paths, folder, class_names)
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
    notes = left_out.notes(folder, "files or folders")
    if outside:
        what = "images are in no folder of a class, and are left out"
        notes.append(f"{folder}: {len(outside):,} {what}: {abridge(outside, 3)}")
    return FileImages(paths, np.array(labels, np.int64), folder, class_names, notes)


def _labels_by_folder(paths: list[str], folder: Path, class_names: list[str]) -> np.ndarray:
    """Return the label of each image below a folder, [N]; -1 for one that is in no folder of a class."""
    label_of, first = {name: label for label, name in enumerate(class_names)}, len(str(folder).rstrip("/")) + 1
    return np.array([label_of.get(path[first:].partition("/")[0], -1) for path in paths], np.int64)
