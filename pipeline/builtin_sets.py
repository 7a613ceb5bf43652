"""Small data sets that need no list of files: CIFAR's archives, scikit-learn's digits, generated patterns."""

import gzip
import importlib.util
import io
import tarfile
from pathlib import Path

import numpy as np

from errors import UserError
from pipeline.sources import ArrayImages
from storage import safe_pickle
from storage.files import open_file, read_file, reading

_MOST_ARCHIVE_BYTES = 512 << 20  # unpacked; CIFAR has 180 MB
CIFAR = {  # archive, folder, train files, test file, key of the labels
    "cifar10": (
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        [f"data_batch_{i}" for i in range(1, 6)],
        "test_batch",
        b"labels",
    ),
    "cifar100": ("cifar-100-python.tar.gz", "cifar-100-python", ["train"], "test", b"fine_labels"),
}


def open_cifar(name: str, root: Path, split: str) -> ArrayImages:
    """Open CIFAR-10 or CIFAR-100, from the archive that is published, or from its folder."""
    archive_name, folder_name, train_files, test_file, label_key = CIFAR[name]
    files = train_files if split == "train" else [test_file]
    archive = root if root.is_file() else root / archive_name
    folder = root if root.name == folder_name else root / folder_name
    if folder.is_dir():
        contents = {}
        for file in files:
            with reading(folder / file, f"a file of the published python version of {name}"):
                contents[file] = read_file(folder / file, _MOST_ARCHIVE_BYTES)
    elif archive.is_file():
        contents = _read_members(archive, [f"{folder_name}/{file}" for file in files], name)
    else:
        raise UserError(
            f"DATA.DATA_PATH={root}: holds neither {archive_name} nor {folder_name}/; "
            f"download the python version from https://www.cs.toronto.edu/~kriz/cifar.html"
        )
    batches = [
        safe_pickle.load(io.BytesIO(data), f"{root}: {file}", encoding="bytes") for file, data in contents.items()
    ]
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
            f"{label_key!r}, N integers below {num_classes}"
        )
    return pixels, np.array(labels, np.int64)


class _Limited(io.RawIOBase):
    """A stream that raises an error after a given number of bytes."""

    def __init__(self, stream: io.BufferedIOBase, most_bytes: int):
        self._stream, self._left, self._most = stream, most_bytes, most_bytes

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes."""
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"unpacks to more than {self._most >> 20} MiB")
        return data


def _read_members(archive: Path, names: list[str], dataset: str) -> dict[str, bytes]:
    """Read members of a tar archive, compressed by gzip or not, which may unpack to a limited size."""
    found = {}
    with reading(archive, f"the published python archive of {dataset}"), open_file(archive) as file:
        unpacked = gzip.GzipFile(fileobj=file) if file.read(2) == b"\x1f\x8b" else file
        file.seek(0)
        with tarfile.open(fileobj=_Limited(unpacked, _MOST_ARCHIVE_BYTES), mode="r|") as tar:
            for member in tar:
                if member.name in names and member.isfile():
                    found[member.name] = tar.extractfile(member).read()
                tar.members.clear()  # it would remember millions
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(f"it has no {missing[0]}")
    return {name: found[name] for name in names}


def open_digits(split: str) -> ArrayImages:
    """Open the 1,797 handwritten digits of scikit-learn; every fifth one is for evaluation."""
    package = importlib.util.find_spec("sklearn")
    if package is None:
        raise UserError("-dataset digits comes with scikit-learn: pip install -r requirements.txt")
    # Its file alone: importing scikit-learn takes as long as importing Paddle.
    rows = np.loadtxt(Path(package.submodule_search_locations[0]) / "datasets/data/digits.csv.gz", delimiter=",")
    rows = rows[(np.arange(len(rows)) % 5 == 0) == (split == "val")]  # 360 of 1,797
    images = np.round(rows[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # stored as 0 to 16
    return ArrayImages(images, rows[:, -1].astype(np.int64), f"digits {split}", [str(i) for i in range(10)])


def make_synthetic(split: str, num_classes: int, size_hw: tuple[int, int]) -> ArrayImages:
    """Draw gratings whose direction and colour depend on the class; 1,024 to train, 256 to evaluate."""
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
