"""Ends of ranks, in words and exit codes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launch import launcher, ranks


@pytest.mark.parametrize(
    ("killed", "note", "code", "said"),
    [
        (("0", signal.SIGABRT), "1-1-1", 1, "rank 1 failed first:\nits traceback"),  # rank 0 lost its peer
        (("0", signal.SIGABRT), None, 134, "error: rank 0 was ended by SIGABRT"),
        (("1", signal.SIGKILL), "1-0-1", 137, "error: rank 1 was ended by SIGKILL"),  # rank 0 lost its peer
        (("1", signal.SIGSEGV), "1-1-1", 1, "rank 1 failed first:\nits traceback"),
        (None, None, 134, "error: a rank was ended by SIGABRT"),
    ],
)
def test_the_first_end_is_told(tmp_path, capsys, killed, note, code, said):
    if note is not None:
        (tmp_path / note).write_text("its traceback")
    assert launcher._report_end(tmp_path, 134, [], [], killed) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("code", "told"), [(0, 0), (1, 1), (75, 75), (247, 137), (250, 134), (-9, 137), (-15, 143)])
def test_exit_codes_are_those_of_a_shell(code, told):
    assert launcher._shell_code(code) == told


SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
FAIL = [sys.executable, "-c", "raise SystemExit(1)"]


def _look_until_ended(watched, process):
    """Look until a child has ended, and leave it a zombie, as a launcher that is busy."""
    deadline = time.monotonic() + 20
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    watched.look()


@pytest.mark.parametrize(
    ("first", "second", "pause", "told"),
    [
        (signal.SIGABRT, signal.SIGKILL, 0.0, ("1", signal.SIGKILL)),  # rank 0 lost its peer, and is gone before it
        (None, signal.SIGSEGV, 0.0, ("1", signal.SIGSEGV)),  # the same, and it raised
        (signal.SIGABRT, signal.SIGABRT, 0.0, ("0", signal.SIGABRT)),
        (signal.SIGBUS, signal.SIGKILL, 0.0, ("0", signal.SIGBUS)),
        (signal.SIGABRT, signal.SIGKILL, 0.5, ("0", signal.SIGABRT)),  # by the launcher, which ends the others
        (None, signal.SIGKILL, 0.5, None),
    ],
)
def test_the_cause_is_found_among_ends_that_are_seen_one_by_one(monkeypatch, first, second, pause, told):
    monkeypatch.setattr(ranks, "_TOGETHER_SECS", 0.4 if pause else 20.0)
    watched = ranks.Ranks(os.getpid())
    watched._ended = {pid for pid, _ in watched._children()}  # children that other tests have left
    commands = (FAIL if first is None else SLEEP, SLEEP)
    launched = [
        subprocess.Popen(command, env={"PADDLE_TRAINER_ID": str(rank)}) for rank, command in enumerate(commands)
    ]
    try:
        watched.look()
        if first is not None:
            launched[0].send_signal(first)
        _look_until_ended(watched, launched[0])
        time.sleep(pause)
        launched[1].send_signal(second)
        _look_until_ended(watched, launched[1])
        assert watched.first_killed == told
    finally:
        for process in launched:
            process.kill()
            process.wait()


# A launcher that takes a rank's exit status 30 ms after its end.
REAP = """
import os, signal, subprocess, sys, time
command = [sys.executable, "-c", "import time; time.sleep(60)"]
rank = subprocess.Popen(command, env={**os.environ, "PADDLE_TRAINER_ID": "1"})
time.sleep(0.3)
rank.send_signal(signal.SIGKILL)
os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)
time.sleep(0.03)
rank.wait()
time.sleep(0.3)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfd here")
def test_an_end_is_seen_before_the_launcher_takes_it_away():
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", REAP])
        watched = ranks.Ranks(process.pid)
        while process.poll() is None:
            watched.look()
            watched.wait(0.1)
        assert watched.first_killed == ("1", signal.SIGKILL)
