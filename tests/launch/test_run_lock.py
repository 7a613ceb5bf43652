"""The lock of a run: one process at a time."""

import multiprocessing
import os
import signal
import time

import pytest

from errors import UserError
from launch.run_lock import RunLock
from tests.helpers.saved_runs import fit_pretrain

pytestmark = pytest.mark.quick


def hold(directory, ready):
    lock = RunLock(directory, print)
    ready.set()
    time.sleep(600)
    lock.release()


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path):
    context = multiprocessing.get_context("fork")
    for _ in range(20):
        ready = context.Event()
        first = context.Process(target=hold, args=(tmp_path, ready))
        first.start()
        assert ready.wait(20)
        with pytest.raises(UserError, match=f"another process works in it .process {first.pid} on "):
            RunLock(tmp_path, print)
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        RunLock(tmp_path, print).release()
    assert not list(tmp_path.iterdir())


def test_a_run_holds_its_lock_to_its_end(tiny_run):
    run = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 64)
    run.log._lock = RunLock(run.directory, print)
    fit_pretrain(run)
    assert not (run.directory / ".lock").exists()
