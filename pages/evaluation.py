"""The tables and the page of an evaluation."""

import json
from pathlib import Path

import numpy as np

from errors import UserError
from measures import image_sets
from measures.classification import class_names, confusion_matrix, per_class, per_label, predict, score
from methods import multi_label
from pages import html, plots, tables
from storage import atomic, results

RESULTS = ("scores.json", "classes.csv", "confusion.csv", "corruptions.csv", "images.csv", "report.html")
_MOST_ROWS = 20  # rows of a table on the page
_MOST_TRIVIAL = 5  # classes of which every image has its own among the first five


def evaluate_source(model, config, source, out: Path, columns: np.ndarray | None = None) -> dict[str, float]:
    """Evaluate a model on a source, and write tables and a page; returns the scores.

    Args:
        columns: [K] labels among which to choose; None: all classes of the model.
    """
    notes: list[str] = []
    loader, is_multi_label = image_sets.open_loader(config, source, notes), config.TRAIN.MULTI_LABEL
    probabilities, labels = predict(model, loader, columns, is_multi_label)
    names = class_names(source.class_names or config.DATA.CLASS_NAMES, config.MODEL.NUM_CLASSES)
    if columns is not None:
        names, labels = [names[column] for column in columns], np.searchsorted(columns, labels)
    extra = {"skipped": len(notes)} if notes else {}
    if is_multi_label:
        return _write_multi_label(
            out, f"Evaluation on {source.origin}{source.limited_by}", probabilities, labels, names, extra
        )
    return write_results(
        out, f"Evaluation on {source.origin}{source.limited_by}", probabilities, labels, names, extra=extra
    )


def _write_multi_label(
    out: Path, title: str, probabilities: np.ndarray, is_class: np.ndarray, names: list[str], extra: dict[str, float]
) -> dict[str, float]:
    """Write scores, tables and a page of predictions with several labels per image; returns the scores.

    Args:
        probabilities: [N, K].
        is_class: [N, K] bool.
    """
    scores = {"images": len(probabilities), **multi_label.score(probabilities, is_class), **extra}
    classes = per_label(probabilities, is_class, names)
    if not classes:
        raise UserError(f"{title}: none of its images has a label")
    results.claim(out, RESULTS)
    tables.write_csv(out / "classes.csv", list(classes[0]), [list(row.values()) for row in classes])
    worst = sorted(classes, key=lambda row: row["ap"])[:_MOST_ROWS]
    heading = f"Classes with the lowest average precision ({len(worst)} of {len(classes)})"
    finish(out, title, scores, [("Scores", _score_table(scores)), (heading, html_rows(worst))])
    return scores


def _draw_confusion(counts: np.ndarray, names: list[str]) -> str:
    """Draw a confusion matrix [K, K]: colours are shares of the rows, numbers are images."""
    shares = 100.0 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    labels = ("class", "taken for")
    picture = plots.draw_matrix(shares, names, labels=labels, limits=(0.0, 100.0), texts=counts)
    caption = "Colour: share of the images of a class (row), in %, that are taken for a class (column)"
    return html.html_figure(picture, f"{caption}; numbers: images." if len(names) <= 20 else f"{caption}.")


def _score_table(scores: dict[str, object]) -> str:
    return html.html_table(["score", "value"], [[name, value] for name, value in scores.items()])


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
    results.claim(out, RESULTS)
    if scores["acc1"] < 100.0 and len(set(probabilities.argmax(axis=1).tolist())) == 1:
        print(f"warning: every image is taken for the class {names[int(probabilities[0].argmax())]}")
    counts = confusion_matrix(probabilities.argmax(axis=1), labels, len(names))
    classes = per_class(counts, names)
    tables.write_csv(out / "classes.csv", list(classes[0]), [list(row.values()) for row in classes])
    rows = [[name, *row] for name, row in zip(names, counts.tolist(), strict=True)]
    tables.write_csv(out / "confusion.csv", ["", *names], rows)
    worst = sorted(classes, key=lambda row: row["acc1"])
    sections = [
        ("Scores", _score_table({k: v for k, v in scores.items() if k != "acc5" or len(names) > _MOST_TRIVIAL})),
        *(more or []),
        ("Confusion", _draw_confusion(counts, names)),
        (
            f"Classes with the lowest accuracy ({min(_MOST_ROWS, len(worst))} of {len(worst)})",
            html_rows(worst[:_MOST_ROWS]),
        ),
    ]
    finish(out, title, scores, sections)
    return scores


def html_rows(rows: list[dict[str, object]]) -> str:
    """Write a table of rows with equal keys."""
    return html.html_table(list(rows[0]), [list(row.values()) for row in rows])


def finish(out: Path, title: str, scores: dict[str, object], sections: list[tuple[str, str]]) -> None:
    """Write the scores and the page, and print them."""
    atomic.write_text(out / "scores.json", json.dumps(scores, indent=1))
    html.write_page(out / "report.html", title, sections)
    print(
        ", ".join(
            f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in scores.items()
        )
    )
    print(f"wrote {out / 'report.html'}")
