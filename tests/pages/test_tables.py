"""Tables: no cell is a formula."""

import csv

import pytest

from pages import tables

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "cat\x1b[31m"])
def test_no_cell_is_a_formula(tmp_path, name):
    tables.write_csv(tmp_path / "t.csv", ["class", "n"], [[name, -1], ['a, "b"\nc', 2.5]])
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert not rows[1][0].startswith(("=", "+", "-", "@", "\t"))
    assert "\x1b" not in rows[1][0]
    assert rows[1][1] == "-1", "a number stays one"
    assert rows[2] == ['a, "b"\nc', "2.5"]
