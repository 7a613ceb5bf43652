"""The files of a curation: lists for training, tables for spreadsheets, groups as JSON. The same bytes each time."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from measures.curation.duplicates import KINDS
from measures.curation.findings import Findings
from measures.curation.image_facts import QUALITY
from pages.tables import write_csv
from pipeline import name_lists
from storage import atomic

GROUPS, LEAKS, LABELS, OUTLIERS, QUALITY_FILE = "groups.jsonl", "leaks.tsv", "labels.tsv", "outliers.tsv", "quality.tsv"
SIMILAR, KEEP, BALANCED, SUMMARY = "similar.tsv", "keep.txt", "balanced.txt", "summary.json"
FILES = (GROUPS, LEAKS, SIMILAR, LABELS, OUTLIERS, QUALITY_FILE, KEEP, SUMMARY)


def write(out: Path, found: Findings, keep: np.ndarray, comments: list[str], summary: dict[str, object]) -> None:
    """Write all files but balanced.txt.

    Args:
        keep: images of keep.txt.
        comments: at its head.
    """
    images = found.images
    lines = [json.dumps(_group(found, number)) for number in range(len(found.groups))]
    atomic.write_text(out / GROUPS, "".join(f"{line}\n" for line in lines))
    header = ["image", "split", "other", "other_split", "kind", "mirrored", "cosine", "correlation", "share"]
    _write(out / LEAKS, [*header, "label", "other_label"], leaks(found))
    _write(out / SIMILAR, header, _similar(found))
    _write(out / LABELS, ["image", "split", "label", "proposed", "score", "why"], doubtful(found))
    outliers = ([images.name(n), images.split_name(n), _round(found.typicality[n])] for n in found.outliers.tolist())
    _write(out / OUTLIERS, ["image", "split", "typicality"], outliers)
    _write(out / QUALITY_FILE, ["image", "split", "width", "height", "bytes", *QUALITY, "problem"], _quality(found))
    name_lists.write(out / KEEP, map(images.name, keep.tolist()), comments)
    atomic.write_text(out / SUMMARY, json.dumps(summary, indent=1))


def _write(path: Path, header: list[str], rows: Iterator[list]) -> None:
    write_csv(path, header, rows, delimiter="\t")


def _round(value: float) -> float:
    return round(float(value), 4)


def _group(found: Findings, number: int) -> dict[str, object]:
    group, images = found.groups[number], found.images
    members = [
        {"name": images.name(member), "split": images.split_name(member), "label": images.label_name(own)}
        for member, own in zip(group.members, images.labels[group.members].tolist(), strict=True)
    ]
    values = {"kind": KINDS[group.kind], "cosine": _round(group.cosine), "correlation": _round(group.correlation)}
    return {"kept": images.name(group.kept), **values, "mirrored": group.has_mirrored, "members": members}


def leaks(found: Findings) -> Iterator[list]:
    """Yield the rows of leaks.tsv: those of direct pairs with their measures, others as "group"."""
    images, pairs = found.images, found.pairs
    known = {}
    for row in np.flatnonzero(pairs.kind >= 0)[::-1].tolist():  # the first of several pairs counts
        known[tuple(sorted(pairs.images[row].tolist()))] = row
    for other, train in found.leaks():
        row = known.get((min(other, train), max(other, train)))
        values = ["group", "", "", "", ""] if row is None else _measures(found, row)
        names = [images.name(other), images.split_name(other), images.name(train), "train"]
        yield [*names, *values, *(images.label_name(int(images.labels[number])) for number in (other, train))]


def _measures(found: Findings, row: int) -> list:
    pairs = found.pairs
    kind = int(pairs.kind[row])
    values = (pairs.cosine[row], pairs.correlation[row], pairs.scale[row])
    return [KINDS[kind] if kind >= 0 else "similar", bool(pairs.is_mirrored[row]), *map(_round, values)]


def _similar(found: Findings) -> Iterator[list]:
    images, pairs = found.images, found.pairs
    for row in np.flatnonzero(pairs.kind < 0).tolist():
        one, other = pairs.images[row].tolist()
        if found.group[one] != found.group[other]:
            names = [images.name(one), images.split_name(one), images.name(other), images.split_name(other)]
            yield [*names, *_measures(found, row)]


def doubtful(found: Findings) -> Iterator[list]:
    """Yield the rows of labels.tsv: copies with two labels first."""
    images = found.images
    kept = {member: group.kept for group in found.groups for member in group.members}
    for member in found.contradicted:
        own, other = (images.label_name(int(images.labels[number])) for number in (member, kept[member]))
        why = f"{images.name(kept[member])}, which shows the same, has the label {other}"
        yield [images.name(member), images.split_name(member), own, other, 0.0, why]
    for doubt in found.labels:
        own = images.label_name(int(images.labels[doubt.image]))
        names = [images.name(doubt.image), images.split_name(doubt.image), own, images.label_name(doubt.proposed)]
        yield [*names, _round(doubt.score), f"the nearest images say {images.label_name(doubt.proposed)}"]


def _quality(found: Findings) -> Iterator[list]:
    images = found.images
    for number, facts in enumerate(found.facts):
        sizes = [int(facts[name]) for name in ("width", "height", "bytes")]
        values = [_round(value) for value in facts["quality"]]
        problem = facts["problem"].decode("utf-8", "replace")
        yield [images.name(number), images.split_name(number), *sizes, *values, problem]
