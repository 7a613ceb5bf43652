"""Tables as CSV files whose cells no spreadsheet takes for formulas."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from errors import escape_controls
from storage import atomic

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of a formula


def write_csv(path: str | Path, header: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
    """Write a table; a text that a spreadsheet would take for a formula gets an apostrophe before it (OWASP)."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([[_cell(value) for value in row] for row in [header, *rows]])
    atomic.write_text(path, text.getvalue())


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    return f"'{escape_controls(value)}" if value.startswith(_FORMULA) else escape_controls(value)
