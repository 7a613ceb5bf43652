"""Signals that ask a run to stop: it saves after the update that is under way, and exits with 75.

`training.guard.Guard` reads `requested` and has all ranks agree; `training.engine` saves and raises `Stopped`.
"""

import signal
import time
from collections.abc import Callable

from runtime import ENDING_SIGNALS

_SAME_SIGNAL_SECS = 2.0  # signals that follow each other so closely are one


class StopRequest:
    """Notes SIGTERM, SIGINT, SIGHUP and SIGUSR1 while it is entered; the second one ends the process at once."""

    def __init__(self, say: Callable[[str], None]):
        self.requested, self._say, self._before, self._noted_at = False, say, {}, 0.0

    def __enter__(self) -> "StopRequest":
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) == signal.SIG_IGN:  # nohup, or a job in a shell's background
                continue
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread, where Python allows no handler
                break
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.requested and now - self._noted_at > _SAME_SIGNAL_SECS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self.requested:
            return  # schedulers signal every process of a job, and so does the one that started this
        self.requested, self._noted_at = True, now
        self._say(
            f"{signal.Signals(number).name}: the run stops and saves after this update; once more stops it at once"
        )
