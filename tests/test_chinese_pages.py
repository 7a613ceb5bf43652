"""The Chinese pages have the commands, code words, tables and figures of the English ones, and links both ways."""

import collections
import re
from pathlib import Path

import pytest

from runtime import ROOT

pytestmark = pytest.mark.quick

CHINESE = sorted((ROOT / "docs" / "cn").glob("*.md"))
PAIRS = [(ROOT / "README.md", ROOT / "README_cn.md"), *((ROOT / "docs" / page.name, page) for page in CHINESE)]
_NUMBER_WORDS = r"[0-9]+(?:[.,:][0-9]+)*"


def blocks(text: str) -> list[str]:
    return re.findall(r"```\w+\n.*?```", text, re.S)


def prose(text: str) -> str:
    """Return a page without code blocks and without the targets of links."""
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"```\w+\n.*?```", "", text, flags=re.S))


def code_words(text: str) -> collections.Counter:
    """Count what is between backticks; a line break in it is a space."""
    return collections.Counter(" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose(text)))


def figures(text: str) -> collections.Counter:
    """Count the numbers outside of code words; letters beside a digit make it a name, such as 4x or B/16."""
    plain = re.sub(r"`[^`]+`", " ", prose(text))
    plain = plain.replace("1.92 亿", "").replace("50 亿", "")  # the English figure is beside them, in brackets
    return collections.Counter(re.findall(rf"(?<![\w.]){_NUMBER_WORDS}(?![A-Za-z])", plain.replace("\uff0c", ", ")))


def tables(text: str) -> list[tuple[int, ...]]:
    """Return the number of columns of each row of each table."""
    rows = [line.count("|") - line.count("\\|") if line.startswith("|") else 0 for line in prose(text).splitlines()]
    return [row for row in rows if row]


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda page: page.name)
def test_a_page_and_its_translation_say_the_same(english, chinese):
    own, other = english.read_text(), chinese.read_text()
    assert blocks(other) == blocks(own)
    assert code_words(other) == code_words(own)
    assert tables(other) == tables(own)
    assert figures(other) == figures(own)
    assert other.count("\n## ") == own.count("\n## ")
    assert re.findall(r"!\[", other) == re.findall(r"!\[", own)


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda page: page.name)
def test_links_lead_somewhere(english, chinese):
    assert f"[中文]({chinese.relative_to(english.parent)})" in english.read_text()
    back = Path("..") / english.name if chinese.parent != english.parent else Path(english.name)
    assert f"[English]({back})" in chinese.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", chinese.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        page = (chinese.parent / file).resolve() if file else chinese
        assert page.exists(), target
        if anchor:
            assert anchor in {anchor_of(heading) for heading in re.findall(r"^#+ (.*)$", page.read_text(), re.M)}, (
                target
            )


def anchor_of(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_page_for_users_has_a_translation():
    english = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert english - {page.name for page in CHINESE} == {"CONTRIBUTING.md"}
