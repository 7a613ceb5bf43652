"""Plots as pictures, by matplotlib."""

import io
import logging
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

_MOST_NAMES = 40  # at an axis
_MOST_TEXTS = 20  # rows or columns of cells with texts


def new_axes(count: int = 1, size: tuple[float, float] = (4.2, 3.2)) -> tuple[object, list]:
    """Return a figure, and axes side by side, each of a size in inches."""
    import matplotlib

    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    matplotlib.rcdefaults()  # not the settings of a matplotlibrc in the working directory
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(size[0] * count, size[1]), squeeze=False)
    return figure, list(axes[0])


def plain(name: object) -> str:
    """Return a name as matplotlib shows it: a "$" begins no formula."""
    shown = str(name).encode("utf-8", "backslashreplace").decode("utf-8")  # names need not be UTF-8
    return shown.replace("$", "\\$")


def to_image(figure) -> Image.Image:
    """Draw a figure, and free it."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Matplotlib currently does not support")  # a script, and draws what it can
        warnings.filterwarnings("ignore", "Glyph")  # names of classes in a script that the font lacks become boxes
        figure.tight_layout()
        figure.savefig(buffer, format="png", dpi=130)
    pyplot.close(figure)
    return Image.open(buffer, formats=["PNG"])


def draw_curves(
    panels: list[tuple[str, str, dict[str, list[tuple[float, float]]]]], x_label: str = "epoch"
) -> Image.Image:
    """Draw panels side by side: (title, label of y, {legend: [(x, y), ...]})."""
    figure, axes = new_axes(len(panels))
    for axis, (title, y_label, curves) in zip(axes, panels, strict=True):
        for legend, points in curves.items():
            if points:
                axis.plot(*zip(*points, strict=True), label=plain(legend), marker="." if len(points) == 1 else None)
        axis.set(title=plain(title), xlabel=plain(x_label), ylabel=plain(y_label))
        axis.grid(alpha=0.3)
        if len(curves) > 1:
            axis.legend(fontsize="small")
    return to_image(figure)


def draw_matrix(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str] | None = None,
    *,
    labels: tuple[str, str] = ("", ""),
    limits: tuple[float, float] | None = None,
    texts: np.ndarray | None = None,
) -> Image.Image:
    """Draw a matrix as a heat map, with the names at its axes where there are not too many.

    Args:
        columns: names; None: those of the rows.
        labels: of the rows' and the columns' axis.
        limits: values of the darkest and the brightest colour; None: the smallest and largest.
        texts: written into the cells, where these are not too many.
    """
    columns = rows if columns is None else columns
    side = min(10.0, 3.0 + 0.22 * min(len(rows), _MOST_NAMES))
    figure, (axis,) = new_axes(size=(side + 1.0, side))
    low, high = limits or (None, None)
    picture = axis.imshow(values, cmap="magma", vmin=low, vmax=high, interpolation="nearest")
    figure.colorbar(picture, ax=axis, shrink=0.8)
    for names, set_ticks, rotation in ((columns, axis.set_xticks, 90), (rows, axis.set_yticks, 0)):
        if len(names) <= _MOST_NAMES:
            short = [name if len(name) <= 18 else name[:17] + "…" for name in map(str, names)]
            set_ticks(range(len(names)), list(map(plain, short)), rotation=rotation, fontsize=7)
    if texts is not None and max(values.shape) <= _MOST_TEXTS:
        middle = np.mean(picture.get_clim())
        for row, column in np.ndindex(values.shape):
            colour = "black" if values[row, column] > middle else "white"
            axis.text(column, row, texts[row, column], ha="center", va="center", fontsize=7, color=colour)
    axis.set(ylabel=plain(labels[0]), xlabel=plain(labels[1]))
    return to_image(figure)


def draw_boxes(panels: list[tuple[str, str, np.ndarray]], x_label: str) -> Image.Image:
    """Draw box plots side by side: (title, label of y, values [groups, members]); groups are counted from 1."""
    figure, axes = new_axes(len(panels), (5.0, 3.4))
    for axis, (title, y_label, values) in zip(axes, panels, strict=True):
        axis.boxplot(list(values), widths=0.6)
        axis.set(title=plain(title), xlabel=plain(x_label), ylabel=plain(y_label))
        axis.grid(alpha=0.3, axis="y")
    return to_image(figure)


def draw_bars(names: Sequence[str], parts: dict[str, Sequence[float]], x_label: str) -> Image.Image:
    """Draw a bar for each name, from top to bottom, of parts side by side: {legend: value of each name}."""
    figure, (axis,) = new_axes(size=(8.0, 1.2 + 0.3 * len(names)))
    ends = np.zeros(len(names))
    for legend, values in parts.items():
        axis.barh(range(len(names)), values, left=ends, label=plain(legend))
        ends += np.asarray(values)
    axis.set_yticks(range(len(names)), list(map(plain, names)))
    axis.invert_yaxis()
    axis.set(xlabel=plain(x_label))
    axis.grid(alpha=0.3, axis="x")
    axis.legend(fontsize="small")
    return to_image(figure)
