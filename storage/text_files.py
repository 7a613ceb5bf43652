"""Text files that users write: UTF-8, with or without a byte-order mark, with any line ends. No Paddle here."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from errors import UserError, one_line
from storage.regular_files import read_regular_file

BOM = b"\xef\xbb\xbf"  # which some editors write before UTF-8
_LINE_END = re.compile(rb"\r\n|\n|\r")


def decode_text(content: bytes) -> str:
    """Return a text; a byte-order mark at its beginning is not part of it.

    Raises:
        ValueError: if it is not UTF-8.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("is UTF-16; save it as UTF-8")
    return content.decode("utf-8-sig")


def read_text(path: str | Path, most_bytes: int, flag: str = "") -> str:
    """Read a text file.

    Args:
        flag: that names it, for messages.

    Raises:
        UserError: if it cannot be read, is too large, or is not UTF-8.
    """
    try:
        return decode_text(read_regular_file(path, most_bytes))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{flag}{path}: cannot be read as a UTF-8 text file ({reason})") from error


def read_lines(path: str | Path, most_bytes: int, flag: str = "") -> list[str]:
    """Read the lines of a text file that are not empty, without space around them; see `read_text`."""
    lines = re.split(r"\r\n|\n|\r", read_text(path, most_bytes, flag))
    return [line.strip() for line in lines if line.strip()]


def iterate_lines(file: BinaryIO, longest: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (number from 1, offset, line) of every line of a file, without a byte-order mark and line ends.

    A line of more than `longest` bytes is yielded up to there, and a bit.
    """
    number, offset, rest = 0, 0, b""
    if file.read(len(BOM)) == BOM:
        offset = len(BOM)
    file.seek(offset)
    while True:
        chunk = file.read(1 << 20)
        block, is_end = rest + chunk, not chunk
        if block.endswith(b"\r") and not is_end:  # perhaps the first half of \r\n
            block += file.read(1)
        start = 0
        for end in _LINE_END.finditer(block):
            number += 1
            yield number, offset + start, block[start : end.start()]
            start = end.end()
        rest, offset = block[start:], offset + start
        if len(rest) > longest:
            is_end = True
        if is_end:
            if rest:
                yield number + 1, offset, rest
            return
