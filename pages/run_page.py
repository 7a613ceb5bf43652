"""The page about a run, or one that compares several: curves, figures, configuration, pictures."""

import math
from pathlib import Path

import numpy as np
import paddle

from config import get_config, network_kind
from errors import UserError, one_line
from measures import image_sets
from measures.classification import class_names, class_probabilities
from methods import classifier, load_models
from methods.multi_label import THRESHOLD
from pages import curves as curves_page
from pages import drawing, html, reconstruction, run_head, segments
from pipeline.wrapped_sources import Subset
from storage.architecture import CLASSIFIERS, SEGMENTER
from storage.files import NUMBER, is_a
from strict_config import read_yaml
from training import loaders
from training.log import read_log
from training.report import next_commands

PICTURES = ("reconstructions.png",)
_NUM_PICTURES, _NUM_QUERY_ROWS, _NUM_QUERIES = 8, 4, 8
_CURVES = (  # panel, label of y, event, metric
    ("Loss", "", "train", "loss"),
    ("Validation", "top-1 accuracy (%)", "eval", "acc1"),
    ("Validation", "mean average precision (%)", "eval", "map"),
    ("Validation loss", "", "eval", "loss"),
    ("Learning rate", "", "train", "lr"),
    ("Gradient norm", "", "train", "grad_norm"),
    ("Throughput", "images/s", "train", "images_per_sec"),
)


_NOT_DRAWN = ("event", "step", "epoch", "data_wait", "acc5", "mfu")


def curve(records: list[dict], event: str, name: str) -> list[tuple[float, float]]:
    """Return [(epoch, value), ...] of one metric; values that are not finite are left out."""
    points = [
        (record.get("epoch", 0.0), record[name])
        for record in records
        if record["event"] == event and is_a(record.get(name), NUMBER) and is_a(record.get("epoch", 0.0), NUMBER)
    ]
    return [(epoch, value) for epoch, value in points if math.isfinite(value)]


def _panels(logs: dict[str, list[dict]]) -> list[tuple[str, str, str, str]]:
    """Return the rows of `_CURVES`, and one for each other number that a method logs."""
    known = {*_NOT_DRAWN, *(name for _, _, _, name in _CURVES)}
    others = {}
    for record in (record for records in logs.values() for record in records):
        for name, value in record.items():
            if name not in known and is_a(value, NUMBER) and record["event"] in ("train", "eval"):
                others[record["event"], name] = (f"{name} ({record['event']})", "", record["event"], name)
    return [*_CURVES, *others.values()]


def draw_log(logs: dict[str, list[dict]]) -> str:
    """Draw the logged metrics, all runs in one chart per metric; returns HTML."""
    charts = []
    for title, y_label, event, name in _panels(logs):
        curves = {run: curve(records, event, name) for run, records in logs.items()}
        if (event, name) == ("train", "loss") and len(logs) == 1:  # beside each other
            (records,) = logs.values()
            curves = {"train": curve(records, event, name), "val": curve(records, "eval", name)}
        elif (event, name) == ("eval", "loss") and len(logs) == 1:
            continue
        if any(curves.values()):
            charts.append((f"{title}: {y_label}" if y_label else title, curves))
    return curves_page.html_charts(charts)


def summarise(run_dir: Path, records: list[dict]) -> dict[str, object]:
    """Return the figures of a run: last and best values, and the medians of speed and waiting."""
    figures: dict[str, object] = {"run": run_dir.name}
    train = [record for record in records if record["event"] == "train"]
    scores = [record for record in records if record["event"] == "eval"]
    if train:
        last = train[-1]
        known = {"updates": "step", "epochs": "epoch", "last loss": "loss"}
        figures |= {title: last[name] for title, name in known.items() if is_a(last.get(name), NUMBER)}
        for title, name, factor in (("images/s", "images_per_sec", 1), ("waiting for data (%)", "data_wait", 100)):
            values = [record[name] for record in train if is_a(record.get(name), NUMBER)]
            figures |= {title: factor * float(np.median(values))} if values else {}
    for name, value in (scores[-1] if scores else {}).items():
        if name not in _NOT_DRAWN and name != "loss" and is_a(value, NUMBER):
            figures[f"last {name}"] = value
    for name in ("acc1", "map"):
        values = [record[name] for record in scores if is_a(record.get(name), NUMBER)]
        figures |= {f"best {name}": max(values)} if values else {}
    return figures


def draw_samples(run_dir: Path) -> str:
    """Draw reconstructions, predictions or attention on some val images; returns HTML, or why there are no pictures."""
    try:
        config = get_config(run_dir / "config.yaml")
        if network_kind(config) in CLASSIFIERS:
            return _draw_predictions(run_dir, config)
        if network_kind(config) == SEGMENTER:
            return _draw_segments(run_dir, config)
        if network_kind(config) != "autoencoder":
            return _draw_attention(run_dir, config)
        return _reconstruct(run_dir, config).to_html()
    except (UserError, OSError, RuntimeError) as error:
        return html.html_paragraph(f"No pictures: {one_line(error).removeprefix('UserError: ')}")


def _reconstruct(run_dir: Path, config) -> reconstruction.Reconstruction:
    model, _ = load_models.load_autoencoder(run_dir)
    return reconstruction.reconstruct(model, config, drawing.draw_images(config, _NUM_PICTURES))


def write_pictures(run_dir: Path, folder: Path) -> None:
    """Write reconstructions.png of a pretraining run."""
    config = get_config(run_dir / "config.yaml")
    if network_kind(config) == "autoencoder":
        panels = _reconstruct(run_dir, config).panels
        drawing.make_grid(panels, reconstruction.COLUMNS).save(folder / "reconstructions.png")


