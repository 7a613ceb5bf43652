"""The tables and the page of a segmenter's evaluation."""

from pathlib import Path

import numpy as np

from errors import UserError
from measures.classification import class_names
from methods import segmentation_scores
from methods.segmenter import label_map
from pages import evaluation, html, plots, segments, tables
from pipeline.loading import with_progress
from pipeline.sources import Source
from pipeline.whole_images import WholeImages
from storage import results

_MOST_ROWS, _MOST_PICTURES = 20, 12


def evaluate_segmenter(model, config, source: Source, out: Path) -> dict[str, float]:
    """Segment a source's images, and write scores.json, classes.csv, confusion.csv, images.csv and report.html.

    The scores are those of `segmentation_scores.means`, from one confusion over all images; images.csv has those of
    each image by itself, the worst first.

    Returns:
        the scores.
    """
    notes: list[str] = []
    names = class_names(source.class_names or config.DATA.CLASS_NAMES, config.MODEL.NUM_CLASSES)
    counts, images = np.zeros((len(names), len(names) + 1), np.int64), []
    for batch in with_progress(WholeImages(config, source, notes.append), len(source), "evaluated"):
        truth = batch.masks[0].numpy()
        own = segmentation_scores.confusion(truth, label_map(model, config, batch.images[0], truth.shape), len(names))
        counts += own
        if own.any():  # a mask may have no class anywhere
            images.append((segmentation_scores.means(own), int(batch.host_indices[0]), int(own.sum())))
    if not images:
        raise UserError(f"{source.origin}: no pixel of its masks has a class; is DATA.MASK_IGNORE right?")
    images.sort(key=lambda image: (image[0]["miou"], image[1]))
    occurs = counts.sum(axis=1) > 0
    scores = {"images": len(images), "classes": int(occurs.sum()), **segmentation_scores.means(counts)}
    scores |= {"skipped": len(notes)} if notes else {}
    _write_tables(out, counts, names, images, source)
    worst = np.array([index for _, index, _ in images[:_MOST_PICTURES]])
    words = [f"mIoU {own['miou']:.1f}" for own, *_ in images[:_MOST_PICTURES]]
    pictures = segments.draw(model, config, source, worst, words)
    rows = _class_rows(counts, names)
    sections = [
        ("Scores", html.html_table(["score", "value"], [[name, value] for name, value in scores.items()])),
        (f"Images with the lowest mIoU ({len(worst)} of {len(images):,})", pictures),
        (
            f"Classes with the lowest IoU ({min(_MOST_ROWS, len(rows))} of {len(rows)})",
            evaluation.html_rows(rows[:_MOST_ROWS]),
        ),
        ("Confusion", _draw_confusion(counts[occurs], names, occurs)),
    ]
    evaluation.finish(out, f"Segmentation of {source.origin}{source.limited_by}", scores, sections)
    return scores


def _class_rows(counts: np.ndarray, names: list[str]) -> list[dict[str, object]]:
    """Return IoU, recall and precision in percent and pixels of the classes that are somewhere, the worst first."""
    hits, truth, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)[:-1]
    iou, rows = segmentation_scores.iou_by_class(counts), []
    for label in np.flatnonzero(truth + predicted):
        others = counts[label].copy()
        others[label] = 0
        worst = int(others.argmax())
        rows.append(
            {
                "class": names[label],
                "iou": float(iou[label]),
                "recall": 100.0 * float(hits[label] / truth[label]) if truth[label] else "",
                "precision": 100.0 * float(hits[label] / predicted[label]) if predicted[label] else "",
                "pixels": int(truth[label]),
                "most often taken for": f"{names[worst]} ({others[worst] / truth[label]:.1%})" if others[worst] else "",
            }
        )
    return sorted(rows, key=lambda row: row["iou"])


def _draw_confusion(counts: np.ndarray, names: list[str], occurs: np.ndarray) -> str:
    """Draw the shares of the pixels of each class that occurs (rows) by prediction."""
    shares = 100.0 * counts[:, :-1] / np.maximum(1, counts.sum(axis=1, keepdims=True))
    rows = [name for name, is_there in zip(names, occurs, strict=True) if is_there]
    texts = np.char.mod("%.0f", shares)
    picture = plots.draw_matrix(shares, rows, names, labels=("class", "taken for"), limits=(0.0, 100.0), texts=texts)
    return html.html_figure(picture, "Share of the pixels of a class (row), in %, that are taken for a class (column).")


def _write_tables(
    out: Path, counts: np.ndarray, names: list[str], images: list[tuple[dict[str, float], int, int]], source: Source
) -> None:
    """Write the tables."""
    results.claim(out, evaluation.RESULTS)
    rows = _class_rows(counts, names)
    tables.write_csv(out / "classes.csv", list(rows[0]), [list(row.values()) for row in rows])
    lines = [[name, *row] for name, row in zip(names, counts[:, :-1].tolist(), strict=True)]
    tables.write_csv(out / "confusion.csv", ["", *names], lines)
    files = [
        [str(source.path(index) or source.describe(index)), *own.values(), pixels] for own, index, pixels in images
    ]
    tables.write_csv(out / "images.csv", ["file", *images[0][0], "pixels"], files)
