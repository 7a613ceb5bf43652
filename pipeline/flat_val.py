"""ImageNet's val split as it is published: 50,000 images in one folder, and their labels in a file elsewhere."""

import csv
import re
from pathlib import Path

from errors import UserError
from storage.files import decode_text, read_file, read_lines, reading

_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")
_FOLDERS = ("", "data", "ILSVRC2012_devkit_t12/data", "devkit/data", "val")
_TRUTH, _META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
_SYNSETS = ("imagenet_2012_validation_synset_labels.txt", "synset_labels.txt")
_KAGGLE = "LOC_val_solution.csv"
_ALL = 50_000
ADVICE = (
    f"or ImageNet's flat val folder, with {_TRUTH} and {_META} of the development kit, {_SYNSETS[0]}, or {_KAGGLE} "
    "beside it"
)


def find_synsets(root: Path, names: list[str]) -> list[str] | None:
    """Return the synset (like n01440764) of each image of ImageNet's flat val folder.

    Args:
        root: of the data set; the labels are read from the development kit's files, from a list with a synset per
            line in the order of the images' numbers, or from Kaggle's table.
        names: of the files.

    Returns:
        None if these are not ImageNet's images, or no file has their labels.

    Raises:
        UserError: if the file is damaged, or lacks one of the images.
    """
    numbers = [_NUMBER.fullmatch(name) for name in names]
    if not all(numbers):
        return None
    places = [root / folder for folder in _FOLDERS]
    for read, wanted in ((_read_devkit, (_TRUTH, _META)), *((_read_list, (name,)) for name in _SYNSETS)):
        for place in places:
            files = [place / name for name in wanted]
            if all(file.is_file() for file in files):
                synsets, places = read(*files), [int(number[1]) - 1 for number in numbers]
                if len(synsets) not in (_ALL, len(names)) or not 0 <= min(places) <= max(places) < len(synsets):
                    raise UserError(
                        f"{files[0]}: has {len(synsets):,} lines; expected {_ALL:,}, one for each image of the split"
                    )
                return [synsets[place] for place in places]
    if (root / _KAGGLE).is_file():
        return _read_kaggle(root / _KAGGLE, names)
    return None


def _read_devkit(truth: Path, meta: Path) -> list[str]:
    """Return the synsets by the image's number: the kit has an id of its own for each, and a table of these."""
    from scipy.io import loadmat

    with reading(meta, "the development kit's table"):
        rows = loadmat(meta, squeeze_me=True)["synsets"]
        synsets = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    with reading(truth, "a list of ids"):
        return [synsets[int(line)] for line in _whole_lines(truth)]


def _read_list(file: Path) -> list[str]:
    return _whole_lines(file)


def _whole_lines(file: Path) -> list[str]:
    """Return the lines of a file whose numbers count; an empty one would shift those after it."""
    with reading(file, "a list"):
        lines = [line.strip() for line in decode_text(read_file(file)).rstrip().splitlines()]
    if "" in lines:
        raise UserError(f"{file}: line {lines.index('') + 1} is empty, so the lines after it are those of other images")
    return lines


def _read_kaggle(file: Path, names: list[str]) -> list[str]:
    with reading(file, "Kaggle's table"):
        rows = csv.DictReader(read_lines(file))
        found = {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
        return [found[Path(name).stem] for name in names]