def _draw_predictions(run_dir: Path, config) -> str:
    evaluated = config.MODEL.RESUME or config.MODEL.PRETRAINED
    model, _ = load_models.load_classifier(evaluated if config.EVAL else run_dir, config)
    source = image_sets.open_images(config, "val", classifier.target(config), num_classes=config.MODEL.NUM_CLASSES)
    chosen = Subset(source, np.random.default_rng(0).permutation(len(source))[:_NUM_PICTURES])
    names = class_names(source.class_names or config.DATA.CLASS_NAMES, config.MODEL.NUM_CLASSES)
    cells = []
    for batch in image_sets.open_loader(config, chosen):
        found = _found_classes(model, config, batch.images)
        pictures = drawing.as_uint8(drawing.to_pixels(config, batch.images))
        for picture, labels, guess in zip(pictures, batch.host_labels, found, strict=True):
            own = {label for label in np.atleast_1d(labels).tolist() if label >= 0}
            above, below = (", ".join(names[label] for label in sorted(some)) or "none" for some in (guess, own))
            cells.append((picture, above if guess == own else f"✗ {above}", "" if guess == own else f"label: {below}"))
        break
    about = html.html_paragraph("Below each image: the prediction; ✗ where the label is another.")
    if model.pooler is not None:
        about += _draw_pooler(model, config, drawing.load_images(config, source, chosen.indices[:_NUM_QUERY_ROWS]))
    return html.html_row(cells) + about


def _draw_pooler(model, config, images: np.ndarray) -> str:
    """Draw where the first queries or heads of an attentive pooler look."""
    panels = drawing.draw_pooler(model, config, images, _NUM_QUERIES)
    word = "query" if model.architecture.pooler == "ep" else "head"
    names = ["original", *(f"{word} {number}" for number in range(1, len(panels)))]
    about = "Where the pooler looks, each map scaled to its own largest weight."
    return html.html_grid(names, panels) + html.html_paragraph(about)


def _found_classes(model, config, images: paddle.Tensor) -> list[set[int]]:
    """Return the classes that a classifier finds in each image of a batch."""
    rows = class_probabilities(model, images, is_multi_label=config.TRAIN.MULTI_LABEL)
    if config.TRAIN.MULTI_LABEL:
        return [set(np.flatnonzero(row >= THRESHOLD).tolist()) for row in rows]
    return [{int(row.argmax())} for row in rows]


def _draw_segments(run_dir: Path, config) -> str:
    evaluated = config.MODEL.RESUME or config.MODEL.PRETRAINED
    model, _ = load_models.load_segmenter(evaluated if config.EVAL else run_dir, config)
    source = loaders.open_source(config, "val", "mask")
    return segments.draw(model, config, source, np.random.default_rng(0).permutation(len(source))[:_NUM_PICTURES])


def _draw_attention(run_dir: Path, config) -> str:
    model, _ = load_models.load_encoder(run_dir, config)
    panels = drawing.draw_attention(model, config, drawing.draw_images(config, _NUM_PICTURES))
    columns = ["original", "rollout", *(f"head {number}" for number in range(1, len(panels) - 1))]
    return html.html_grid(columns, panels) + html.html_paragraph("Attention: rollout, and heads of the last layer.")


def write_report(run_dir: Path, out: Path) -> None:
    """Write the page of one run."""
    records, config = read_log(run_dir), get_config(run_dir / "config.yaml")
    sections = [("", _head(run_dir, config, records))]
    if any(record["event"] == "train" for record in records):
        sections.append(("Curves", draw_log({run_dir.name: records})))
    sections.append(("Pictures", draw_samples(run_dir)))
    rows, count = run_head.settings_of_run(config)
    text = (run_dir / "config.yaml").read_text(encoding="utf-8", errors="replace")
    settings = html.html_table(["setting", "default", "this run"], rows)
    sections.append(("Configuration", settings + html.html_folded(f"all {count} settings", html.html_text(text))))
    html.write_page(out, run_dir.name, sections)


def _head(run_dir: Path, config, records: list[dict]) -> str:
    figures = summarise(run_dir, records)
    figures = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in figures.items()}
    figures.pop("run")
    facts = {"method": config.MODEL.TYPE.lower(), **run_head.facts_of_run(run_dir)}
    head = html.html_facts(facts) + html.html_facts(figures)
    command = run_head.command_of_run(run_dir)
    rows = [[purpose, line] for purpose, line in next_commands(run_dir, config).items()]
    head += html.html_text(command) if command else ""
    return head + (html.html_folded("What next?", html.html_table(["to", "run"], rows)) if rows else "")


def write_comparison(run_dirs: list[Path], out: Path) -> None:
    """Write the page of several runs: their curves together, figures, and where their configurations differ."""
    names = [directory.name for directory in run_dirs]
    if len(set(names)) < len(names):
        names = [str(directory) for directory in run_dirs]
    logs = {name: read_log(directory) for name, directory in zip(names, run_dirs, strict=True)}
    figures = [summarise(Path(name), records) | {"run": name} for name, records in logs.items()]
    header = list(dict.fromkeys(key for row in figures for key in row))
    table = html.html_table(header, [[row.get(key, "") for key in header] for row in figures])
    settings = [_flat(read_yaml(path / "config.yaml")) for path in run_dirs]
    keys = sorted({key for values in settings for key in values})
    differing = [key for key in keys if len({repr(values.get(key)) for values in settings}) > 1]
    rows = [[key, *(str(values.get(key)) for values in settings)] for key in differing]
    sections = [("Figures", table), ("Curves", draw_log(logs)), ("Differences", html.html_table(["", *names], rows))]
    html.write_page(out, f"Comparison of {len(run_dirs)} runs", sections)


def _flat(values: dict, prefix: str = "") -> dict[str, object]:
    """Return {"A.B": value} of nested values."""
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
