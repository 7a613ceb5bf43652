"""Flags of the tools for a model and images, and how both are loaded."""

import argparse
import itertools

from arguments import Parser
from config import get_config
from errors import UserError
from pipeline.decoding import allow_pixels
from storage import weight_files
from strict_config import read_pairs

_OVERRIDES = {
    "dataset": "DATA.DATASET",
    "data_path": "DATA.DATA_PATH",
    "image_size": "DATA.IMAGE_SIZE",
    "batch_size": "DATA.BATCH_SIZE",
}


def add_flags(parser: Parser, split: str | None = "val", run_is_needed: bool = True) -> None:
    """Add the flags of nearly every tool; split: None for a tool that reads both."""
    nargs = None if run_is_needed else "?"
    parser.add_argument("run", nargs=nargs, help="run, checkpoint directory, or weight file with its YAML beside it")
    add_data_flags(parser, split)


def add_data_flags(parser: Parser, split: str | None = "val") -> None:
    """Add the flags for images; split: None for a tool that reads both."""
    parser.add("dataset", "instead of the run's own", metavar="NAME")
    parser.add("data_path", "directory of the data set, instead of the run's own", metavar="DIR")
    if split is not None:
        parser.add("split", f"train or val (default: {split})", default=split, choices=("train", "val"))
    parser.add("image_size", "pixels, instead of the run's own", metavar="PX")
    parser.add("batch_size", "images at a time (default: 32)", type=int, default=32, metavar="N")
    parser.add("opts", "settings of the configuration: KEY VALUE or KEY=VALUE", nargs="+", action="extend", default=[])


def read_config(args: argparse.Namespace, *more: object):
    """Return the configuration of the weights in `args.run`, or the default one without weights, with overrides.

    Args:
        more: KEY VALUE pairs that come after those of the command line.
    """
    pairs = [(key, getattr(args, flag, None)) for flag, key in _OVERRIDES.items()]
    pairs = [(key, value) for key, value in pairs if value is not None] + read_pairs(args.opts)
    words = itertools.chain.from_iterable(pairs)
    beside = None if args.run is None else weight_files.config_beside(weight_files.resolve(args.run))
    config = get_config(beside, [*words, *more])
    allow_pixels(config.DATA.MAX_PIXELS)
    return config


def natural(text: str) -> int:
    """Read a number that is not negative, for a parser."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0")
    return int(text)


def share(text: str) -> float:
    """Read a number between 0 and 1, for a parser."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and below 1")
    return value


def list_inputs(args: argparse.Namespace, run: str | None = None) -> list[str]:
    """Return the paths that a tool reads: the weights (those of `args`, or others), and the data set's directory."""
    run = run or args.run
    try:
        return [run, read_config(argparse.Namespace(**{**vars(args), "run": run})).DATA.DATA_PATH]
    except UserError:  # said when they are read
        return [run]
