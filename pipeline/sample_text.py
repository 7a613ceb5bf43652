"""Captions and labels as people write them: in lines of a list, and in members of a shard."""

import json
import re

from errors import one_line, printable
from storage.files import decode_text

_MOST_LABELS = 10_000  # labels per image


def parse_caption(text: str) -> str:
    """Return a caption with single spaces; halves of surrogate pairs, which JSON can hold, are replaced."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def parse_labels(text: str) -> tuple[int, ...]:
    """Read integers that are separated by commas; raise ValueError for anything else."""
    if not text.strip():
        return ()
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > _MOST_LABELS or not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts):
        raise ValueError(f"{printable(text, 60)!r} are not labels, which are integers separated by commas")
    return tuple(map(int, parts))


def parse_object(text: str | bytes) -> tuple[dict, str, tuple[int, ...]]:
    """Read a JSON object with `caption` and `labels` (or `label`, or `cls`): a text, and an integer or a list.

    Returns:
        The object, the caption ("" without one) and the labels.

    Raises:
        ValueError: if it is not JSON, or one of them is of another type.
    """
    try:
        values = json.loads(decode_text(text) if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({one_line(error)})") from error
    if not isinstance(values, dict):
        raise ValueError("is not a JSON object")
    caption = values.get("caption") or ""
    if not isinstance(caption, str):
        raise ValueError(f"its caption is {printable(json.dumps(caption), 40)}, which is not a text")
    found = values.get("labels", values.get("label", values.get("cls")))
    labels = [] if found is None else found if isinstance(found, list) else [found]
    if len(labels) > _MOST_LABELS or not all(type(label) is int and 0 <= label < 10**9 for label in labels):
        raise ValueError(f"labels must be integers from 0, not {printable(json.dumps(found), 60)}")
    return values, parse_caption(caption), tuple(labels)
