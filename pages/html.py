"""Self-contained HTML pages: headings, tables and pictures in one file, nothing from elsewhere."""

import base64
import html
import io
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from storage import atomic

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --line: #d1d9e0; --back: #fff; --panel: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9198a1; --line: #3d444d; --back: #0d1117; --panel: #151b23; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 96rem; margin: 1.5rem auto; padding: 0 1rem; color: var(--text);
  background: var(--back); overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; overflow-wrap: normal; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .9rem; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; }
figure { margin: 1rem 0; overflow-x: auto; }
figcaption { color: var(--soft); }
figure > img { background: #fff; }
pre { overflow-x: auto; background: var(--panel); padding: .7rem; font-size: .85rem; }
summary { cursor: pointer; }
.facts { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: .5rem 0; }
.facts div { min-width: 6rem; } .facts dt { color: var(--soft); font-size: .85rem; }
.facts dd { margin: 0; font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1.5rem; }
.chart { margin: 0; max-width: 44rem; } .chart figcaption { color: var(--text); font-weight: 600; }
.chart svg { width: 100%; height: auto; } .chart text { font-size: 21px; fill: var(--soft); }
.chart line.rule { stroke: var(--line); } .chart line.mark { stroke: var(--soft); }
.controls { display: flex; flex-wrap: wrap; gap: 1rem; font-size: .85rem; color: var(--soft); min-height: 1.5rem; }
.controls output { flex: 1; color: var(--text); } .controls input[type=range] { width: 5rem; vertical-align: middle; }
"""
GRID_STYLE = """
.grid { display: grid; gap: 4px; max-width: 80rem; align-items: end; overflow-x: auto; }
.grid b { font-weight: 600; font-size: clamp(.7rem, 2.6vw, .85rem); hyphens: auto; }
.grid span { grid-column: 1 / -1; color: var(--soft); font-size: .85rem; }
.grid img { width: 100%; display: block; }
.grid div span { display: block; }
.grid.row { grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); align-items: start; gap: 1rem; }
.grid img.small { image-rendering: pixelated; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1rem; font-size: .85rem; }
.legend span::before { content: ""; display: inline-block; width: 1rem; height: .2rem; margin-right: .4rem;
  background: var(--colour); vertical-align: middle; }
"""
_CELL = "3.6rem"  # at least, of an image in a column; a grid that is wider than the window scrolls
_SMALL_PX = 64  # an image with a shorter side is enlarged without smoothing
_SHOWN_PX = 320  # a larger image is embedded at this size
_PLOT_SCALE = 0.88  # at least, of a plot; its text is 12.6 px high at full size, and 11 px at this scale


class Link(NamedTuple):
    """A cell of a table that leads to a file, whose path is relative to the page."""

    text: str
    path: str

    def __str__(self) -> str:
        return self.text


def html_table(header: list[str], rows: list[list[object]]) -> str:
    """Write a table; numbers are set right."""
    cells = "".join(f"<th>{html.escape(str(title))}</th>" for title in header)
    lines = [f"<tr>{cells}</tr>"]
    for row in rows:
        cells = ""
        for value in row:
            text = f"{value:.2f}" if isinstance(value, float) else html.escape(str(value))
            if isinstance(value, Link):
                text = f'<a href="{urllib.parse.quote(value.path)}">{text}</a>'
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            cells += f'<td class="number">{text}</td>' if is_number else f"<td>{text}</td>"
        lines.append(f"<tr>{cells}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def html_figure(plot: Image.Image, caption: str) -> str:
    """Embed a plot; one that is wider than the window scrolls, so that its text stays legible."""
    caption = html.escape(caption)
    width = f"min-width: {_PLOT_SCALE * plot.width:.0f}px"
    picture = f'<img src="{_embed(plot, "PNG")}" style="{width}" alt="{caption}">'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def html_grid(headings: list[str], panels: Sequence[Sequence[np.ndarray]], names: Sequence[str] = ()) -> str:
    """Embed images in columns with headings, as wide as the page.

    Args:
        headings: of the columns.
        panels: B images, uint8 [H, W, C], for each column.
        names: of the B rows, above each; empty: without.
    """
    cells = [f"<b>{html.escape(heading)}</b>" for heading in headings]
    for row, images in enumerate(zip(*panels, strict=True)):
        if names:
            cells.append(f"<span>{html.escape(names[row])}</span>")
        pairs = zip(headings, images, strict=True)
        cells += [_cell(image, f"{names[row] if names else row + 1}, {heading}") for heading, image in pairs]
    style = f"grid-template-columns: repeat({len(headings)}, minmax({_CELL}, 1fr)); max-width: {14 * len(headings)}rem"
    return f'<div class="grid" style="{style}">{"".join(cells)}</div>'


def html_row(images: Iterable[tuple[np.ndarray, str, str]]) -> str:
    """Embed images side by side, as many as the window is wide.

    Args:
        images: uint8 [H, W, C], and what stands below it: a caption, and more in small letters.
    """
    cells = "".join(
        f"<div>{_cell(image, caption)}<b>{html.escape(caption)}</b><span>{html.escape(more)}</span></div>"
        for image, caption, more in images
    )
    return f'<div class="grid row">{cells}</div>'


def _cell(pixels: np.ndarray, alt: str) -> str:
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels[..., :3], (*pixels.shape[:2], 3))))
    is_small = min(image.size) <= _SMALL_PX
    if not is_small:
        image.thumbnail((_SHOWN_PX, _SHOWN_PX))
    kind = "small" if is_small else "large"
    return f'<img class="{kind}" src="{_embed(image, "PNG" if is_small else "WEBP")}" alt="{html.escape(alt)}">'


def _embed(image: Image.Image, format: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=format, quality=70)  # PNG has none
    return f"data:image/{format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def html_facts(facts: dict[str, object]) -> str:
    """Write facts side by side, each under its name."""
    entries = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd></div>" for name, value in facts.items()
    )
    return f'<dl class="facts">{entries}</dl>'


def html_folded(title: str, content: str) -> str:
    """Write HTML that a click on its title shows."""
    return f"<details><summary>{html.escape(title)}</summary>\n{content}\n</details>"


def html_paragraph(text: str) -> str:
    """Write a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def html_text(text: str) -> str:
    """Write a text as it is, with its line breaks."""
    return f"<pre>{html.escape(text)}</pre>"


def write_page(path: str | Path, title: str, sections: list[tuple[str, str]]) -> None:
    """Write a page of (heading, HTML) sections; a section without a heading comes first, as it is."""
    body = "\n".join(
        (f"<h2>{html.escape(heading)}</h2>\n" if heading else "") + content for heading, content in sections
    )
    title = html.escape(title)
    atomic.write_text(
        path,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{STYLE}{GRID_STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n{body}\n</body></html>\n",
    )
