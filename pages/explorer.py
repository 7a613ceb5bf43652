"""The page of a curation: a map of the set, and its copies, leaks, doubtful labels, outliers, quality and classes.

It is read from a file, without a server and without the net. Up to `_ONE_FILE` images it is one file; of more, numbers
and names are in data.js and pictures in sheets beside it, which pages may load from a file.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from measures.curation import layout
from measures.curation.duplicates import KINDS
from measures.curation.findings import Findings
from measures.curation.image_facts import PICTURE_PX, QUALITY
from pages import curation_tables as tables
from pages import html
from storage import atomic

MAPS = layout.MAPS
PAGE, _DATA, _SHEET = "index.html", "data.js", "sheet-{:03d}.webp"
_ONE_FILE, _MOST_SHOWN = 10_000, 100_000
_COLUMNS = 128  # pictures in a row of a sheet, and rows
_MOST_SHEETS = -(-_MOST_SHOWN // _COLUMNS**2)
FILES = (PAGE, _DATA, *(_SHEET.format(number) for number in range(_MOST_SHEETS)))
_BINS, _ENDS = 40, 48  # bars of a measure's histogram, and images at each end of it
_NO_LABEL = 0xFFFF


def write(
    out: Path, found: Findings, keep: np.ndarray, vectors: np.ndarray, summary: dict[str, object], kind: str, seed: int
) -> None:
    """Write the page.

    Args:
        keep: images of keep.txt.
        vectors: [R, D] of the readable images.
        summary: of summary.json.
        kind: of the map, one of `MAPS`.
    """
    shown = _choose_shown(found, seed)
    places = np.searchsorted(found.readable, shown)
    data = _describe(found, shown, summary, kind)
    data["keep"] = _base64(np.isin(shown, keep).astype(np.uint8))
    data["points"] = _points(
        found, shown, layout.coordinates(vectors, kind, seed)[places], layout.clusters(vectors, seed)[places]
    )
    sheets = list(_sheets(found.facts, shown))
    is_one_file = len(shown) <= _ONE_FILE
    names = [_SHEET.format(number) for number in range(len(sheets))]
    data["sheets"] = [f"data:image/webp;base64,{_base64(sheet)}" for sheet in sheets] if is_one_file else names
    script = f"const DATA = {json.dumps(data)};\n".replace("<", "\\u003c")
    for name in FILES[1:]:
        (out / name).unlink(missing_ok=True)
    if not is_one_file:
        atomic.write_text(out / _DATA, script)
        for name, sheet in zip(names, sheets, strict=True):
            with atomic.replacing(out / name) as temporary:
                temporary.write_bytes(sheet)
    atomic.write_text(out / PAGE, _page(script if is_one_file else None, summary))


def _page(script: str | None, summary: dict[str, object]) -> str:
    folder = Path(__file__).parent
    code, style = ((folder / f"explorer.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    data = f'<script src="{_DATA}"></script>' if script is None else f"<script>\n{script}</script>"
    facts = {name: value for name, value in summary.items() if isinstance(value, (int, float))}
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Data set</title>'
        f"<style>{html.STYLE}{style}</style></head>\n<body>\n<h1>Data set</h1>\n{html.html_facts(facts)}\n"
        '<div id="tabs" role="tablist"></div><main id="panel" role="tabpanel" tabindex="-1"></main>\n'
        f"<noscript>This page needs JavaScript; the tables beside it do not.</noscript>\n{data}\n"
        f"<script>\n{code}</script>\n</body></html>\n"
    )


def _choose_shown(found: Findings, seed: int) -> np.ndarray:
    """Return the images on the page: all that can be read, or those that are named anywhere, and others at random."""
    if len(found.readable) <= _MOST_SHOWN:
        return found.readable
    named = [doubt.image for doubt in found.labels] + found.contradicted + found.outliers.tolist()
    named += [member for group in found.groups for member in group.members]
    named = np.array(list(dict.fromkeys(named))[:_MOST_SHOWN], np.int64)
    others = np.random.default_rng(seed).permutation(np.setdiff1d(found.readable, named))
    return np.sort(np.concatenate([named, others[: _MOST_SHOWN - len(named)]]))


def _describe(found: Findings, shown: np.ndarray, summary: dict[str, object], kind: str) -> dict[str, object]:
    """Return what the page says in words and numbers; images are places among those that are shown."""
    images, place = found.images, {int(number): row for row, number in enumerate(shown)}
    groups = [
        {
            "members": [place[member] for member in group.members if member in place],
            "kept": place.get(group.kept, -1),
            "about": f"{KINDS[group.kind]}{', mirrored' * group.has_mirrored}, correlation {group.correlation:.2f}",
        }
        for group in found.groups
    ]
    doubtful = [*found.contradicted, *(doubt.image for doubt in found.labels)]
    doubts = [
        {"image": place[number], "why": row[-1]}
        for number, row in zip(doubtful, tables.doubtful(found), strict=True)
        if number in place
    ]
    leaks = [
        {"image": place[other], "train": place[train], "about": f"{row[4]}, correlation {row[7]}" if row[7] else row[4]}
        for (other, train), row in zip(found.leaks(), tables.leaks(found), strict=True)
        if other in place and train in place
    ]
    return {
        "names": [images.name(number) for number in shown.tolist()],
        "splits": images.splits,
        "classes": [images.label_name(label) for label in range(int(images.labels.max(initial=-1)) + 1)],
        "counts": _counts(images),
        "groups": groups,
        "labels": doubts,
        "leaks": leaks,
        "outliers": [place[number] for number in found.outliers.tolist() if number in place],
        "quality": _quality(found, shown),
        "total": len(found.readable),
        "kind": kind,
        "notes": [*summary["notes"], *_problems(found)],
        "columns": _COLUMNS,
    }


def _problems(found: Findings) -> list[str]:
    return [text.decode("utf-8", "replace") for text in found.facts["problem"][found.facts["problem"] != b""][:100]]


def _counts(images) -> list[list[int]]:
    """Return the number of images of each class in each split."""
    size = int(images.labels.max(initial=-1)) + 1
    splits = range(len(images.splits))
    return [
        np.bincount(images.labels[(images.split == n) & (images.labels >= 0)], minlength=size).tolist() for n in splits
    ]


def _quality(found: Findings, shown: np.ndarray) -> list[dict[str, object]]:
    """Return for each measure its histogram, and the images at both ends."""
    values, panels = found.facts["quality"][shown].astype(np.float64), []
    for column, (name, about) in enumerate(QUALITY.items()):
        own = values[:, column]
        order = np.argsort(own, kind="stable")
        low, high = np.quantile(own, [0.005, 0.995])
        counts, edges = np.histogram(own.clip(low, high), _BINS, (low, max(high, low + 1e-9)))
        ends = {"lowest": order[:_ENDS], "highest": order[::-1][:_ENDS]}
        ends = {end: [[int(row), round(float(own[row]), 4)] for row in rows] for end, rows in ends.items()}
        panels.append(
            {"name": name, "about": about, "counts": counts.tolist(), "low": low, "high": float(edges[-1]), **ends}
        )
    return panels


def _points(found: Findings, shown: np.ndarray, xy: np.ndarray, clusters: np.ndarray) -> dict[str, str]:
    """Return the numbers of each image, [N], little-endian and in base64."""
    labels = found.images.labels[shown]
    arrays = {
        "x": (65535 * xy[:, 0]).astype("<u2"),
        "y": (65535 * xy[:, 1]).astype("<u2"),
        "label": np.where(labels >= 0, labels, _NO_LABEL).clip(0, _NO_LABEL).astype("<u2"),
        "split": found.images.split[shown].astype(np.uint8),
        "cluster": clusters.astype(np.uint8),
        "score": (255 * found.typicality[shown].clip(0, 1)).astype(np.uint8),
    }
    return {name: _base64(array) for name, array in arrays.items()}


def _sheets(facts: np.ndarray, shown: np.ndarray):
    """Yield WebP files with the pictures of the images, in rows."""
    each = _COLUMNS**2
    for first in range(0, len(shown), each):
        pictures = facts["picture"][shown[first : first + each]]
        rows = -(-len(pictures) // _COLUMNS)
        sheet = np.zeros((rows * _COLUMNS, PICTURE_PX, PICTURE_PX, 3), np.uint8)
        sheet[: len(pictures)] = pictures
        sheet = sheet.reshape(rows, _COLUMNS, PICTURE_PX, PICTURE_PX, 3).swapaxes(1, 2)
        buffer = io.BytesIO()
        Image.fromarray(sheet.reshape(rows * PICTURE_PX, -1, 3)).save(buffer, "WEBP", quality=80)
        yield buffer.getvalue()


def _base64(data: bytes | np.ndarray) -> str:
    return base64.b64encode(data if isinstance(data, bytes) else data.tobytes()).decode("ascii")
