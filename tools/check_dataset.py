"""Check a data set before anything is trained on it.

    python -m tools.check_dataset -dataset folder -data_path DIR [-num_classes N] [-full] [-json FILE]

Reports, for the train and the val split, what a training would stop at (missing files, labels out of range, empty
classes, with -full images that cannot be decoded), and counts per class. Exit code 0 if all is well, 1 if not.
"""

import runtime

runtime.prepare()

import collections
import concurrent.futures
import json
import os
import sys
from pathlib import Path

import datasets
from arguments import Parser
from config import DATASETS
from errors import UserError
from launch import command_line
from launch.tool_flags import share
from pipeline import sources
from pipeline.image_lists import list_names
from pipeline.splits import find_split
from storage import atomic, results

_SPLITS = ("train", "val")


def check_split(
    name: str, data_path: str, split: str, num_classes: int | None, full: bool, channels: int = 3, **options: object
) -> dict:
    """Check one split.

    Args:
        name: as `-dataset`.
        num_classes: labels must be below it; None: as many as the split's largest label tells.
        full: decode every image.
        channels: that a model wants.
        options: `val_split` and `val_fraction` of `datasets.open_source`.

    Returns:
        Plain values: "images", "classes", "smallest_class", "largest_class", "problems", "warnings", "undecodable".
    """
    report: dict = {"problems": [], "warnings": [], "undecodable": []}
    try:
        may_lack_labels = name in ("lists", "webdataset")
        needs = "none" if may_lack_labels else "label"
        source = datasets.open_source(name, data_path, split, num_classes=num_classes or 10, needs=needs, **options)
        has_labels = not may_lack_labels or source.has_labels
        if num_classes is None:
            num_classes = source.count_classes() if has_labels else 0
        report |= {"images": len(source), "classes": num_classes}
        if not may_lack_labels:
            counts = collections.Counter(source.single_labels().tolist())
            least, most = min(counts.values(), default=0), max(counts.values(), default=0)
            report |= {"smallest_class": least, "largest_class": most}
        limit = max(1, num_classes) if has_labels else None
        report["warnings"] = source.check(num_classes=limit, channels=channels, is_val=split == "val")
    except UserError as error:
        report["problems"].append(str(error))
        return report
    if full:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            results = pool.map(lambda index: sources.why_unreadable(source, index, channels), range(len(source)))
            report["undecodable"] = [result for result in results if result]
    return report


def _is_wanted(name: str, root: Path, split: str) -> bool:
    """Return True if a split must be there: image-text sets need none to evaluate on."""
    if name not in ("webdataset", "lists"):
        return True
    own = find_split(root, split)
    return any((root / entry).exists() for entry in ([own] if name == "webdataset" else list_names(own)))


def main(argv: list[str] | None = None) -> int:
    """Print the report, and return the exit code."""
    parser = Parser(prog="python -m tools.check_dataset", description=__doc__)
    parser.add("dataset", "as in training", required=True)
    parser.add("data_path", "as in training", default=".")
    parser.add("num_classes", "MODEL.NUM_CLASSES; default: what the data has", type=int)
    parser.add("val_split", "DATA.VAL_SPLIT", metavar="NAME")
    parser.add("val_fraction", "DATA.VAL_FRACTION", type=share, metavar="SHARE")
    parser.add("full", "decode every image", action="store_true")
    parser.add("json", "write the report there, too", metavar="FILE")
    args = parser.parse_args(argv)
    if args.dataset not in DATASETS:
        raise UserError(f"-dataset {args.dataset}: must be one of {', '.join(DATASETS)}")
    if args.json:
        results.new_file(args.json, ".json", flag="-json")
    splits = [split for split in _SPLITS if split == "train" or _is_wanted(args.dataset, Path(args.data_path), split)]
    options = {"val_split": args.val_split, "val_fraction": args.val_fraction}
    reports = {
        split: check_split(args.dataset, args.data_path, split, args.num_classes, args.full, **options)
        for split in splits
    }
    for split, report in reports.items():
        keys = ("images", "classes", "smallest_class", "largest_class")
        counts = ", ".join(f"{key} {report[key]:,}" for key in keys if key in report)
        print(f"{split}: {counts}" if counts else f"{split}:")
        for title in ("problems", "warnings", "undecodable"):
            for line in report[title][:20]:
                print(f"  {title}: {line}")
            if len(report[title]) > 20:
                print(f"  {title}: and {len(report[title]) - 20} more")
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
