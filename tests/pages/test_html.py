"""Pages: names do not become markup."""

import pytest
from PIL import Image

from pages import html

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>", "</pre><script>", "a&b\"'<"])
def test_no_name_becomes_markup(tmp_path, name):
    sections = [(name, html.html_table([name], [[name]]) + html.html_text(name) + html.html_paragraph(name))]
    sections += [("x", html.html_figure(Image.new("L", (2, 2)), name))]
    html.write_page(tmp_path / "x.html", name, sections)
    text = (tmp_path / "x.html").read_text()
    assert name not in text
    for tag in ("<script", "<img src=x", "onerror=alert(1)>"):
        assert tag not in text
