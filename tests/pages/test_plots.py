"""Plots: names do not become formulas."""

import numpy as np
import pytest

from pages import plots

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


@pytest.mark.parametrize("name", [r"$\frac", "$x^", "a $ b $ {", "\x1b[31m"])
def test_names_are_no_formulas(name):
    assert plots.draw_curves([(name, name, {name: [(0, 1), (1, 2)], "other": [(0, 1)]})]).size[0] > 100
    assert plots.draw_matrix(np.eye(2), [name, "b"]).size[0] > 100


def test_a_dollar_in_a_name_begins_no_formula():
    figure, (axis,) = plots.new_axes()
    axis.plot([1, 2, 3], [1.0, 10.0, 100.0], label=plots.plain("$x^2$ and $y"))
    axis.set_yscale("log")
    axis.legend()
    figure.canvas.draw()
    (text,) = axis.get_legend().get_texts()
    shown, is_formula = text._preprocess_math(text.get_text())
    assert (shown, is_formula) == ("$x^2$ and $y", False)
    ticks = [label._preprocess_math(label.get_text()) for label in axis.get_yticklabels() if label.get_text()]
    assert all(is_formula for _, is_formula in ticks), "powers of ten are formulas"
