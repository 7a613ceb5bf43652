"""The field's terms and plain English: phrases that make a reader guess are not used in code, messages or pages."""

import re
import subprocess

import pytest

from runtime import ROOT

pytestmark = pytest.mark.quick

# {a pattern: what to write}
PHRASES = {
    r"\b(goes|go|went|gone|going) on\b": "resumes, continues",
    r"\bwhole numbers?\b": "integers",
    r"(?<!there )(?<!There )\b(is|are|was|were) no (?!longer)[a-z]": "is not a",
    r"\bbit for bit\b": "bit-identical",
    r"\btruth values?\b": "boolean",
    r"\bso (many|much) [a-z]": "the number itself",
    r"\banew\b": "again, or a new run",
    r"\b(judges|judging)\b|\bjudged (by|on)\b|\bto judge\b": "evaluate; tools.judge is a name",
    r"\bmends?\b": "correct",
    r"\bbe had\b|\bis had\b": "get, download",
    r"\btells? apart\b": "distinguishes",
    r"\bEXIF note\b": "EXIF orientation",
    r"\bdeadline off\b": "the deadline is absolute",
    r"\S  # of ": "a noun first: what it is, then of what",
    r"\b(what|which) else (tells|holds)\b": "a noun",
    r"\bwhose (it is|they are)\b": "the owner, the project",
    r"\b(owes_evaluation|judged_on|optimizer_of|ema_of|spread_of|WithoutImages)\b": "the new name",
}
OLD_NAMES_ARE_READ = {"storage/run_state.py"}  # from state.json of earlier versions


def phrases_in(text: str) -> list[str]:
    """Return the phrases of a text that are on the list."""
    return [match[0] for pattern in PHRASES for match in re.finditer(pattern, text)]


def pages() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    names = [name for name in listed.stdout.splitlines() if name.endswith((".py", ".sh", ".yaml", ".md", ".ipynb"))]
    return [name for name in names if name not in {"CHANGELOG.md", "tests/test_words.py", *OLD_NAMES_ARE_READ}]


def test_no_page_has_a_phrase_of_the_list():
    found = {name: phrases_in((ROOT / name).read_text(encoding="utf-8")) for name in pages()}
    assert {name: phrases for name, phrases in found.items() if phrases} == {}


@pytest.mark.parametrize(
    "text",
    [
        "raise UserError('the run goes on')",
        "it must be a whole number",
        "if it is no tensor",
        "rank: int  # of this job",
        "Return so many bytes",
        "the images it is judged on",
    ],
)
def test_a_planted_phrase_is_found(text):
    assert phrases_in(text)


@pytest.mark.parametrize("text", ["There is no file", "it is no longer open", "one of them", "so many-valued", "emend"])
def test_plain_sentences_pass(text):
    assert not phrases_in(text.replace("so many-valued", "so many"))
