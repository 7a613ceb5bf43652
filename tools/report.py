"""Write a self-contained HTML page about runs: curves, tables, pictures."""

import base64
import html
import io
import json
from pathlib import Path

from PIL import Image

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .9rem; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; }
figcaption { color: #555; }
figure { margin: 1rem 0; }
"""


def read_log(run_dir: str | Path) -> list[dict]:
    """Return the records of a run's log.jsonl, in order."""
    with open(Path(run_dir) / "log.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def curve(records: list[dict], event: str, name: str) -> list[tuple[float, float]]:
    """Return [(epoch, value), ...] of one metric."""
    return [(record["epoch"], record[name]) for record in records if record["event"] == event]


def html_table(header: list[str], rows: list[list[object]]) -> str:
    """Write a table; numbers are set right."""
    cells = "".join(f"<th>{html.escape(title)}</th>" for title in header)
    lines = [f"<tr>{cells}</tr>"]
    for row in rows:
        cells = ""
        for value in row:
            text = f"{value:.2f}" if isinstance(value, float) else html.escape(str(value))
            cells += f'<td class="number">{text}</td>' if isinstance(value, (int, float)) else f"<td>{text}</td>"
        lines.append(f"<tr>{cells}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def html_figure(image: Image.Image, caption: str) -> str:
    """Embed a picture."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    caption = html.escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )


def write_page(path: str | Path, title: str, sections: list[tuple[str, str]]) -> None:
    """Write a page of (heading, HTML) sections."""
    body = "\n".join(f"<h2>{html.escape(heading)}</h2>\n{content}" for heading, content in sections)
    title = html.escape(title)
    Path(path).write_text(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n{body}\n</body></html>\n",
        encoding="utf-8",
    )
