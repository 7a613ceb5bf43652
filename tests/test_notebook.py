"""The notebooks run from their first cell to their last, and are kept without outputs."""

import re

import pytest

from runtime import ROOT

NOTEBOOKS = ROOT / "notebooks"


def run(name, monkeypatch, epochs: int) -> tuple[list[str], int]:
    """Run a notebook; returns what it prints, and the number of its pictures."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("EPOCHS", str(epochs))
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    return [output.get("text", "") for output in outputs], len(pictures)


@pytest.mark.slow
def test_the_quickstart(monkeypatch):
    texts, num_pictures = run("quickstart.ipynb", monkeypatch, epochs=2)
    assert any("acc1, k=1" in text for text in texts)
    assert num_pictures == 3


@pytest.mark.slow
def test_zero_shot_in_four_languages(monkeypatch):
    texts, num_pictures = run("zero_shot.ipynb", monkeypatch, epochs=1)
    scores = [float(score) for text in texts for score in re.findall(r"([\d.]+)% of 360 digits, zero-shot", text)]
    assert len(scores) == 4
    assert min(scores) > 15  # chance is 10 with a deviation of 1.6; an epoch gives 25 to 30
    assert num_pictures == 1
