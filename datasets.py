"""Images from lists, folders, archives or thin air, and their checks.

Expected layouts below DATA_PATH:

    imagenet2012   train_list.txt, val_list.txt with a line "relative/path label" per image;
                   without lists: as folder
    folder         train/<class>/*.jpg, val/<class>/*.jpg (to pretrain, any images below train/ or DATA_PATH)
    cifar10        cifar-10-python.tar.gz, or its folder cifar-10-batches-py/
    cifar100       cifar-100-python.tar.gz, or its folder cifar-100-python/
    digits         nothing: 1,797 handwritten digits, 8x8 pixels, that come with scikit-learn
    synthetic      nothing: generated patterns, one per class
    others         see `published_datasets.py`

A directory that `tools.pack_dataset` made takes the place of the first two.
"""

import contextlib
import gzip
import io
import os
import re
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from arguments import user_path
from errors import UserError, abridge, one_line, printable
from pipeline import packed_images, published_datasets
from pipeline.sources import EncodedImages, FileImages, find_images
from storage import safe_pickle
from storage.regular_files import read_regular_file

_MOST_ARCHIVE_BYTES = 512 << 20  # unpacked; CIFAR has 180 MB
_LONGEST_PATH = 4095  # bytes, Linux
_MOST_CLASSES = 1_000_000  # a larger label is a mistake, and would take the memory of so large a classifier
PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_CIFAR = {  # archive, folder, train files, test file, key of the labels
    "cifar10": (
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        [f"data_batch_{i}" for i in range(1, 6)],
        "test_batch",
        b"labels",
    ),
    "cifar100": ("cifar-100-python.tar.gz", "cifar-100-python", ["train"], "test", b"fine_labels"),
}


# ---- sources of images -------------------------------------------------------------------------


