"""The exception for errors that a user can correct, and the wording of its messages."""

from collections.abc import Sequence
from pathlib import PurePath


class UserError(ValueError):
    """An input of the user is wrong; the message names the input, its place, and the remedy.

    The main scripts print it as one line and exit with code 2, the commands for weights with code 1. Every
    other exception is a defect of this project and keeps its traceback.
    """


def printable(text: object, most: int = 200) -> str:
    """Make text from a file safe to print in an error message: one line, no control characters.

    A text of more than `most` characters is cut.

    Containers are not written out: one that a file made of references to itself would take for ever.
    """
    is_plain = text is None or isinstance(text, (str, bytes, int, float, PurePath, BaseException))
    text = (str(text) if is_plain else f"a {type(text).__name__}")[: most + 1]
    text = text if len(text) <= most else text[:most] + "..."
    return text if text.isprintable() else ascii(text)[1:-1]


def escape_controls(text: str) -> str:
    """Return a text without characters that steer a terminal; line breaks and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char in "\n\t" or not _is_control(char) else ascii(char)[1:-1] for char in text)


def one_name(text: object) -> str:
    """Return the name of a file as a message has it: with escapes for line breaks and control characters."""
    return escape_controls(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def _is_control(char: str) -> bool:
    """Return True for control characters, and for those that turn the direction of what follows."""
    code = ord(char)
    return (
        code < 0x20
        or 0x7F <= code < 0xA0
        or 0x202A <= code <= 0x202E
        or 0x2066 <= code <= 0x2069
        or (
            0xD800 <= code < 0xE000  # a byte of a name that is not UTF-8
        )
    )


def one_line(error: BaseException) -> str:
    """Return an exception's type and message without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def abridge(items: Sequence[str], most: int = 8, separator: str = ", ", total: int | None = None) -> str:
    """Join the first of many items, and append the number of the others.

    Args:
        total: number of items, where `items` has only the first of them.
    """
    more = (len(items) if total is None else total) - most
    return separator.join(items[:most]) + (f" and {more:,} more" if more > 0 else "")
