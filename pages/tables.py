"""Tables as CSV files whose cells no spreadsheet takes for formulas."""

import csv
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from errors import escape_controls
from storage import atomic

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of a formula


def write_csv(
    path: str | Path, header: Sequence[object], rows: Iterable[Sequence[object]], delimiter: str = ","
) -> None:
    """Write a table; a text that a spreadsheet would take for a formula gets an apostrophe before it (OWASP)."""
    options = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}  # names need not be UTF-8
    with atomic.replacing(path) as temporary, open(temporary, "w", **options) as file:
        csv.writer(file, delimiter=delimiter).writerows(
            [_cell(value) for value in row] for row in itertools.chain([header], rows)
        )


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    return f"'{escape_controls(value)}" if value.startswith(_FORMULA) else escape_controls(value)
