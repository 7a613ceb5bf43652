"""Read users' files: regular ones only, up to one size, with errors that name them. No Paddle here.

A pipe or a device could block, or have no end; a damaged or malicious file could claim any size, or any content.
"""

import contextlib
import errno
import fcntl
import io
import json
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.format import open_memmap

from errors import UserError, one_line, printable

MOST_BYTES = 1 << 30  # largest file that is read whole
_LEAST_READ = 1 << 16
NUMBER = (int, float)
Kind = type | tuple[type, ...]
_BOM = b"\xef\xbb\xbf"  # which some editors write before UTF-8
_LINE_END = re.compile(rb"\r\n|\n|\r")


@contextlib.contextmanager
def reading(path: str | Path, what: str = "a file", *, flag: str = "", advice: str = "") -> Iterator[None]:
    """Have errors of reading a file name it.

    Args:
        what: the file should be: "a JSON file".
        flag: that names the file, for the message.
        advice: at the end of the message.

    Raises:
        UserError: for whatever a missing, damaged or odd file makes Python raise.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged files raise nearly anything
        if isinstance(error, OSError) and error.strerror:
            problem = error.strerror
        else:
            problem = f"cannot be read as {what} ({printable(one_line(error), 300)})"
        raise UserError(f"{flag}{printable(path)}: {problem}" + (f"; {advice}" if advice else "")) from error


def open_file(path: str | Path) -> BinaryIO:
    """Open a file to read.

    Raises:
        OSError: if it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for somebody to write
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb")


def read_file(path: str | Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Read a file whole; raise as `open_file`, and ValueError if it is larger than `most_bytes`."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise ValueError(f"has {size:,} bytes, and at most {most_bytes:,} are sane")
        return file.read(max(size, _LEAST_READ))  # it takes that memory first; files in /proc say 0


def create_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """Make a .npy file of zeros in memory-mapped form.

    Raises:
        OSError: if it cannot be written, or the disk has no room; later, a write to it would kill the process.
    """
    array = open_memmap(path, "w+", dtype, shape)
    with open(path, "r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, path.stat().st_size)
    return array


def open_lock_file(path: Path) -> int:
    """Open a file that is only there to be locked, or make an empty one; never through a link, and its content stays.

    Returns:
        A file descriptor to read and write.

    Raises:
        OSError: if it is a link, a pipe or a device, or cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path}: is not a regular file")
    return descriptor


@contextlib.contextmanager
def locked(path: Path, is_needed: bool = True) -> Iterator[None]:
    """Let one process at a time work in this block; the lock ends with the process, and the file stays.

    Args:
        is_needed: False: work without a lock where the file system has none, or cannot be written.
    """
    allowed = () if is_needed else (OSError,)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(*allowed):
            descriptor = open_lock_file(path)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


# ---- text ---------------------------------------------------------------------------------------


def decode_text(content: bytes) -> str:
    """Return a text in UTF-8, without a byte-order mark; raise ValueError if it is not UTF-8."""
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("is UTF-16; save it as UTF-8")
    return content.decode("utf-8-sig")


def read_lines(path: str | Path, flag: str = "") -> list[str]:
    """Read the lines of a text file that are not empty, without space around them; `flag` names it in messages.

    Raises:
        UserError: if it cannot be read, is too large, or is not UTF-8.
    """
    with reading(path, "a UTF-8 text file", flag=flag):
        lines = re.split(r"\r\n|\n|\r", decode_text(read_file(path)))
    return [line.strip() for line in lines if line.strip()]


def iterate_lines(file: BinaryIO, longest: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (number from 1, offset, line) of every line of a file, without a byte-order mark and line ends.

    A line of more than `longest` bytes is yielded up to there, and a bit.
    """
    number, offset, rest = 0, 0, b""
    if file.read(len(_BOM)) == _BOM:
        offset = len(_BOM)
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
        if is_end or len(rest) > longest:
            if rest:
                yield number + 1, offset, rest
            return


# ---- JSON and arrays ----------------------------------------------------------------------------


def read_json(path: str | Path, fields: Mapping[str, Kind] | None = None, *, advice: str = "") -> dict:
    """Read a JSON file that holds an object.

    Args:
        fields: entries that must be there, and their types; True and False do not count as numbers.
        advice: at the end of the message of an error.

    Raises:
        UserError: if it cannot be read, is too large, or is something else.
    """
    with reading(path, "a JSON file", advice=advice):
        values = json.loads(decode_text(read_file(path)))
        if not isinstance(values, dict):
            raise ValueError(f"holds a {type(values).__name__}, where an object is expected")
        for key, kind in (fields or {}).items():
            if not is_a(values.get(key), kind):
                raise ValueError(f"damaged, its {key} is {printable(values[key], 40) if key in values else 'missing'}")
    return values


def is_a(value: object, kind: Kind) -> bool:
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
    with reading(path, "a log"):
        text = read_file(path).decode("utf-8", errors="replace")
    records = [_record(line) for line in text.split("\n")[:-1]]
    num_bad = records.count(None)
    if num_bad:
        warn(f"warning: {path}: {num_bad} damaged lines are skipped")
    return [record for record in records if record is not None]


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("event"), str) or not is_a(record.get("step", 0), int):
        return None
    others = [value for key, value in record.items() if key not in ("event", "step")]
    return record if all(value is None or is_a(value, (*NUMBER, str)) for value in others) else None


def read_arrays(path: Path, advice: str) -> dict[str, np.ndarray]:
    """Read all arrays of a file that `np.savez` wrote, without running anything; `advice` is for a damaged one.

    Raises:
        UserError: if it cannot be read, is too large, or is not such a file.
    """
    with reading(path, "a file of arrays", advice=advice):
        content = io.BytesIO(read_file(path))
        with zipfile.ZipFile(content) as archive:  # np.load would take what a header claims
            if sum(member.file_size for member in archive.infolist()) > content.getbuffer().nbytes:
                raise ValueError("compressed, or its sizes are wrong")
        with np.load(content, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
