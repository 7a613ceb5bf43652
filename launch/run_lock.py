"""One process at a time in a run's directory."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path

from errors import UserError, printable
from storage.files import open_lock_file

LOCK_FILE = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class RunLock:
    """A lock on a directory, which is released when its holder dies, even by SIGKILL.

    It is a lock on a record of a file (fcntl), which NFS passes on to its server, and which processes that the holder
    forks do not inherit. The file holds host and process number, for messages only.

    Args:
        directory: of the run.
        say: gets a warning where the file system has no locks.

    Raises:
        UserError: if another process has it.
    """

    def __init__(self, directory: Path, say: Callable[[str], None]):
        self._file = directory / LOCK_FILE
        self._descriptor: int | None = self._open(directory, say)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def _open(self, directory: Path, say: Callable[[str], None]) -> int:
        while True:
            try:
                descriptor = open_lock_file(self._file)
            except OSError as error:
                raise UserError(f"{self._file}: cannot be opened as a lock ({error.strerror or error})") from error
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_at_its_place(descriptor):
                    return descriptor
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    what = f"its file system knows no locks ({error.strerror})"
                    say(f"warning: {directory}: {what}; start no second run in it")
                    return descriptor
                holder = printable(os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip())
                os.close(descriptor)
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise UserError(
                    f"{directory}: another process works in it ({holder or 'unknown'}); wait for its end or stop it, "
                    "or choose another RUN"
                ) from error
            os.close(descriptor)  # the one before us has just deleted it

    def _is_at_its_place(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._file))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let other processes in, and delete the file; may be called twice."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self._file.unlink()
            os.close(self._descriptor)
            self._descriptor = None
