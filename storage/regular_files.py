"""Open regular files only: a pipe or a device could block, or have no end."""

import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular_file(path: str | Path) -> BinaryIO:
    """Open a file to read.

    Raises:
        ValueError: if it is not a regular file.
        OSError: if it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for somebody to write
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("not a regular file")
    return open(descriptor, "rb")


def read_regular_file(path: str | Path, most_bytes: int) -> bytes:
    """Read a file whole.

    Raises:
        ValueError: if it is not a regular file, or larger than `most_bytes`.
        OSError: if it cannot be read.
    """
    with open_regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise ValueError(f"has {size:,} bytes, and at most {most_bytes:,} are sane")
        return file.read(most_bytes)
