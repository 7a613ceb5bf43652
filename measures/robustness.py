"""ImageNet's variants for robustness: layouts, labels and scores.

| benchmark | layout below DATA_PATH | evaluated among |
|---|---|---|
| `a`, `r` | `<wnid>/*`, 200 classes each | the logits of those 200 classes, as the published numbers are |
| `sketch` | `<wnid>/*`, 1,000 classes | all |
| `v2` | `0/` to `999/`, folders named by label | all |
| `c` | `<corruption>/<severity>/<wnid>/*` | all; images of 224 pixels are not resized, as they were cropped already |

An archive's own outer folder (`imagenet-a/`, `sketch/`) may be there or not.
"""

import re
from pathlib import Path

import numpy as np

from arguments import user_path
from errors import UserError, abridge
from pipeline.file_images import FileImages
from pipeline.folders import class_folders, find_images
from pipeline.left_out import LeftOut, no_images

BENCHMARKS = ("a", "r", "sketch", "v2", "c")
# AlexNet's error for each corruption of ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261).
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
SEVERITIES = ("1", "2", "3", "4", "5")


def imagenet_classes() -> list[tuple[str, str]]:
    """Return (wnid, name) of ImageNet's 1,000 classes in label order."""
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split(" ", 1)) for line in lines]


def open_variant(root: str | Path) -> FileImages:
    """Open folders of images that are named by wnid or by label; labels are ImageNet's, from 0 to 999.

    Raises:
        UserError: if folders have other names, or there are no images.
    """
    folder = _class_folder(user_path(root, "-data_path"))
    labels_of = {wnid: label for label, (wnid, _) in enumerate(imagenet_classes())}
    labels_of |= {str(label): label for label in range(1000)}
    left_out = LeftOut()
    names = class_folders(folder, left_out)
    unknown = [name for name in names if name not in labels_of]
    if unknown:
        raise UserError(f"{folder}: neither wnids nor labels of ImageNet: {abridge(unknown, 5)}")
    paths, labels = [], []
    for name in names:
        found = list(find_images(folder / name, left_out))
        paths += found
        labels += [labels_of[name]] * len(found)
    notes = left_out.notes(folder, "files or folders")
    if not paths:
        raise no_images(folder, notes)
    return FileImages(paths, np.array(labels, np.int64), folder, notes=notes)


def _class_folder(root: Path) -> Path:
    """Return the folder that holds the class folders: the root, or the only folder in it."""
    if not root.is_dir():
        raise UserError(f"{root}: no such directory; set it with -data_path")
    folders = class_folders(root)
    if len(folders) == 1 and not re.fullmatch(r"n\d{8}|\d{1,3}", folders[0]):
        return root / folders[0]
    return root


def corruption_folders(root: str | Path) -> dict[str, list[Path]]:
    """Return the folder of each severity for each of ImageNet-C's corruptions.

    The archives of the benchmark (blur, digital, noise, weather) may be unpacked below one folder each, or together.

    Raises:
        UserError: naming what is missing: a mean over some of them would not be the benchmark's.
    """
    root = user_path(root, "-data_path")
    found = {}
    for name in ALEXNET_ERRORS:
        places = [place for place in (root / name, *root.glob(f"*/{name}")) if place.is_dir()]
        found[name] = [places[0] / severity for severity in SEVERITIES] if places else []
    missing = [name for name, folders in found.items() if not folders]
    missing += [str(folder) for folders in found.values() for folder in folders if not folder.is_dir()]
    if missing:
        raise UserError(f"{root}: not a whole ImageNet-C, missing: {abridge(missing, 5)}")
    return found


def mean_corruption_error(errors: dict[str, list[float]]) -> dict[str, float]:
    """Summarise top-1 errors in [0, 1] by corruption and severity.

    Returns:
        `mce`: mean over corruptions of the mean error over severities / AlexNet's, in percent; `error`: the plain mean.
    """
    means = {name: float(np.mean(values)) for name, values in errors.items()}
    relative = [means[name] / ALEXNET_ERRORS[name] for name in ALEXNET_ERRORS]
    return {"mce": 100.0 * float(np.mean(relative)), "error": 100.0 * float(np.mean(list(means.values())))}
