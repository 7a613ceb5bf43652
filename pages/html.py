"""Self-contained HTML pages: headings, tables and pictures in one file, nothing from elsewhere."""

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from storage import atomic

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .9rem; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; }
figcaption { color: #555; }
figure { margin: 1rem 0; }
.gallery { display: flex; flex-wrap: wrap; gap: 1rem; }
.gallery figure { width: 160px; margin: 0; overflow-wrap: anywhere; font-size: .85rem; }
pre { overflow-x: auto; background: #f5f5f5; padding: .7rem; font-size: .85rem; }
"""


def html_table(header: list[str], rows: list[list[object]]) -> str:
    """Write a table; numbers are set right."""
    cells = "".join(f"<th>{html.escape(str(title))}</th>" for title in header)
    lines = [f"<tr>{cells}</tr>"]
    for row in rows:
        cells = ""
        for value in row:
            text = f"{value:.2f}" if isinstance(value, float) else html.escape(str(value))
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            cells += f'<td class="number">{text}</td>' if is_number else f"<td>{text}</td>"
        lines.append(f"<tr>{cells}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def html_figure(image: Image.Image, caption: str, format: str = "PNG") -> str:
    """Embed a picture."""
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    source, caption = f"data:image/{format.lower()};base64,{data}", html.escape(caption)
    return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def html_gallery(photos: Iterable[tuple[Image.Image, str]], width_px: int = 160) -> str:
    """Embed photos with captions side by side, each at most twice as high as wide."""
    figures = []
    for photo, caption in photos:
        scale = min(width_px / photo.width, 2 * width_px / photo.height)
        small = photo.convert("RGB").resize([max(1, round(side * scale)) for side in photo.size])
        figures.append(html_figure(small, caption, format="JPEG"))
    return '<div class="gallery">' + "".join(figures) + "</div>"


def html_paragraph(text: str) -> str:
    """Write a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def html_text(text: str) -> str:
    """Write a text as it is, with its line breaks."""
    return f"<pre>{html.escape(text)}</pre>"


def write_page(path: str | Path, title: str, sections: list[tuple[str, str]]) -> None:
    """Write a page of (heading, HTML) sections."""
    body = "\n".join(f"<h2>{html.escape(heading)}</h2>\n{content}" for heading, content in sections)
    title = html.escape(title)
    atomic.write_text(
        path,
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n{body}\n</body></html>\n",
    )
