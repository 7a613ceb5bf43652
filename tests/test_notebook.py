"""The notebooks run from their first cell to their last, and the file keeps what they print and draw."""

import re

import pytest

from runtime import ROOT

NOTEBOOKS = ROOT / "notebooks"


def run(name, monkeypatch, epochs: int) -> list:
    """Run a notebook; returns its outputs. Those that are kept in the file must be of the same kinds."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("EPOCHS", str(epochs))
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    kept = [kinds(cell) for cell in notebook.cells]
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}})
    client.execute()
    assert kept == [kinds(cell) for cell in notebook.cells], "jupyter execute --inplace notebooks/*.ipynb renews them"
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def kinds(cell) -> set[str]:
    """Return which kinds of output a cell has: "text", "image/png", ..."""
    outputs = cell.get("outputs", [])
    return {kind for output in outputs for kind in output.get("data", ["text"])}


def texts(outputs: list) -> str:
    return "".join(output.get("text", "") for output in outputs)


def num_pictures(outputs: list) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
def test_the_quickstart(monkeypatch):
    outputs = run("quickstart.ipynb", monkeypatch, epochs=2)
    assert "acc1, k=1" in texts(outputs)
    assert "25% hidden" in texts(outputs)
    assert num_pictures(outputs) == 3


@pytest.mark.slow
def test_zero_shot_in_four_languages(monkeypatch):
    outputs = run("zero_shot.ipynb", monkeypatch, epochs=1)
    scores = [float(score) for score in re.findall(r"([\d.]+)% of 360 digits, zero-shot", texts(outputs))]
    assert len(scores) == 4
    assert min(scores) > 15  # chance is 10 with a deviation of 1.6; an epoch gives 25 to 30
    assert num_pictures(outputs) == 1
