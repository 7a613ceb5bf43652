"""Charts: what a browser draws; names do not become markup."""

import json
import re

import pytest

from pages import html
from pages.curves import html_charts
from tests.helpers.browser import look, needs_browser

pytestmark = pytest.mark.quick


def charts_of(text):
    return [json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', text)]


def test_points_are_all_there_but_not_too_many_and_finite():
    points = [(step / 100, 1 / (1 + step)) for step in range(5001)]
    (chart,) = charts_of(html_charts([("Loss", {"a": points, "b": [(0, float("nan")), (1, 2.0)], "empty": []})]))
    assert [name for name, _ in chart["curves"]] == ["a", "b"]
    (_, kept), (_, other) = chart["curves"]
    assert 1000 < len(kept) <= 2001
    assert kept[0] == [0.0, 1.0]
    assert kept[-1] == list(points[-1])
    assert other == [[1, 2.0]]


@pytest.mark.parametrize("name", ["</script><img src=x onerror=alert(1)>", "$x^2$", "a" * 200, "<b>"])
def test_no_name_becomes_markup(name):
    text = html_charts([(name, {name: [(0, 1)], "other": [(0, 2)]})])
    (chart,) = charts_of(text)
    assert chart["title"] == chart["curves"][0][0] == name
    assert "<img src=x" not in text
    assert "<b>" not in text


@needs_browser
@pytest.mark.parametrize("width", [400, 1600])
def test_a_browser_draws_them(tmp_path, width):
    curves = {"one": [(0, 0.001), (1, 1.0), (2, 1000.0)], "</script>": [(0, 5.0), (2, 50.0)]}
    page = tmp_path / "page.html"
    html.write_page(page, "charts", [("Curves", html_charts([("Loss", curves)] * 3, logarithmic=True))])
    found = look(page, tmp_path, width)
    assert found["lines"] == 6
    assert {"0.001", "1", "1000", "epoch"} <= set(found["texts"])
    assert found["overflow"] <= 0


@needs_browser
def test_a_chart_alone_stays_of_the_size_of_the_text(tmp_path):
    page = tmp_path / "page.html"
    html.write_page(page, "charts", [("Curves", html_charts([("Loss", {"one": [(0, 1.0), (1, 2.0)]})]))])
    assert look(page, tmp_path, 1600)["largest"] < 24
