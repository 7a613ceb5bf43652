"""Pages in headless Chromium: what is drawn, and what does not fit."""

import json
import re
import shutil
import subprocess

import pytest

BROWSER = shutil.which("chromium")
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no browser")
_OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
_PROBE = """<script>
const shown = [...document.querySelectorAll("body *")].filter(e => e.getClientRects().length);
const texts = shown.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
// 7 points at 130 dots per inch: the smallest text in a plot
const plots = [...document.querySelectorAll("figure > img")].map(e => 7 / 72 * 130 * e.clientWidth / e.naturalWidth);
const scale = e => e.ownerSVGElement ? e.ownerSVGElement.getBoundingClientRect().width / 640 : 1;
const sizeOf = e => parseFloat(getComputedStyle(e).fontSize) * scale(e);
document.title = JSON.stringify({
  lines: document.querySelectorAll("polyline").length,
  texts: [...document.querySelectorAll("svg text")].map(t => t.textContent),
  smallest: Math.min(...texts.map(sizeOf), ...plots),
  largest: Math.max(...texts.filter(e => e.ownerSVGElement).map(sizeOf)),
  overflow: document.documentElement.scrollWidth - innerWidth,
  injected: document.querySelectorAll("blink").length,
  back: getComputedStyle(document.body).backgroundColor,
  requests: performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:")).length,
});
</script>"""


def look(page, folder, width: int, is_dark: bool = False) -> dict:
    """Open a page in a window of a width, and return what a script in it measures."""
    copy = folder / f"look-{width}-{is_dark}.html"
    copy.write_text(page.read_text(encoding="utf-8").replace("</body>", _PROBE + "</body>"), encoding="utf-8")
    colours = f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"
    options = [*_OPTIONS, f"--window-size={width},1200", f"--user-data-dir={folder / 'profile'}", colours, "--dump-dom"]
    command = ["chromium", *options, copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])


def check_page(page, folder) -> list[dict]:
    """Open a page at four widths, light and dark, and check that it fits; returns what `look` measured."""
    assert page.stat().st_size < 3 << 20
    found = []
    for width, is_dark in ((400, False), (800, True), (1280, False), (1600, True)):
        found.append(look(page, folder, width, is_dark))
        assert found[-1]["overflow"] <= 0, (page, width)
        assert found[-1]["smallest"] >= 11, (page, width)
        assert found[-1]["requests"] == found[-1]["injected"] == 0, (page, width)
    assert found[0]["back"] == found[2]["back"] != found[1]["back"] == found[3]["back"]
    return found
