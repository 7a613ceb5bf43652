"""Flags of the tools for a model and images, and how both are loaded."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from arguments import Parser
from config import get_config, image_size_hw, replaced
from errors import UserError
from pipeline import loading, sources
from pipeline.decoding import allow_pixels
from pipeline.samplers import EvalSampler
from pipeline.transforms import eval_transform
from storage import run_files, weight_files
from storage.json_files import read_json
from training import loaders

_OVERRIDES = {
    "dataset": "DATA.DATASET",
    "data_path": "DATA.DATA_PATH",
    "image_size": "DATA.IMAGE_SIZE",
    "batch_size": "DATA.BATCH_SIZE",
}


def add_flags(parser: Parser, split: str = "val") -> None:
    """Add the flags of nearly every tool."""
    parser.add_argument("run", help="run, checkpoint directory, or weight file with its YAML beside it")
    add_data_flags(parser, split)


def add_data_flags(parser: Parser, split: str = "val") -> None:
    """Add the flags for images."""
    parser.add("dataset", "instead of the run's own", metavar="NAME")
    parser.add("data_path", "directory of the data set, instead of the run's own", metavar="DIR")
    parser.add("split", f"train or val (default: {split})", default=split, choices=("train", "val"))
    parser.add("image_size", "pixels, instead of the run's own", metavar="PX")
    parser.add("batch_size", "images at a time (default: 32)", type=int, default=32, metavar="N")
    parser.add("opts", "KEY VALUE pairs for the configuration", nargs="+", action="extend", default=[])


def read_config(args: argparse.Namespace, *more: object):
    """Return the configuration of the weights in `args.run`, with the command line's overrides; `more` come last."""
    words = []
    for flag, key in _OVERRIDES.items():
        if getattr(args, flag, None) is not None:
            words += [key, getattr(args, flag)]
    config = get_config(weight_files.config_beside(weight_files.resolve(args.run)), [*words, *args.opts, *more])
    allow_pixels(config.DATA.MAX_PIXELS)
    return config


def open_any_images(config, split: str) -> sources.Source:
    """Open a split with its labels, or without where it has none."""
    try:
        return open_images(config, split)
    except UserError:
        return open_images(config, split, needs_labels=False)


def open_images(config, split: str, needs_labels: bool = True, num_classes: int | None = None) -> sources.Source:
    """Open a split.

    Args:
        num_classes: of a classifier that judges the images: labels must be below it, and are found by the names of
            its classes. None: labels are the data set's own.
    """
    config = config if num_classes is not None else replaced(config, "DATA.CLASS_NAMES", None)
    source = loaders.open_source(config, split, "label" if needs_labels else "none")
    source.labels = source.single_labels(strict=False)  # no tool reads several labels per image
    options = {"channels": config.DATA.IMAGE_CHANNELS, "is_val": split == "val"}
    for warning in source.check(num_classes=num_classes, **options):
        print(f"warning: {warning}")
    return source


def choose_balanced(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose images at random, as many of each class as possible; indices in ascending order.

    Args:
        labels: [N].
        count: of images; all are taken if there are no more.
    """
    rng = np.random.default_rng(seed)
    turns = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        turns[members] = rng.permutation(len(members))  # the first of each class, then the second of each, ...
    order = np.lexsort((rng.random(len(labels)), turns))
    return np.sort(order[:count])


def open_loader(config, source: sources.Source, notes: list[str] | None = None) -> loading.Loader:
    """Return batches as evaluation sees them, in the source's order; skipped images are appended to `notes`."""
    sampler = EvalSampler(len(source), config.DATA.BATCH_SIZE)
    note_bad = print if notes is None else notes.append
    return loaders.build_loader(config, source, eval_transform(config), sampler, note_bad=note_bad)


def new_directory(
    path: str | Path, inputs: Sequence[str | Path] = (), flag: str = "-out", writes: Sequence[str] = ()
) -> Path:
    """Make a directory for a tool's results, if it is not there.

    Args:
        inputs: runs and weight files that the results are made of; the directory may hold no such file.
        writes: names of the files that the tool may write there, after `run_files.claim`.

    Raises:
        UserError: if it cannot be made, is a run or a checkpoint, or holds an input, or a file of these names that is
            not from here.
    """
    path = run_files.check_target(path, flag)
    for given in inputs:
        if weight_files.resolve(given).resolve().parent == path.resolve():
            raise UserError(f"{flag} {path}: the weights {given} are in it; choose another directory")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be made a directory ({error.strerror})") from error
    run_files.claim(path, writes, flag, only_check=True)
    return path


def natural(text: str) -> int:
    """Read a number that is not negative, for a parser."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def new_file(
    path: str | Path, *suffixes: str, flag: str = "-out", inputs: Sequence[str | Path] = (), check: bool = True
) -> Path:
    """Check that a result can be written to a file of one of these suffixes.

    Args:
        inputs: files that the result is made of; it may be none of them.
        check: False where the file is a run's own.
    """
    path = run_files.check_target(path, flag, inputs) if check else Path(path)
    if path.suffix.lower() not in suffixes or not path.parent.is_dir() or path.is_dir():
        raise UserError(f"{flag} {path}: must be a {' or '.join(suffixes)} file in a directory that exists")
    if path.suffix.lower() == ".json" and path.exists() and not _is_report(path):
        raise UserError(f"{flag} {path}: exists, and is no report from here; choose another name")
    return path


def _is_report(path: Path) -> bool:
    """Return True if a file is a report of a tool: figures by name, or what `tools.check_dataset` writes."""
    try:
        values = read_json(path, most_bytes=1 << 24)
    except UserError:
        return False
    return "ok" in values or not any(isinstance(value, (dict, list)) for value in values.values())


def inputs_of(args: argparse.Namespace, run: str | None = None) -> list[str]:
    """Return the paths that a tool reads: the weights (those of `args`, or others), and the data set's directory."""
    run = run or args.run
    try:
        return [run, read_config(argparse.Namespace(**{**vars(args), "run": run})).DATA.DATA_PATH]
    except UserError:  # said when they are read
        return [run]


def input_of(config) -> tuple:
    """Return size, channels and normalisation of a model's images, which two models must share to be compared."""
    data = config.DATA
    return (image_size_hw(config), data.IMAGE_CHANNELS, tuple(data.IMAGENET_MEAN), tuple(data.IMAGENET_STD))
