"""Evaluate a classifier: accuracy, calibration, each class, confusion; and ImageNet's robustness benchmarks.

    python -m tools.evaluate RUN -out DIRECTORY [-data_path DIR] [-split val] [-image_size PX]
    python -m tools.evaluate RUN -out DIRECTORY -benchmark a -data_path imagenet-a        # also r, sketch, v2, c

RUN is a finetuning or probing run, one of its checkpoints, or a ported file with its YAML. Writes scores.json,
classes.csv, confusion.csv and report.html. `tools/robustness.py` says which layouts the benchmarks have and how they
are scored: -A and -R among their own 200 classes, -C as mean corruption error against AlexNet, beside the plain error.
"""

import runtime

runtime.prepare()

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle

from arguments import Parser
from errors import UserError
from methods import networks
from pipeline.loading import with_progress
from storage import atomic, run_files
from tools import inputs, pages, plots, robustness, tables
from training import cli, device

RESULTS = ("scores.json", "classes.csv", "confusion.csv", "corruptions.csv", "report.html")
_BINS = 15  # of the calibration error
_MOST_ROWS = 20  # of a table on the page


@paddle.no_grad()
def predict(model, loader, columns: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities [N, K] of all images of a loader, and their labels [N].

    Args:
        columns: [K] labels among which to choose; None: all classes of the model.
    """
    probabilities, labels = [], []
    for batch in with_progress(loader, len(loader.source), "evaluated"):
        logits = model(batch.images).astype("float32")
        if columns is not None:
            logits = logits[:, paddle.to_tensor(columns)]
        if not bool(paddle.isfinite(logits).all()):
            raise UserError("the model's outputs are not finite; are its weights whole?")
        probabilities.append(paddle.nn.functional.softmax(logits, axis=-1).numpy())
        labels.append(batch.labels.numpy())
    if not labels:
        raise UserError(f"{loader.source.origin}: none of its images can be read")
    return np.concatenate(probabilities), np.concatenate(labels)


def score(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return top-1 and top-5 accuracy in percent, negative log-likelihood, and expected calibration error.

    The calibration error is the mean over 15 equal bins of confidence, weighted by their images, of the difference
    between confidence and accuracy, in percent (Guo et al., arXiv 1706.04599).

    Args:
        probabilities: [N, K].
        labels: [N], columns of `probabilities`.
    """
    blocks = np.array_split(probabilities, max(1, len(probabilities) // 1024))  # all at once would take much memory
    order = np.concatenate([np.argsort(-block, axis=1, kind="stable")[:, :5] for block in blocks])
    is_right = order[:, 0] == labels
    confidence = probabilities.max(axis=1)
    bins = np.clip(np.ceil(confidence * _BINS).astype(int) - 1, 0, _BINS - 1)
    gaps = [abs(confidence[bins == b].sum() - is_right[bins == b].sum()) for b in range(_BINS)]
    likelihood = probabilities[np.arange(len(labels)), labels]
    return {
        "images": len(labels),
        "acc1": 100.0 * float(is_right.mean()),
        "acc5": 100.0 * float((order == labels[:, None]).any(axis=1).mean()),
        "nll": float(-np.log(np.maximum(likelihood, 1e-30)).mean()),
        "calibration_error": 100.0 * float(sum(gaps)) / len(labels),
    }


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Count [K, K] how often a class (row) was taken for one (column)."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def per_class(counts: np.ndarray, names: list[str]) -> list[dict[str, object]]:
    """Return images, accuracy (recall) and precision in percent of each class that has images, and its worst mix-up."""
    rows = []
    for label in np.flatnonzero(counts.sum(axis=1)):
        others = counts[label].copy()
        right, others[label] = int(others[label]), 0
        predicted = int(counts[:, label].sum())
        worst = int(others.argmax())
        rows.append(
            {
                "class": names[label],
                "images": int(counts[label].sum()),
                "acc1": 100.0 * right / int(counts[label].sum()),
                "precision": 100.0 * right / predicted if predicted else 0.0,
                "most often taken for": f"{names[worst]} ({others[worst]})" if others[worst] else "",
            }
        )
    return rows


def class_names(own: Sequence[str] | None, num_classes: int) -> list[str]:
    """Return names by label: the run's or the data set's own, ImageNet's for 1,000 classes, or numbers."""
    if own is not None:
        return [*own, *map(str, range(len(own), num_classes))]
    if num_classes == 1000:
        return [f"{wnid} {name}" for wnid, name in robustness.imagenet_classes()]
    return [str(label) for label in range(num_classes)]


def evaluate_source(model, config, source, out: Path, columns: np.ndarray | None = None) -> dict[str, float]:
    """Evaluate a model on a source, and write tables and a page; returns the scores."""
    notes: list[str] = []
    probabilities, labels = predict(model, inputs.open_loader(config, source, notes), columns)
    names = class_names(source.class_names or config.DATA.CLASS_NAMES, config.MODEL.NUM_CLASSES)
    if columns is not None:
        names, labels = [names[column] for column in columns], np.searchsorted(columns, labels)
    extra = {"skipped": len(notes)} if notes else {}
    return write_results(out, f"Evaluation on {source.origin}", probabilities, labels, names, extra=extra)


def write_results(
    out: Path,
    title: str,
    probabilities: np.ndarray,
    labels: np.ndarray,
    names: list[str],
    *,
    extra: dict[str, float] | None = None,
    more: list[tuple[str, str]] | None = None,
) -> dict[str, float]:
    """Write scores, tables and a page of predictions; returns the scores.

    Args:
        probabilities: [N, K].
        labels: [N], columns of `probabilities`.
        names: of the K classes.
        extra: scores from elsewhere.
        more: (heading, HTML) sections that go behind the scores.
    """
    scores = score(probabilities, labels) | (extra or {})
    run_files.claim(out, RESULTS)
    if scores["acc1"] < 100.0 and len(set(probabilities.argmax(axis=1).tolist())) == 1:
        print(f"warning: every image is taken for the class {names[int(probabilities[0].argmax())]}")
    counts = confusion_matrix(probabilities.argmax(axis=1), labels, len(names))
    classes = per_class(counts, names)
    tables.write_csv(out / "classes.csv", list(classes[0]), [list(row.values()) for row in classes])
    rows = [[name, *row] for name, row in zip(names, counts.tolist(), strict=True)]
    tables.write_csv(out / "confusion.csv", ["", *names], rows)
    worst = sorted(classes, key=lambda row: row["acc1"])
    sections = [
        ("Scores", pages.html_table(["score", "value"], [[name, value] for name, value in scores.items()])),
        *(more or []),
        (
            "Confusion",
            pages.html_figure(plots.draw_matrix(counts, names), "Row: class; column: what it was taken for."),
        ),
        (
            f"Classes with the lowest accuracy ({min(_MOST_ROWS, len(worst))} of {len(worst)})",
            _table(worst[:_MOST_ROWS]),
        ),
    ]
    _finish(out, title, scores, sections)
    return scores


def evaluate_corruptions(model, config, root: str, out: Path) -> dict[str, object]:
    """Evaluate a model on ImageNet-C; returns mean corruption error, plain error, and those of each corruption."""
    errors = {}
    for name, folders in robustness.corruption_folders(root).items():
        errors[name] = []
        for folder in folders:
            probabilities, labels = predict(model, inputs.open_loader(config, robustness.open_variant(folder)))
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
    run_files.claim(out, RESULTS)
    tables.write_csv(out / "corruptions.csv", list(rows[0]), [list(row.values()) for row in rows])
    table = pages.html_table(["score", "value"], [[name, value] for name, value in scores.items()])
    _finish(out, "ImageNet-C", scores, [("Scores", table), ("Errors in percent", _table(rows))])
    return scores


def _table(rows: list[dict[str, object]]) -> str:
    return pages.html_table(list(rows[0]), [list(row.values()) for row in rows])


def _finish(out: Path, title: str, scores: dict[str, object], sections: list[tuple[str, str]]) -> None:
    atomic.write_text(out / "scores.json", json.dumps(scores, indent=1))
    pages.write_page(out / "report.html", title, sections)
    print(
        ", ".join(
            f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in scores.items()
        )
    )
    print(f"wrote {out / 'report.html'}")


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Write the results, and return the scores."""
    parser = Parser(prog="python -m tools.evaluate", description=__doc__)
    inputs.add_flags(parser)
    parser.add("benchmark", "a variant of ImageNet", choices=robustness.BENCHMARKS)
    parser.add("out", "directory for the results", required=True, metavar="DIR")
    args = parser.parse_args(argv)
    out = inputs.new_directory(args.out, [args.run], writes=RESULTS)
    device.set_device()
    more = ["DATA.CROP_PCT", 1.0] if args.benchmark == "c" else []
    model, config = networks.load_classifier(args.run, inputs.read_config(args, *more))
    if args.benchmark is None:
        source = inputs.open_images(config, args.split, num_classes=config.MODEL.NUM_CLASSES)
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
    cli.run(main)
