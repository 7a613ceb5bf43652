"""Read a file whole: up to a limit, and never a pipe or device, which could block or have no end."""

import os
import stat
from pathlib import Path


def read_regular_file(path: str | Path, most_bytes: int) -> bytes:
    """Read a file.

    Raises:
        ValueError: if it is no regular file, or larger than `most_bytes`.
        OSError: if it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for somebody to write
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("not a regular file")
        if about.st_size > most_bytes:
            raise ValueError(f"has {about.st_size:,} bytes, and at most {most_bytes:,} are sane")
        return file.read(most_bytes)
