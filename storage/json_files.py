"""Read JSON that may be damaged or malicious, with limits and checks. No Paddle here."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from errors import UserError, one_line, printable
from storage.regular_files import read_regular_file
from storage.text_files import decode_text

_MOST_BYTES = 64 << 20
NUMBER = (int, float)


def read_json(
    path: str | Path,
    fields: Mapping[str, type | tuple[type, ...]] | None = None,
    *,
    advice: str = "",
    most_bytes: int = _MOST_BYTES,
) -> dict:
    """Read a JSON file that holds an object.

    Args:
        fields: entries that must be there, and their types; True and False do not count as numbers.
        advice: appended to the message of an error.
        most_bytes: a larger file is refused.

    Raises:
        UserError: if it cannot be read, is too large, or is something else.
    """
    path, advice = Path(path), f"; {advice}" if advice else ""
    try:
        content = read_regular_file(path, most_bytes)
    except (OSError, ValueError) as error:  # ValueError: a pipe, too large, or a NUL in its name
        raise UserError(f"{printable(path)}: {getattr(error, 'strerror', None) or error}{advice}") from error
    return parse_json(content, str(path), fields, advice=advice)


def parse_json(
    content: bytes | str, name: str, fields: Mapping[str, type | tuple[type, ...]] | None = None, *, advice: str = ""
) -> dict:
    """Read JSON text that holds an object; see `read_json`."""
    try:
        values = json.loads(decode_text(content) if isinstance(content, bytes) else content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: damaged, or no JSON ({printable(one_line(error))}){advice}") from error
    if not isinstance(values, dict):
        raise UserError(f"{name}: holds a {type(values).__name__}, where an object is expected{advice}")
    for key, kind in (fields or {}).items():
        if not is_a(values.get(key), kind):
            found = printable(values[key], 40) if key in values else "missing"
            raise UserError(f"{name}: damaged, its {key} is {found}{advice}")
    return values


def is_a(value: object, kind: type | tuple[type, ...]) -> bool:
    """Return True if a value is of a type; True and False do not count as numbers."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)


def read_records(path: str | Path, warn: Callable[[str], None] = lambda line: None) -> list[dict]:
    """Read a log.jsonl: an object with "event" (and mostly "step") per line, in order.

    A line that is none, as a power failure leaves them, is skipped; `warn` gets a line with their number. The end of a
    file that is being written may be half a line.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    records, num_bad = [], 0
    for line in lines[:-1]:
        record = _record(line)
        if record is None:
            num_bad += 1
        else:
            records.append(record)
    if num_bad:
        warn(f"warning: {path}: {num_bad} damaged lines are skipped")
    return records


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("event"), str) or not is_a(record.get("step", 0), int):
        return None
    others = [value for key, value in record.items() if key not in ("event", "step")]
    return record if all(value is None or is_a(value, (*NUMBER, str)) for value in others) else None