class ArrayImages:
    """Images in memory: uint8 [N, H, W] or [N, H, W, C], with labels [N] int64."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, origin: str, class_names: list[str] | None = None):
        self.images, self.labels, self.origin, self.class_names = images, labels, origin, class_names

    def __len__(self) -> int:
        return len(self.images)

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        return f"{self.origin} image {index}"

    def image(self, index: int) -> Image.Image:
        """Return an image."""
        return Image.fromarray(self.images[index])


Images = EncodedImages | ArrayImages


def open_source(
    name: str,
    data_path: str,
    split: str,
    *,
    num_classes: int,
    needs_labels: bool = True,
    synthetic_hw: tuple[int, int] = (32, 32),
    list_outside: bool = False,
) -> Images:
    """Open one split of a data set; see the module's docstring for layouts.

    Args:
        name: DATA.DATASET.
        split: "train" or "val".
        num_classes: how many patterns the synthetic set has; 0 or None: 10.
        needs_labels: False to pretrain: unsorted folders will do.
        synthetic_hw: size of the synthetic images.
        list_outside: list files may name files outside their directory.
    """
    root = user_path(data_path, "-data_path")
    if name == "digits":
        return _open_digits(split)
    if name == "synthetic":
        return _make_synthetic(split, num_classes, synthetic_hw)
    if packed_images.is_packed(root):
        return packed_images.PackedImages(root, split)
    if not root.exists():
        raise UserError(f"DATA.DATA_PATH={data_path}: no such directory; set it with -data_path")
    if name in published_datasets.READERS:
        return published_datasets.READERS[name](root, split)
    if name in _CIFAR:
        return _open_cifar(name, root, split)
    list_file = root / f"{split}_list.txt"
    if name == "imagenet2012" and list_file.is_file():
        return _read_list(list_file, list_outside)
    return _scan_folders(root, split, needs_labels)


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


def _scan_folders(root: Path, split: str, needs_labels: bool) -> FileImages:
    folder = root / split
    if not needs_labels:
        folder = folder if folder.is_dir() else root
        paths = find_images(folder)
        return FileImages(paths, np.full(len(paths), -1, np.int64), folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such directory; expected {split}/<class>/*.jpg below DATA.DATA_PATH={root}, "
            f"or for imagenet2012 a {split}_list.txt there"
        )
    # The classes are those of the train split where it exists, so that a label means the same in both.
    names_from = root / "train" if (root / "train").is_dir() else folder
    class_names = sorted(entry.name for entry in names_from.iterdir() if entry.is_dir())
    extra = sorted({entry.name for entry in folder.iterdir() if entry.is_dir()} - set(class_names))
    if extra:
        raise UserError(f"{folder}: classes that {names_from} does not have: {abridge(extra, 5)}")
    paths, labels = [], []
    for label, class_name in enumerate(class_names):
        found = find_images(folder / class_name)
        paths += found
        labels += [label] * len(found)
    return FileImages(paths, np.array(labels, np.int64), folder, class_names)


def _open_cifar(name: str, root: Path, split: str) -> ArrayImages:
    archive_name, folder_name, train_files, test_file, label_key = _CIFAR[name]
    files = train_files if split == "train" else [test_file]
    archive = root if root.is_file() else root / archive_name
    folder = root if root.name == folder_name else root / folder_name
    if folder.is_dir():
        batches = [_read_cifar_batch(_read_limited(folder / file), str(folder / file)) for file in files]
    elif archive.is_file():
        contents = _read_members(archive, [f"{folder_name}/{file}" for file in files], name)
        batches = [_read_cifar_batch(content, f"{archive}:{file}") for file, content in contents.items()]
    else:
        raise UserError(
            f"DATA.DATA_PATH={root}: holds neither {archive_name} nor {folder_name}/; "
            f"download the python version from https://www.cs.toronto.edu/~kriz/cifar.html"
        )
    num_classes = 10 if name == "cifar10" else 100
    pixels, labels = zip(*(_check_cifar_batch(batch, label_key, num_classes, root) for batch in batches), strict=True)
    images = np.concatenate(pixels).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return ArrayImages(np.ascontiguousarray(images), np.concatenate(labels), f"{name} {split}")


def _check_cifar_batch(batch: object, label_key: bytes, num_classes: int, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels uint8 [N, 3072] and labels int64 [N] of a batch file."""
    pixels, labels = (batch.get(key) if isinstance(batch, dict) else None for key in (b"data", label_key))
    is_right = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == (3 * 32 * 32,)
    is_right = is_right and isinstance(labels, list) and len(labels) == len(pixels)
    if not is_right or not all(type(label) is int and 0 <= label < num_classes for label in labels):
        raise UserError(
            f"DATA.DATA_PATH={root}: not the published python version: a batch needs {b'data'!r}, uint8 [N, 3072], and "
            f"{label_key!r}, N whole numbers below {num_classes}"
        )
    return pixels, np.array(labels, np.int64)


