"""Data sets for transfer, each in the layout in which it is published. No Paddle here.

Expected below DATA_PATH; train is what the papers finetune on, val what they report:

    flowers102   jpg/image_00001.jpg, imagelabels.mat, setid.mat; train: trnid and valid (2,040), val: tstid (6,149)
    pets         images/*.jpg, annotations/trainval.txt and test.txt
    cars         car_ims/*.jpg and cars_annos.mat; or cars_train/, cars_test/ and devkit/cars_train_annos.mat,
                 with cars_test_annos_withlabels.mat in devkit/ or beside it
    aircraft     fgvc-aircraft-2013b/data/ or what is in it: images/*.jpg, variants.txt, images_variant_trainval.txt
                 and images_variant_test.txt; classes are the 100 variants
    inat2017     train2017.json, val2017.json, and the images at the paths that these name; likewise inat2018, inat2019
    places205    trainvalsplit_places205/train_places205.csv and val_places205.csv, and the images at the paths that
                 these name, below images256/ or DATA_PATH
    places365    places365_train_standard.txt, places365_val.txt, categories_places365.txt, data_256_standard/ or
                 data_256/, and val_256/; the "easy" version is a `folder`
"""

import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from errors import UserError, abridge, printable
from pipeline.file_images import FileImages
from storage.files import read_file, read_json, read_lines, reading

_MOST_MAT_BYTES = 256 << 20  # unpacked; the published ones have some megabytes
_LARGEST_NUMBER = 1_000_000  # largest class or image number
_MAT_COMPRESSED = 15  # type of an element, miCOMPRESSED


def _read_pairs(file: Path, separator: str = " ") -> list[tuple[str, int]]:
    """Read lines "name label ..."; a name may hold no separator."""
    pairs, problems = [], []
    for number, line in enumerate(read_lines(file), start=1):
        match = re.fullmatch(rf"(.+?){separator}(\d{{1,6}})(?:{separator}.*)?", line)
        if match is None:
            problems.append(f"line {number}: expected 'name label', found {printable(line, 60)!r}")
        else:
            pairs.append((match[1], int(match[2])))
    if problems:
        raise UserError(f"{file}: {abridge(problems, 3)}")
    return pairs


def _read_mat(file: Path) -> dict:
    import scipy.io

    with reading(file, "a .mat file"):
        if _unpacked_bytes(read_file(file, _MOST_MAT_BYTES)) > _MOST_MAT_BYTES:
            raise ValueError(f"unpacks to more than {_MOST_MAT_BYTES >> 20} MiB, so it is not the published file")
        return scipy.io.loadmat(file, squeeze_me=True, chars_as_strings=True)


def _unpacked_bytes(content: bytes) -> int:
    """Return how many bytes a .mat file (version 5) unpacks to, or a number above the limit as soon as it is passed."""
    position, total = 128, 0  # behind the header, whose last bytes tell the byte order
    order = "big" if content[126:128] == b"MI" else "little"
    while position + 8 <= len(content) and total <= _MOST_MAT_BYTES:
        kind, size = (int.from_bytes(content[position + at : position + at + 4], order) for at in (0, 4))
        if kind == _MAT_COMPRESSED:
            total += len(
                zlib.decompressobj().decompress(content[position + 8 : position + 8 + size], _MOST_MAT_BYTES + 1)
            )
        position += 8 + size
    return total


def _labels(content: dict, name: str, file: Path) -> np.ndarray:
    """Return an entry of integers from 1, as int64 [N]."""
    values = _entry(content, name, file)
    if (
        values.ndim != 1
        or values.dtype.kind not in "iuf"
        or not (np.isfinite(values) & (values == np.round(values))).all()
    ):
        raise UserError(f"{file}: its {name} are not integers; is it the published file?")
    if len(values) and not (values.min() >= 1 and values.max() <= _LARGEST_NUMBER):
        raise UserError(f"{file}: its {name} are not from 1 to {_LARGEST_NUMBER:,}; is it the published file?")
    return values.astype(np.int64)


def _entry(content: dict, name: str, file: Path) -> np.ndarray:
    if name not in content:
        raise UserError(f"{file}: holds no {name}; is it the published file?")
    return np.atleast_1d(content[name])


def _inside(root: Path, name: str, file: Path) -> Path:
    """Return the path of an image that an index names; it must be below the data set's directory."""
    path = Path(name.lstrip("/"))
    if ".." in path.parts:
        raise UserError(f"{file}: {printable(name, 80)!r} is outside of the data set")
    return root / path


def _images(pairs: list[tuple[Path, int]], origin: Path, class_names: list[str] | None = None) -> FileImages:
    paths = [path for path, _ in pairs]
    return FileImages(paths, np.array([label for _, label in pairs], np.int64), origin, class_names)


def open_flowers(root: Path, split: str) -> FileImages:
    """Open Oxford Flowers-102."""
    labels_file, split_file = root / "imagelabels.mat", root / "setid.mat"
    labels = _labels(_read_mat(labels_file), "labels", labels_file) - 1
    content = _read_mat(split_file)
    parts = ("trnid", "valid") if split == "train" else ("tstid",)
    numbers = np.concatenate([_labels(content, part, split_file) for part in parts])
    if not len(numbers) or numbers.max() > len(labels):
        raise UserError(f"{split_file}: names images that {labels_file} does not know")
    return _images([(root / "jpg" / f"image_{n:05d}.jpg", int(labels[n - 1])) for n in numbers], split_file)


