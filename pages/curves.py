"""Charts of a page: curves that a script in it draws, see curves.js. Nothing is read from the network."""

import html
import json
import math
from pathlib import Path

_SCRIPT = Path(__file__).with_name("curves.js")
_MOST_POINTS = 2000  # in a curve

Points = list[tuple[float, float]]


def html_charts(panels: list[tuple[str, dict[str, Points]]], x_label: str = "epoch", logarithmic: bool = False) -> str:
    """Write charts side by side, as many as the window is wide, and the script that draws them.

    Args:
        panels: (title, {legend: [(x, y), ...]}); values that are not finite are left out.
        logarithmic: charts begin with a logarithmic axis.
    """
    charts = "".join(_chart(title, curves, x_label, logarithmic) for title, curves in panels)
    return f'<div class="charts">{charts}</div>\n<script>\n{_SCRIPT.read_text(encoding="utf-8")}</script>'


def _chart(title: str, curves: dict[str, Points], x_label: str, logarithmic: bool) -> str:
    finite = {name: [(x, y) for x, y in points if math.isfinite(x + y)] for name, points in curves.items()}
    kept = [(str(name), _thinned(points)) for name, points in finite.items() if points]
    data = json.dumps({"title": title, "x_label": x_label, "curves": kept}).replace("<", "\\u003c")
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption><div class="plot"></div>'
        '<div class="legend"></div><div class="controls"><output></output>'
        '<label>smooth <input class="smooth" type="range" min="0" max="0.99" step="0.01" value="0"></label>'
        f'<label><input class="log" type="checkbox"{" checked" if logarithmic else ""}> log</label></div>'
        f'<script type="application/json">{data}</script></figure>\n'
    )


def _thinned(points: Points) -> Points:
    """Return every n-th point, and the last one, where there are more than a page can show."""
    every = math.ceil(len(points) / _MOST_POINTS)
    return points if every == 1 else [*points[:-1:every], points[-1]]
