"""The page of predictions: how many photos of each class, the photos that are least certain, and unreadable ones."""

import collections
import contextlib
import heapq
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from measures.prediction import Prediction
from pages import html
from pages.mask_files import MaskFiles
from pipeline import array_source, sources
from pipeline.sources import Source

_MOST_PHOTOS, _MOST_ROWS = 200, 50


class Summary:
    """What a page shows of predictions, gathered one by one: there may be more than fit the memory."""

    def __init__(self):
        self.counts: collections.Counter[str] = collections.Counter()
        self.unreadable: list[Prediction] = []
        self._least: list[tuple[float, int, Prediction]] = []
        self.total = 0

    def watch(self, rows: Iterator[Prediction]) -> Iterator[Prediction]:
        """Yield predictions, and take them into account."""
        for index, row in enumerate(rows):
            self.total += 1
            if row.error:
                self.unreadable.append(row)
            else:
                self.counts[row.classes[0]] += 1
                push = heapq.heappush if len(self._least) < _MOST_PHOTOS else heapq.heappushpop
                push(self._least, (-row.probabilities[0], -index, row))
            yield row

    def least_certain(self) -> list[tuple[int, Prediction]]:
        """Return index and prediction of the photos with the lowest probability, the lowest first."""
        return [(-index, row) for _, index, row in sorted(self._least, key=lambda item: (-item[0], -item[1]))]


def write_page(
    path: Path,
    title: str,
    summary: Summary,
    source: Source,
    channels: int,
    upright: bool,
    masks: MaskFiles | None = None,
) -> None:
    """Write the page.

    Args:
        source: of the photos.
        channels, upright: see `sources.read_image`.
        masks: of a segmenter; its overlays are shown instead of the photos.
    """
    least = summary.least_certain()
    photos = []
    for index, row in least:
        with contextlib.suppress(OSError):  # it has gone since
            photo = sources.read_image(source, index, channels, upright) if masks is None else masks.overlay(index)
            photos.append((np.atleast_3d(np.asarray(array_source.as_picture(photo))), *_caption(row)))
    heading, first = ("Least certain", "lowest probability") if masks is None else ("Most mixed", "smallest main class")
    about = html.html_paragraph(f"{len(photos):,} of {summary.counts.total():,}, those with the {first} first")
    rows = [[name, count] for name, count in summary.counts.most_common(_MOST_ROWS)]
    legend = "" if masks is None else masks.legend({name for _, row in least for name in row.classes})
    sections = [
        (f"Classes ({len(rows)} of {len(summary.counts)})", html.html_table(["class", "photos"], rows)),
        (heading, about + legend + html.html_row(photos)),
    ]
    if summary.unreadable:
        rows = [[row.file, row.error] for row in summary.unreadable[:_MOST_ROWS]]
        heading = f"Cannot be read ({len(rows)} of {len(summary.unreadable):,})"
        sections.append((heading, html.html_table(["file", "why"], rows)))
    html.write_page(path, title, sections)


def _caption(row: Prediction) -> tuple[str, str]:
    """Return the likeliest class, and two more with the file's name."""
    first, *others = (f"{name} {share:.0%}" for name, share in zip(row.classes[:3], row.probabilities, strict=False))
    return first, ", ".join([*others, Path(row.file).name])
