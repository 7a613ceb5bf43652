"""Evaluate a classifier or a segmenter: scores, each class, confusion; and ImageNet's robustness benchmarks.

    python -m tools.evaluate RUN -out DIRECTORY [-data_path DIR] [-split val] [-image_size PX]
    python -m tools.evaluate RUN -out DIRECTORY -benchmark a -data_path imagenet-a        # also r, sketch, v2, c

RUN is a finetuning, probing or segmentation run, one of its checkpoints, or a ported file with its YAML. Writes
scores.json, classes.csv, confusion.csv and report.html; of a segmenter, the page has the worst images, and images.csv
the scores of each. `measures/robustness.py` says which layouts the benchmarks have and how they
are scored: -A and -R among their own 200 classes, -C as mean corruption error against AlexNet, beside the plain error.
"""

import runtime

runtime.prepare()

from pathlib import Path

import numpy as np

from arguments import Parser
from config import network_kind
from errors import UserError
from launch import command_line, tool_flags
from measures import image_sets, robustness
from measures.classification import predict
from methods import classifier, load_models, segmentation
from pages import html, tables
from pages.evaluation import RESULTS, evaluate_source, finish, html_rows
from pages.segment_evaluation import evaluate_segmenter
from storage import results
from storage.architecture import SEGMENTER
from training import device, loaders


def evaluate_corruptions(model, config, root: str, out: Path) -> dict[str, object]:
    """Evaluate a model on ImageNet-C; returns mean corruption error, plain error, and those of each corruption."""
    errors = {}
    for name, folders in robustness.corruption_folders(root).items():
        errors[name] = []
        for folder in folders:
            probabilities, labels = predict(model, image_sets.open_loader(config, robustness.open_variant(folder)))
            errors[name].append(float((probabilities.argmax(axis=1) != labels).mean()))
        print(f"{name}: error {100 * np.mean(errors[name]):.2f} %", flush=True)
    scores = robustness.mean_corruption_error(errors)
    rows = [
        {
            "corruption": name,
            **{f"severity {level}": 100 * value for level, value in zip(robustness.SEVERITIES, values, strict=True)},
            "error": 100 * float(np.mean(values)),
            "AlexNet": 100 * robustness.ALEXNET_ERRORS[name],
        }
        for name, values in errors.items()
    ]
    results.claim(out, RESULTS)
    tables.write_csv(out / "corruptions.csv", list(rows[0]), [list(row.values()) for row in rows])
    table = html.html_table(["score", "value"], [[name, value] for name, value in scores.items()])
    finish(out, "ImageNet-C", scores, [("Scores", table), ("Errors in percent", html_rows(rows))])
    return scores


def _evaluate_segmenter(args, config, out: Path) -> dict[str, float]:
    if args.benchmark is not None:
        raise UserError(f"-benchmark {args.benchmark}: needs a classifier of images; {args.run} is a segmenter")
    model, config = load_models.load_segmenter(args.run, config)
    source = segmentation.check_classes(config, loaders.open_source(config, args.split, segmentation.TARGET))
    for warning in source.check(num_classes=None, channels=config.DATA.IMAGE_CHANNELS, is_val=args.split == "val"):
        print(f"warning: {warning}")
    return evaluate_segmenter(model, config, source, out)


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Write the results, and return the scores."""
    parser = Parser(prog="python -m tools.evaluate", description=__doc__)
    tool_flags.add_flags(parser)
    parser.add("benchmark", "a variant of ImageNet", choices=robustness.BENCHMARKS)
    parser.add("out", "directory for the results", required=True, metavar="DIR")
    args = parser.parse_args(argv)
    out = results.new_directory(args.out, [args.run], writes=RESULTS)
    device.set_device()
    more = ["DATA.CROP_PCT", 1.0] if args.benchmark == "c" else []
    config = tool_flags.read_config(args, *more)
    if network_kind(config) == SEGMENTER:
        return _evaluate_segmenter(args, config, out)
    model, config = load_models.load_classifier(args.run, config)
    if args.benchmark is None:
        needs = classifier.target(config)
        source = image_sets.open_images(config, args.split, needs, num_classes=config.MODEL.NUM_CLASSES)
        return evaluate_source(model, config, source, out)
    if config.MODEL.NUM_CLASSES != 1000:
        raise UserError(
            f"-benchmark {args.benchmark}: needs a classifier of ImageNet's 1,000 classes; "
            f"{args.run} has {config.MODEL.NUM_CLASSES}"
        )
    if args.benchmark == "c":
        return evaluate_corruptions(model, config, config.DATA.DATA_PATH, out)
    source = robustness.open_variant(config.DATA.DATA_PATH)
    print("".join(f"warning: {note}\n" for note in source.notes), end="")
    columns = np.unique(source.labels) if args.benchmark in ("a", "r") else None
    if columns is not None and len(columns) != 200:
        print(f"warning: {source.origin}: {len(columns)} classes, not the benchmark's 200; scores do not compare")
    return evaluate_source(model, config, source, out, columns)


if __name__ == "__main__":
    command_line.run(main)
