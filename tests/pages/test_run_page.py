"""Pages of runs: the figures of a log."""

import pytest

from pages import run_page

pytestmark = pytest.mark.quick


def test_a_loss_of_null_in_the_log_is_no_number(tmp_path):
    records = [{"event": "train", "step": 1, "epoch": 0.5, "loss": None}, {"event": "train", "step": 2, "lr": None}]
    figures = run_page.summarise(tmp_path, records)
    assert "last loss" not in figures
    assert figures["updates"] == 2
