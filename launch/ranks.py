"""The processes of a job's ranks, watched in /proc: which are alive, and which signal ended the others.

Paddle's launcher tells one exit code only, that of any rank: often of one that waited for the rank that died.
"""

import contextlib
import os
import select
import signal
import time
from pathlib import Path

_STATE, _PARENT, _EXIT_CODE = 0, 1, 49  # fields of /proc/PID/stat after the name, see proc(5)
# Likely causes where several ranks died together. Those that lost a peer abort, or fail, and can be gone before it: its
# connections close before its memory is freed.
_CAUSES = (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS)
_TOGETHER_SECS = 2.0  # less than Paddle's launcher waits before it kills the other ranks of one that failed


class Ranks:
    """Watches the ranks below a launcher; Linux only, elsewhere it finds none.

    Attributes:
        first_killed: (rank, signal) of the first process that ended by a signal; None if one ended by itself before.
    """

    def __init__(self, launcher_pid: int):
        self._launcher_pid = launcher_pid
        self._rank_by_pid: dict[int, str] = {}
        self._ended: set[int] = set()
        self._pidfds: dict[int, int] = {}
        self._signalled: set[int] = set()
        self.first_killed: tuple[str, int] | None = None
        self._first_bad_end: float | None = None  # time.monotonic()

    @property
    def are_there(self) -> bool:
        """True if a rank has been seen."""
        return any(self._rank_by_pid.values())

    def look(self) -> None:
        """Note new processes, and how others ended since the last look."""
        killed, exited, children = [], False, self._children()
        for pid in set(self._pidfds) - {pid for pid, fields in children if fields[_STATE] != "Z"}:
            os.close(self._pidfds.pop(pid))
        for pid, fields in children:
            if fields[_STATE] != "Z":
                self._rank_by_pid[pid] = self._rank_by_pid.get(pid) or _read_rank(pid)
                self._open_pidfd(pid)
            elif pid not in self._ended:
                self._ended.add(pid)
                status = int(fields[_EXIT_CODE])
                if os.WIFSIGNALED(status):
                    killed.append((self._rank_by_pid.get(pid) or "?", os.WTERMSIG(status)))
                exited = exited or os.WEXITSTATUS(status) != 0
        causes = [end for end in killed if end[1] in _CAUSES]
        if self._first_bad_end is None and (killed or exited):
            self._first_bad_end = time.monotonic()
            causes = causes or ([] if exited else killed)
        is_cause_known = self.first_killed is not None and self.first_killed[1] in _CAUSES
        if causes and not is_cause_known and time.monotonic() - self._first_bad_end < _TOGETHER_SECS:
            self.first_killed = causes[0]

    def wait(self, secs: float) -> None:
        """Wait until a rank ends, at most `secs`.

        Paddle's launcher looks once a second, and takes the exit status of a rank that has ended away: an end that is
        only looked for now and then may never be seen.
        """
        if not self._pidfds:
            time.sleep(secs)
            return
        poller = select.poll()
        for pidfd in self._pidfds.values():
            poller.register(pidfd, select.POLLIN)
        poller.poll(1000 * secs)

    def _open_pidfd(self, pid: int) -> None:
        with contextlib.suppress(OSError, AttributeError):  # not before Linux 5.3
            if pid not in self._pidfds:
                self._pidfds[pid] = os.pidfd_open(pid)

    def signal(self, number: int, again: bool = False) -> None:
        """Send a signal to every rank; without `again`, to those only that have not got one."""
        for pid, fields in self._children():
            if fields[_STATE] != "Z" and (again or pid not in self._signalled):
                self._signalled.add(pid)
                with contextlib.suppress(OSError):
                    os.kill(pid, number)

    def _children(self) -> list[tuple[int, list[str]]]:
        """Return number and state of every child of the launcher."""
        children = []
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = file.read_text(errors="replace").rpartition(")")[2].split()
                if int(fields[_PARENT]) == self._launcher_pid:
                    children.append((int(file.parent.name), fields))
        return children


def _read_rank(pid: int) -> str:
    """Return the rank in a process's environment; empty before it is set."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            name, _, value = entry.partition(b"=")
            if name == b"PADDLE_TRAINER_ID":
                return value.decode("ascii", "replace")
    return ""
