"""Check a data set before anything is trained on it.

    python -m tools.check_dataset -dataset folder -data_path DIR [-num_classes N] [-full] [-json FILE]
    python -m tools.check_dataset -dataset folder -data_path DIR -cfg FILE       # of arrays (DATA.PIXELS)

Reports, for the train and the val split, what a training would stop at (missing files, labels out of range, empty
classes, with -full images that cannot be decoded), and counts per class; with -full also images whose bytes are those
of others, in the same split or in both; of sets with masks, the share of each class of
the pixels, masks that do not fit their images, values that stand for nothing, and images in both splits; of arrays,
pixels outside the range of the YAML and means far from its mean. Exit code 0 if all is well, 1 if not.
"""

import runtime

runtime.prepare()

import collections
import concurrent.futures
import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np

import datasets
from arguments import Parser
from config import DATASETS, get_config
from errors import UserError, abridge, one_name
from launch import command_line
from launch.tool_flags import share
from pipeline import array_source, decoding, mask_check, mask_sets, pixel_check, sources
from pipeline.image_lists import list_names
from pipeline.splits import find_split
from storage import atomic, results

_SPLITS = ("train", "val")
_LOOKED_AT = 16  # images whose headers are read without -full


def check_split(
    name: str,
    data_path: str,
    split: str,
    num_classes: int | None,
    full: bool,
    config=None,
    seen=None,
    **options: object,
) -> dict:
    """Check one split.

    Args:
        name: as `-dataset`.
        num_classes: labels must be below it; None: as many as the split's largest label tells.
        full: decode every image.
        config: of a training on arrays, which says what their numbers mean; None: photos with three channels.
        seen: a dictionary from contents to (split, name) of the first image of each, to which `full` adds.
        options: `val_split` and `val_fraction` of `datasets.open_source`.

    Returns:
        Plain values: "images", "classes", "smallest_class", "largest_class", "problems", "warnings", "undecodable".
    """
    report: dict = {"problems": [], "warnings": [], "undecodable": []}
    channels = 3 if config is None else config.DATA.IMAGE_CHANNELS
    if name in mask_sets.NAMES:
        return _check_masked(name, data_path, split, num_classes, full, channels, report, **options)
    try:
        may_lack_labels = name in ("lists", "webdataset")
        needs = "none" if may_lack_labels else "label"
        source = datasets.open_source(name, data_path, split, num_classes=num_classes or 10, needs=needs, **options)
        source = source if config is None else array_source.as_configured(config, source)
        has_labels = not may_lack_labels or source.has_labels
        if num_classes is None:
            num_classes = source.count_classes() if has_labels else 0
        report |= {"images": len(source), "classes": num_classes}
        if not may_lack_labels:
            counts = collections.Counter(source.single_labels().tolist()).values()
            report |= {"smallest_class": min(counts, default=0), "largest_class": max(counts, default=0)}
        limit = max(1, num_classes) if has_labels else None
        report["warnings"] = source.check(num_classes=limit, channels=channels, is_val=split == "val")
    except UserError as error:
        report["problems"].append(str(error))
        return report
    looked_at = range(len(source)) if full else range(min(len(source), _LOOKED_AT))
    report["warnings"] += _oddities(source, config, looked_at)
    if full:
        report["undecodable"], digests = _read_all(source, channels)
        report["warnings"] += _copies(source, split, digests, {} if seen is None else seen)
    return report


def _oddities(source: sources.Source, config, looked_at: range) -> list[str]:
    """Return what reading some images leaves out, and what is odd about the numbers of arrays."""
    lost = sources.describe_lost(source, looked_at)
    return lost if config is None else lost + pixel_check.pixel_problems(config, source, looked_at)


def _read_all(source: sources.Source, channels: int) -> tuple[list[str], list[bytes | None]]:
    """Return why images cannot be decoded, and the digest of each; a file's second reading is from memory."""

    def look_at(index: int) -> tuple[str | None, bytes | None]:
        return sources.why_unreadable(source, index, channels), _digest(source, index)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(look_at, range(len(source))))
    return [why for why, _ in found if why], [digest for _, digest in found]


def _copies(
    source: sources.Source, split: str, digests: list[bytes | None], seen: dict[bytes, tuple[str, str]]
) -> list[str]:
    """Return lines on images whose bytes another image of this split, or of one that was looked at before, has."""
    found = {"copies of others": [], "in another split, too": []}
    for index, digest in enumerate(digests):
        if digest is not None:
            name = one_name(source.name(index))
            own = seen.setdefault(digest, (split, name))
            if own != (split, name):
                kind = "copies of others" if own[0] == split else "in another split, too"
                found[kind].append(f"{name} = {own[0]} {own[1]}")
    what = "; python -m tools.curate finds near copies, too"
    return [
        f"{source.origin}: {len(names):,} images are {kind}: {abridge(names, 3)}{what}"
        for kind, names in found.items()
        if names
    ]


def _digest(source: sources.Source, index: int) -> bytes | None:
    try:
        data = source.read(index) if source.is_encoded else np.ascontiguousarray(source.image(index)).tobytes()
    except Exception:  # named as undecodable
        return None
    return hashlib.sha256(data).digest()


