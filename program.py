"""How every program of this project begins and ends: signals, closed pipes, full disks, and users' mistakes.

Each of them ends with one line on standard error and an exit code; a traceback is for defects of this project only.

    0          done
    1 or 2     the user can correct it (1 for the commands for weights), or a file cannot be read or written
    75         a training was asked to stop, and has saved its state
    130, 143   ended by Ctrl-C or SIGTERM (128 + the signal's number); likewise SIGHUP and SIGUSR1
    141        nobody reads standard output any more, as with `| head -1`
"""

import contextlib
import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import TextIO

from errors import UserError, escape_controls, one_line, printable
from runtime import ENDING_SIGNALS

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h
EXIT_PIPE = 128 + signal.SIGPIPE
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)


# How Paddle says that a library of CUDA is not on the loader's path, in a page of text.
_MISSING_LIBRARY = re.compile(r"third-party dynamic library \(([\w.+-]+)|Cannot load (\w+) (?:shared|dynamic) library")


class Stopped(SystemExit):
    """A run was asked to stop, and has saved its state; as an uncaught exception it exits with EXIT_STOPPED."""

    def __init__(self, message: str):
        super().__init__(EXIT_STOPPED)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Interrupted(BaseException):
    """A signal asked the program to end, where it has nothing to save."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"ended by {signal.Signals(self.number).name}"


class OutputClosed(BaseException):
    """Standard output cannot be written any more."""

    def __init__(self, error: OSError):
        super().__init__(error)
        self.error = error


class Console:
    """A standard stream on which the names of files cannot steer the terminal, and whose failure is an OutputClosed.

    Attributes:
        raw: the stream itself, for what draws on a terminal.
    """

    def __init__(self, raw: TextIO, is_needed: bool = True):
        self.raw, self._is_needed = raw, is_needed

    def write(self, text: str) -> int:
        """Write a text, its control characters escaped."""
        self._try(self.raw.write, escape_controls(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write the buffer."""
        self._try(self.raw.flush)

    def _try(self, action: Callable, *args: object) -> None:
        try:
            action(*args)
        except (OSError, ValueError) as error:  # ValueError: closed
            if self._is_needed:
                raise OutputClosed(error if isinstance(error, OSError) else OSError(errno.EBADF, "closed")) from error

    def __getattr__(self, name: str) -> object:
        return getattr(self.raw, name)


def run(
    main: Callable[[], object],
    *,
    error_code: int = 2,
    note_end: Callable[[int, str], None] = lambda code, text: None,
    clean_up: Callable[[], None] = lambda: None,
    is_reported_elsewhere: Callable[[BaseException], bool] = lambda end: False,
) -> None:
    """Run a main function, and end the process with one of the exit codes above.

    Args:
        main: its result is ignored.
        error_code: for errors that the user can correct.
        note_end: is told exit code and last words.
        clean_up: called in the end, whatever happened.
        is_reported_elsewhere: returns True for an end of which another process of the job tells the user.
    """
    _use_consoles()
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a job in a shell's background
            signal.signal(number, _interrupt)
    code, words, is_silent = 0, "", False
    try:
        main()
        sys.stdout.flush()
    except BaseException as end:
        code, words = _describe(end, error_code)
        is_silent = is_reported_elsewhere(end)
        if code is None:  # a defect of this project
            note_end(1, traceback.format_exc())
        if code is None or type(end) is SystemExit:
            raise
    finally:
        clean_up()
        _drop_unwritable_output()
    if words and not is_silent:
        print(words, file=sys.stderr, flush=True)
    if code:
        note_end(code, words)
        sys.exit(code)


def _describe(end: BaseException, error_code: int) -> tuple[int | None, str]:
    """Return the exit code and the last line of a program that ends by an exception; None: it is a defect."""
    if isinstance(end, SystemExit):
        return EXIT_STOPPED, str(end)
    if isinstance(end, Interrupted):
        return 128 + end.number, str(end)
    if isinstance(end, UserError):
        return error_code, "error: " + " ".join(str(end).splitlines())
    if isinstance(end, OutputClosed):
        if end.error.errno in (errno.EPIPE, errno.EBADF):
            return EXIT_PIPE, ""
        return error_code, f"error: standard output cannot be written: {end.error.strerror}"
    if isinstance(end, MemoryError):
        return error_code, f"error: not enough memory; lower -batch_size ({printable(one_line(end))})"
    library = _MISSING_LIBRARY.search(str(end)) if isinstance(end, RuntimeError) else None
    if library:
        name = library[1] or library[2]
        return error_code, f"error: Paddle does not find {name}; install CUDA's libraries, see Install in README.md"
    if str(end).startswith("Symlink loop"):  # how pathlib says ELOOP
        return error_code, f"error: {printable(end)}"
    # What the user named, or the machine lacks.
    if isinstance(end, OSError) and (end.errno in _DISK_ERRORS or end.filename is not None):
        file = f"{printable(end.filename)}: " if end.filename is not None else ""
        return error_code, f"error: {file}{end.strerror}"
    return None, ""


def _interrupt(number: int, frame: object) -> None:
    for other in ENDING_SIGNALS:
        if signal.getsignal(other) is _interrupt:
            signal.signal(other, signal.SIG_DFL)  # the next one ends the process at once
    raise Interrupted(number)


def _use_consoles() -> None:
    """Put consoles in the place of the standard streams; one that the caller closed goes nowhere."""
    for name, is_needed in (("stdout", True), ("stderr", False)):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 -- until the process ends
        if not isinstance(stream, Console):
            with contextlib.suppress(AttributeError, ValueError):
                stream.reconfigure(errors="backslashreplace")  # names need not be UTF-8
            setattr(sys, name, Console(stream, is_needed))


def terminal(stream: TextIO) -> TextIO:
    """Return the stream itself, for a progress bar, which has to steer the terminal."""
    return stream.raw if isinstance(stream, Console) else stream


def _drop_unwritable_output() -> None:
    """Keep the interpreter from failing when it flushes standard output for the last time."""
    try:
        sys.stdout.flush()
    except OutputClosed:
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)