def _read_limited(file: Path) -> bytes:
    try:
        return read_regular_file(file, _MOST_ARCHIVE_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {getattr(error, 'strerror', None) or error}") from error


class _Limited(io.RawIOBase):
    """A stream that ends with an error after so many bytes."""

    def __init__(self, stream: io.BufferedIOBase, most_bytes: int):
        self._stream, self._left, self._most = stream, most_bytes, most_bytes

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes."""
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise UserError(f"unpacks to more than {self._most >> 20} MiB")
        return data


def _read_members(archive: Path, names: list[str], dataset: str) -> dict[str, bytes]:
    """Read members of a tar archive, compressed by gzip or not, which may unpack to a limited size."""
    found, what = {}, f"{archive}: not the published python archive of {dataset}"
    try:
        with open(archive, "rb") as file:
            unpacked = gzip.GzipFile(fileobj=file) if file.read(2) == b"\x1f\x8b" else file
            file.seek(0)
            with tarfile.open(fileobj=_Limited(unpacked, _MOST_ARCHIVE_BYTES), mode="r|") as tar:
                for member in tar:
                    if member.name in names and member.isfile():
                        found[member.name] = tar.extractfile(member).read()
                    tar.members.clear()  # it would remember millions
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:  # ValueError: UserError, too
        raise UserError(f"{what}: {error if isinstance(error, UserError) else one_line(error)}") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{what}: it has no {missing[0]}")
    return {name: found[name] for name in names}


def _read_cifar_batch(data: bytes, name: str) -> dict:
    return safe_pickle.load(io.BytesIO(data), name=name, encoding="bytes")


def _open_digits(split: str) -> ArrayImages:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("-dataset digits comes with scikit-learn: pip install -r requirements.txt") from error
    digits = load_digits()
    is_val = np.arange(len(digits.target)) % 5 == 0  # 360 of 1,797
    chosen = is_val if split == "val" else ~is_val
    images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)  # stored as 0 to 16
    return ArrayImages(images, digits.target[chosen].astype(np.int64), f"digits {split}", [str(i) for i in range(10)])


def _make_synthetic(split: str, num_classes: int, size_hw: tuple[int, int]) -> ArrayImages:
    """Draw gratings whose direction and colour tell the class; 1,024 to train, 256 to evaluate."""
    num_images, seed = (1024, 0) if split == "train" else (256, 1)
    rng, num_classes = np.random.default_rng(seed), num_classes or 10
    labels = np.arange(num_images) % num_classes
    rows, columns = np.mgrid[0 : size_hw[0], 0 : size_hw[1]] / max(size_hw)
    angle = np.pi * labels / num_classes
    phase = rng.uniform(0, 2 * np.pi, num_images)
    images = np.empty((num_images, *size_hw, 3), np.uint8)
    for index in range(num_images):
        wave = np.sin(20 * (rows * np.sin(angle[index]) + columns * np.cos(angle[index])) + phase[index])
        hue = 0.5 + 0.5 * np.cos(2 * angle[index] + np.array([0.0, 2.1, 4.2]))
        noise = rng.normal(0, 12, (*size_hw, 3))
        images[index] = np.clip(128 + 90 * wave[:, :, None] * hue + noise, 0, 255)
    return ArrayImages(images, labels.astype(np.int64), f"synthetic {split}")


# ---- checks ------------------------------------------------------------------------------------


def check_source(source: Images, *, num_classes: int | None, channels: int) -> list[str]:
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
    problems, notes = [], []
    if isinstance(source, FileImages):
        missing = _find_missing(source.paths)
        if missing:
            problems.append(f"{len(missing)} files are missing: {abridge(missing, 5)}")
        notes += _odd_paths(source)
    if len(source) and source.labels.max() >= _MOST_CLASSES:
        index = int(source.labels.argmax())
        problems.append(
            f"{source.describe(index)} has the label {source.labels[index]:,}; at most {_MOST_CLASSES - 1:,}"
        )
    if num_classes is not None and not problems:
        outside = np.flatnonzero((source.labels < 0) | (source.labels >= num_classes))
        if len(outside):
            named = [f"{source.describe(i)} has {source.labels[i]}" for i in outside[:5]]
            problems.append(
                f"{len(outside)} labels are not from 0 to {num_classes - 1} (MODEL.NUM_CLASSES={num_classes}): "
                + abridge(named, 5, total=len(outside))
            )
        empty = np.setdiff1d(np.arange(num_classes), source.labels)
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
    if problems:
        raise UserError(f"{source.origin}: " + "; ".join(problems))
    return notes


def count_classes(source: Images) -> int:
    """Return how many classes a data set has: its names, or one more than the largest label.

    Raises:
        UserError: if it has no labels.
    """
    if source.class_names is not None:
        return len(source.class_names)
    if len(source) == 0 or source.labels.max() < 0:
        raise UserError(f"{source.origin}: has no labels; MODEL.NUM_CLASSES cannot follow them")
    return int(source.labels.max()) + 1


def describe_source(source: Images) -> str:
    """Say how many images and classes there are."""
    labels, counts = np.unique(source.labels, return_counts=True)
    if not len(source) or labels[0] < 0:
        return f"{len(source):,} images without labels"
    return f"{len(source):,} images of {len(labels):,} classes, {counts.min():,} to {counts.max():,} each"


def _odd_paths(source: FileImages) -> list[str]:
    """Warn of files that are listed twice, and of names that are not UTF-8."""
    notes, label_of, num_twice, differing, odd = [], {}, 0, [], []
    for path, label in zip(source.paths, source.labels.tolist(), strict=True):
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


def _find_missing(paths: list[Path]) -> list[str]:
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
