"""The notebooks run from their first cell to their last, and are kept without outputs."""

import re

import pytest

from runtime import ROOT

NOTEBOOKS = ROOT / "notebooks"


def run(name, monkeypatch) -> tuple[list[str], int]:
    """Run a notebook; returns what it prints, and the number of its pictures."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("EPOCHS", "2")
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    return [output.get("text", "") for output in outputs], len(pictures)


@pytest.mark.slow
def test_the_quickstart(monkeypatch):
    texts, num_pictures = run("quickstart.ipynb", monkeypatch)
    assert any("acc1, k=1" in text for text in texts)
    assert num_pictures == 3


@pytest.mark.slow
def test_zero_shot_in_four_languages(monkeypatch):
    texts, num_pictures = run("zero_shot.ipynb", monkeypatch)
    scores = [float(score) for text in texts for score in re.findall(r"([\d.]+)% of 360 digits, zero-shot", text)]
    assert len(scores) == 4
    assert min(scores) > 50  # chance is 10
    assert num_pictures == 1