def _check_masked(
    name: str, data_path: str, split: str, num_classes: int | None, full: bool, channels: int, report: dict, **options
) -> dict:
    """Check a split with masks: adds "pixels", the lines of `mask_check.describe_shares`."""
    try:
        source = datasets.open_source(name, data_path, split, num_classes=num_classes, needs="mask", **options)
        num_classes = num_classes or source.count_classes()
        report |= {"images": len(source), "classes": num_classes}
        report["warnings"] = source.check(num_classes=None, channels=channels, is_val=split == "val")
        pixels, count, report["undecodable"] = mask_check.check_masks(source, num_classes, full, channels)
        if np.count_nonzero(pixels[:-1]) < 2:
            what = "only one class has pixels" if pixels[:-1].any() else "no pixel has a class"
            report["warnings"].append(f"{source.origin}: {what}; is a value that is ignored one too (-mask_ignore)?")
        report["pixels"] = mask_check.describe_shares(pixels, source.class_names)
        if count < len(source):
            report["pixels"].append(f"of {count:,} of {len(source):,} masks; -full reads all")
    except (UserError, ValueError, OSError) as error:
        report["problems"].append(str(error))
    return report


def _overlap(name: str, data_path: str, num_classes: int | None, **options: object) -> list[str]:
    """Return problems of both splits of a set with masks: images that both have, by their paths, and other classes."""
    try:
        splits = [
            datasets.open_source(name, data_path, split, num_classes=num_classes, needs="mask", **options)
            for split in _SPLITS
        ]
    except UserError:  # said for that split
        return []
    first, second = ({os.path.realpath(source.path(index) or "") for index in range(len(source))} for source in splits)
    shared = sorted(first & second - {os.path.realpath("")})
    problems = [f"{len(shared):,} images are in train and in val: {abridge(shared, 3)}"] if shared else []
    names = [source.class_names for source in splits]
    if None not in names:
        try:
            splits[1].use_class_names(names[0])
        except UserError as error:
            problems.append(str(error))
    return problems


def _is_wanted(name: str, root: Path, split: str) -> bool:
    """Return True if a split must be there: image-text sets need none to evaluate on."""
    if name not in ("webdataset", "lists"):
        return True
    own = find_split(root, split)
    return any((root / entry).exists() for entry in ([own] if name == "webdataset" else list_names(own)))


def _arrays_of(cfg: str | None) -> object:
    """Return the configuration of a training on arrays; None without one."""
    config = None if cfg is None else get_config(cfg)
    if config is not None and config.DATA.PIXELS != "array":
        raise UserError(
            f"-cfg {cfg}: its DATA.PIXELS is {config.DATA.PIXELS}, and this flag is for arrays only; leave it out"
        )
    decoding.allow_arrays(config is not None)
    return config


def main(argv: list[str] | None = None) -> int:
    """Print the report, and return the exit code."""
    parser = Parser(prog="python -m tools.check_dataset", description=__doc__)
    parser.add("dataset", "as in training", required=True)
    parser.add("data_path", "as in training", default=".")
    parser.add("num_classes", "MODEL.NUM_CLASSES; default: what the data has", type=int)
    parser.add("val_split", "DATA.VAL_SPLIT", metavar="NAME")
    parser.add("val_fraction", "DATA.VAL_FRACTION", type=share, metavar="SHARE")
    parser.add("mask_ignore", "DATA.MASK_IGNORE (default: 255; -1: none)", type=int, default=255, metavar="VALUE")
    parser.add("mask_zero_is_other", "DATA.MASK_ZERO_IS_OTHER", action="store_true")
    parser.add("cfg", "YAML of a training on arrays (DATA.PIXELS array)", metavar="FILE")
    parser.add("full", "decode every image", action="store_true")
    parser.add("json", "write the report there, too", metavar="FILE")
    args = parser.parse_args(argv)
    if args.dataset not in DATASETS:
        raise UserError(f"-dataset {args.dataset}: must be one of {', '.join(DATASETS)}")
    if args.num_classes is not None and args.num_classes < 1:
        raise UserError(f"-num_classes {args.num_classes}: must be at least 1")
    if args.json:
        results.new_file(args.json, ".json", flag="-json")
    config = _arrays_of(args.cfg)
    splits = [split for split in _SPLITS if split == "train" or _is_wanted(args.dataset, Path(args.data_path), split)]
    options = {"val_split": args.val_split, "val_fraction": args.val_fraction}
    if args.dataset == "masks":
        ignored = args.mask_ignore if args.mask_ignore >= 0 else None
        options |= {"ignored": ignored, "zero_is_other": args.mask_zero_is_other}
    common, seen = (args.num_classes, args.full, config), {}
    reports = {split: check_split(args.dataset, args.data_path, split, *common, seen, **options) for split in splits}
    if args.dataset in mask_sets.NAMES:
        reports["val"]["problems"] += _overlap(args.dataset, args.data_path, args.num_classes, **options)
    for split, report in reports.items():
        keys = ("images", "classes", "smallest_class", "largest_class")
        counts = ", ".join(f"{key} {report[key]:,}" for key in keys if key in report)
        print(f"{split}: {counts}" if counts else f"{split}:")
        for title in ("pixels", "problems", "warnings", "undecodable"):
            lines = report.get(title, [])
            for line in lines[:20]:
                print(f"  {title}: {line}")
            if len(lines) > 20:
                print(f"  {title}: and {len(lines) - 20} more")
    is_good = not any(report["problems"] or report["undecodable"] for report in reports.values())
    is_used = not any(report["warnings"] for report in reports.values())
    print(
        "all is well" if is_good and is_used else "usable, but see the warnings" if is_good else "not as it should be"
    )
    if args.json:
        atomic.write_text(args.json, json.dumps({"ok": is_good, **reports}, indent=1))
    return 0 if is_good else 1


if __name__ == "__main__":
    command_line.run(lambda: sys.exit(main()))