def open_pets(root: Path, split: str) -> FileImages:
    """Open the Oxford-IIIT Pets; classes are the 37 breeds."""
    file = root / "annotations" / ("trainval.txt" if split == "train" else "test.txt")
    pairs = [(name, label - 1) for name, label in _read_pairs(file)]
    names = {label: name.rpartition("_")[0] for name, label in pairs}
    class_names = [names.get(label, str(label)) for label in range(max(names, default=-1) + 1)]
    return _images([(_inside(root / "images", f"{name}.jpg", file), label) for name, label in pairs], file, class_names)


def open_cars(root: Path, split: str) -> FileImages:
    """Open Stanford Cars, from one archive of all images or from two."""
    joint = root / "cars_annos.mat"
    if joint.is_file():
        content, folder = _read_mat(joint), root
        rows = _entry(content, "annotations", joint)
        name, names = "relative_im_path", _entry(content, "class_names", joint)
        file = joint
    else:
        name, names = "fname", None
        folder = root / ("cars_train" if split == "train" else "cars_test")
        base = "cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat"
        file = next(
            (place for place in (root / "devkit" / base, root / base) if place.is_file()), root / "devkit" / base
        )
        rows = _entry(_read_mat(file), "annotations", file)
    with reading(file, "the published annotations"):
        if names is not None:
            rows = [row for row in rows if bool(row["test"]) == (split == "val")]
        pairs = [(_inside(folder, str(row[name]), file), int(row["class"]) - 1) for row in rows]
    return _images(pairs, file, None if names is None else [str(value) for value in names])


def open_aircraft(root: Path, split: str) -> FileImages:
    """Open FGVC-Aircraft; classes are the variants."""
    nested = root / "fgvc-aircraft-2013b" / "data"
    root = nested if nested.is_dir() else root / "data" if (root / "data" / "images").is_dir() else root
    file = root / f"images_variant_{'trainval' if split == 'train' else 'test'}.txt"
    class_names = read_lines(root / "variants.txt")
    label_of = {name: label for label, name in enumerate(class_names)}
    pairs = []
    for line in read_lines(file):
        number, _, variant = line.partition(" ")
        if variant not in label_of:
            raise UserError(f"{file}: {printable(line, 60)!r} names no variant of {root / 'variants.txt'}")
        pairs.append((_inside(root / "images", f"{number}.jpg", file), label_of[variant]))
    return _images(pairs, file, class_names)


def open_inaturalist(root: Path, split: str, year: int) -> FileImages:
    """Open iNaturalist 2017, 2018 or 2019; classes are the categories, in the order of their ids."""
    file = root / f"{split}{year}.json"
    content = read_json(file)
    with reading(file, "the published annotations"):
        ids = sorted(category["id"] for category in content["categories"])
        names = {category["id"]: str(category.get("name", category["id"])) for category in content["categories"]}
        path_of = {image["id"]: image["file_name"] for image in content["images"]}
        found = [(path_of[note["image_id"]], note["category_id"]) for note in content["annotations"]]
        label_of = {category: label for label, category in enumerate(ids)}
        pairs = [(_inside(root, name, file), label_of[category]) for name, category in found]
    return _images(pairs, file, [names[category] for category in ids])


def open_places205(root: Path, split: str) -> FileImages:
    """Open Places205."""
    file = root / "trainvalsplit_places205" / f"{split}_places205.csv"
    places = [root / "images256", root / "data/vision/torralba/deeplearning/images256"]  # the archive has the latter
    folder = next((place for place in places if place.is_dir()), root)
    return _images([(_inside(folder, name, file), label) for name, label in _read_pairs(file, "[ ,]")], file)


def open_places365(root: Path, split: str) -> FileImages:
    """Open Places365-Standard, small images."""
    names = [name for name, _ in sorted(_read_pairs(root / "categories_places365.txt"), key=lambda pair: pair[1])]
    if split == "train":
        file = root / "places365_train_standard.txt"
        folder = next((place for place in (root / "data_256_standard",) if place.is_dir()), root / "data_256")
    else:
        file, folder = root / "places365_val.txt", root / "val_256"
    return _images([(_inside(folder, name, file), label) for name, label in _read_pairs(file)], file, names)


def _inaturalist(year: int) -> Callable[[Path, str], FileImages]:
    return lambda root, split: open_inaturalist(root, split, year)


def open_published(name: str, root: Path, split: str) -> FileImages:
    """Open a set of `READERS`; raise UserError if it is not in the published layout."""
    with reading(root, f"the published {name}"):
        return READERS[name](root, split)


READERS: dict[str, Callable[[Path, str], FileImages]] = {
    "flowers102": open_flowers,
    "pets": open_pets,
    "cars": open_cars,
    "aircraft": open_aircraft,
    "inat2017": _inaturalist(2017),
    "inat2018": _inaturalist(2018),
    "inat2019": _inaturalist(2019),
    "places205": open_places205,
    "places365": open_places365,
}
