"""Data sets by name: layouts, and opening.

Expected layouts below DATA_PATH:

    imagenet2012   train_list.txt, val_list.txt with a line "relative/path label" per image;
                   without lists: as folder
    folder         train/<class>/*.jpg, val/<class>/*.jpg (to pretrain, any images below train/ or DATA_PATH);
                   with DATA.VAL_FRACTION also <class>/*.jpg
    cifar10        cifar-10-python.tar.gz, or its folder cifar-10-batches-py/
    cifar100       cifar-100-python.tar.gz, or its folder cifar-100-python/
    digits         nothing: 1,797 handwritten digits, 8x8 pixels, that come with scikit-learn
    synthetic      nothing: generated patterns, one per class
    spectral_scenes  nothing: generated scenes of 13 bands as arrays, see `pipeline/spectral_scenes.py`
    lists          train.tsv (path<TAB>caption), train.jsonl or train_list.txt (path label,label); val likewise
    webdataset     train/*.tar, or *.tar: WebDataset shards with captions or labels; val/*.tar
    masks, voc, ...  images with masks, see `pipeline/mask_sets.py`
    others         see `pipeline/published_datasets.py`

The splits may be called training; valid, validation, or (where these are not there) test; `pipeline/splits.py`.
ImageNet's flat val folder is read with its labels' file, see `pipeline/flat_val.py`.

A directory that `tools.pack_dataset` made takes the place of any of them. docs/CONTRIBUTING.md says how to add one.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from arguments import user_path
from config import DEFAULT_DATA_PATH
from errors import UserError, abridge
from pipeline import builtin_sets, mask_sets, published_datasets
from pipeline.file_images import FileImages
from pipeline.flat_val import ADVICE, find_synsets
from pipeline.folders import class_folders, find_images, images_in
from pipeline.image_lists import ListedImages, find_list
from pipeline.left_out import LeftOut
from pipeline.scenes import Scenes
from pipeline.sources import LABELLED, Source
from pipeline.spectral_scenes import SpectralScenes
from pipeline.splits import find_split, hold_out
from pipeline.web_shards import WebShards, is_packed

_BY_SPLIT = {"digits": builtin_sets.open_digits, "scenes": Scenes, "spectral_scenes": SpectralScenes}  # without files
NAMES = ("imagenet2012", "folder", *builtin_sets.CIFAR, "digits", "synthetic", "spectral_scenes")
NAMES += ("lists", "webdataset")
NAMES += (*published_datasets.READERS, *mask_sets.NAMES)
_FIXED = ("synthetic", *_BY_SPLIT, *builtin_sets.CIFAR, *published_datasets.READERS, *mask_sets.NAMES)


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
    val_split: str | None = None,
    val_fraction: float | None = None,
    val_seed: int = 0,
    **masks: object,
) -> Source:
    """Open one split of a data set; see the module's docstring for layouts.

    Args:
        name: DATA.DATASET.
        split: "train" or "val".
        num_classes: how many patterns the synthetic set has; 0 or None: 10.
        needs: of each image: "label", "labels" (one or more), "label set" (any number), "caption", "mask", or "none":
            unsorted folders will do; labels are those of class folders, if all images are in some.
        synthetic_hw: size of the synthetic images.
        list_outside: list files may name files outside their directory.
        bad_images: "error", or "skip": of damaged shards, the images before the damage are used.
        class_names: in label order, of what was trained; the labels of a set that has names are found by them.
        val_split: name of what is evaluated, see `splits.find_split`.
        val_fraction, val_seed: val is this share of the train split, and train the rest, see `splits.hold_out`.
        masks: what their values are, see `mask_sets.open_masked`.

    Raises:
        UserError: if there is no such set, or it has classes of other names.
    """
    _check_val(name, val_split, val_fraction)
    opened = "train" if val_fraction is not None else split
    source = _open_fixed(name, data_path, opened, num_classes, synthetic_hw, **masks) if name in _FIXED else None
    _check_masks(name, source, needs)
    if source is None:
        root = _find_root(name, data_path)
        own = find_split(root, opened, val_split)
        is_whole = val_fraction is not None and not (root / own).is_dir()
        has_names = class_names is not None
        source = _open_files(name, root, own, needs, list_outside, bad_images, has_names, is_whole)
        if own == "test" and val_split is None:
            source.notes = [*source.notes, f"{root}: has no val split; test is evaluated (DATA.VAL_SPLIT)"]
    if class_names is not None and source.class_names is not None:
        source.use_class_names(list(class_names))
    return source if val_fraction is None else hold_out(source, split, val_fraction, val_seed)


def open_class_folders(data_path: str) -> FileImages | None:
    """Open folders of classes that are not divided into splits, all of them; None if there are none.

    Raises:
        UserError: if there is no such directory.
    """
    root = _find_root("folder", data_path)
    names = set(class_folders(root))
    if names & {"train", "training"} or not names - {"val", "valid", "validation", "test"}:
        return None
    return _scan_folders(root, "train", True, False, True)


def _check_val(name: str, val_split: str | None, val_fraction: float | None) -> None:
    if name in _FIXED and val_split not in (None, "val"):
        raise UserError(f"DATA.VAL_SPLIT={val_split}: {name} has the splits train and val only")
    if None not in (val_split, val_fraction):
        raise UserError(f"DATA.VAL_SPLIT={val_split} and DATA.VAL_FRACTION={val_fraction}: val is one of both")


def _check_masks(name: str, source: Source | None, needs: str) -> None:
    has_masks = source is not None and source.has_masks
    if needs == "mask" and not has_masks:
        raise UserError(f"DATA.DATASET={name}: has no masks; those that have: {', '.join(mask_sets.NAMES)}")
    if needs in LABELLED and has_masks:
        raise UserError(
            f"DATA.DATASET={name}: has a class for each pixel and none for an image: MODEL.TYPE SEGMENTATION learns "
            "them; elsewhere name a set with labels (-dataset, -data_path)"
        )


def _open_fixed(
    name: str, data_path: str, split: str, num_classes: int, synthetic_hw: tuple[int, int], **masks: object
) -> Source | None:
    """Open a set that has one layout; None if it is packed."""
    if name in _BY_SPLIT:
        return _BY_SPLIT[name](split)
    if name == "synthetic":
        return builtin_sets.make_synthetic(split, num_classes, synthetic_hw)
    root = _find_root(name, data_path)
    if name in mask_sets.NAMES:
        return mask_sets.open_masked(name, root, split, num_classes, **masks)
    if is_packed(root):
        return None
    if name in published_datasets.READERS:
        return published_datasets.open_published(name, root, split)
    return builtin_sets.open_cifar(name, root, split)


def _find_root(name: str, data_path: str) -> Path:
    root = user_path(data_path, "-data_path")
    if not root.exists():
        if data_path == DEFAULT_DATA_PATH:
            raise UserError(f"-data_path is missing: the directory of the data set {name} (DATA.DATA_PATH)")
        raise UserError(f"DATA.DATA_PATH={data_path}: no such directory; set it with -data_path")
    return root


def _open_files(
    name: str, root: Path, split: str, needs: str, list_outside: bool, bad_images: str, has_names: bool, is_whole: bool
) -> Source:
    """Open what is in folders, lists or shards; `split` is its name there."""
    if name == "webdataset" or is_packed(root):
        return WebShards(root, split, needs, bad_images)
    if name == "lists":
        source = ListedImages(find_list(root, split), needs, list_outside)
        if needs == "label":
            source.labels = source.single_labels()
        return source
    list_file = root / f"{split}_list.txt"
    if name == "imagenet2012" and list_file.is_file():
        return ListedImages(list_file, needs, list_outside, strict=True)
    return _scan_folders(root, split, needs in LABELLED, has_names, is_whole)


def _scan_folders(root: Path, split: str, needs_labels: bool, has_names: bool, is_whole: bool) -> FileImages:
    """Open folders of images.

    Args:
        has_names: the names of the classes are known, so those of the train split need not be looked at.
        is_whole: the classes are folders of the root, without splits.
    """
    folder = root / split
    if not folder.is_dir() and needs_labels and not is_whole:
        raise UserError(
            f"{folder}: no such directory; expected {split}/<class>/*.jpg below DATA.DATA_PATH={root}, "
            f"or for imagenet2012 a {split}_list.txt there; classes without splits need -opts DATA.VAL_FRACTION 0.1 "
            "(check_dataset: -val_fraction 0.1)"
        )
    folder, left_out = folder if folder.is_dir() else root, LeftOut()
    train = root / find_split(root, "train")
    names_from = train if train.is_dir() and not has_names else folder
    class_names = class_folders(names_from) if folder != root or is_whole else []
    if not needs_labels:
        paths = list(find_images(folder, left_out))
        notes, labels = left_out.notes(folder, "files or folders"), _labels_by_folder(paths, folder, class_names)
        if not len(labels) or labels.min() < 0:
            return FileImages(paths, np.full(len(paths), -1, np.int64), folder, notes=notes)
        return FileImages(paths, labels, folder, class_names, notes)
    own_names = class_folders(folder)
    extra = sorted(set(own_names) - set(class_names))
    if extra:
        raise UserError(f"{folder}: classes that {train} does not have: {abridge(extra, 5)}")
    outside = images_in(folder, left_out)
    if outside and not own_names:
        return _open_flat(root, folder, outside, class_names if folder != names_from else None, left_out)
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


def _open_flat(
    root: Path, folder: Path, paths: list[str], class_names: list[str] | None, left_out: LeftOut
) -> FileImages:
    """Open ImageNet's flat val folder.

    Args:
        class_names: of the train split; None: the synsets of these images in order.
    """
    synsets = find_synsets(root, [Path(path).name for path in paths])
    if synsets is None:
        what = f"{len(paths):,} images, and no folders of classes"
        raise UserError(f"{folder}: {what}; expected {folder.name}/<class>/*.jpg, {ADVICE}")
    class_names = class_names or sorted(set(synsets))
    label_of = {name: label for label, name in enumerate(class_names)}
    unknown = sorted(set(synsets) - set(class_names))
    if unknown:
        raise UserError(f"{folder}: has images of classes that the train split does not have: {abridge(unknown, 5)}")
    labels = np.array([label_of[synset] for synset in synsets], np.int64)
    return FileImages(paths, labels, folder, class_names, left_out.notes(folder, "files or folders"))


def _labels_by_folder(paths: list[str], folder: Path, class_names: list[str]) -> np.ndarray:
    """Return the label of each image below a folder, [N]; -1 for one that is in no folder of a class."""
    label_of, first = {name: label for label, name in enumerate(class_names)}, len(str(folder).rstrip("/")) + 1
    return np.array([label_of.get(path[first:].partition("/")[0], -1) for path in paths], np.int64)
