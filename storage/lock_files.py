"""Files that are only there to be locked. No Paddle here."""

import os
import stat
from pathlib import Path


def open_lock_file(path: Path) -> int:
    """Open a file to lock it, or make an empty one; never through a link, and its content stays.

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
