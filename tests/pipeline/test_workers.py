"""Worker processes: order, shared arrays, errors, and ends that come too early."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.workers import WorkerPool
from runtime import ROOT

pytestmark = pytest.mark.quick


def square(job, out):
    time.sleep(0.01 * (job % 3))  # later jobs may be done first
    out[:] = job
    return job * job


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_results_come_in_order_and_again_after_an_early_end(workers):
    pool = WorkerPool(square, workers, (3,), np.float32)
    for done in (20, 5, 20):
        seen = []
        for array, result in pool.run(range(20)):
            assert array.tolist() == [result**0.5] * 3
            seen.append(result)
            if len(seen) == done:
                break
        assert seen == [job * job for job in range(done)]


def test_an_exception_reaches_the_parent_and_the_pool_goes_on():
    def fill(job, out):
        if job == 3:
            raise ValueError("job three")
        return os.getpid()

    pool = WorkerPool(fill, 2, (1,), np.uint8)
    with pytest.raises(ValueError, match="job three"):
        list(pool.run(range(9)))
    pids = {pid for _, pid in pool.run(range(3))}
    assert os.getpid() not in pids


def test_a_worker_that_dies_is_an_error_within_seconds():
    def fill(job, out):
        if job == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    started = time.monotonic()
    with pytest.raises(RuntimeError, match="a process that loads data died; if the machine ran out of memory"):
        list(WorkerPool(fill, 2, (1,), np.uint8).run(range(9)))
    assert time.monotonic() - started < 30


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = (
        "import os, sys, time\n"
        "import numpy as np\n"
        "from pipeline.workers import WorkerPool\n"
        "def fill(job, out):\n"
        f"    open(os.path.join({str(tmp_path)!r}, str(os.getpid())), 'w').close()\n"
        "    time.sleep(0.1)\n"
        "list(WorkerPool(fill, 2, (1,), np.uint8).run(range(10_000)))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_signal_to_all_processes_of_a_job_leaves_the_workers_to_their_parent():
    import multiprocessing

    pool = WorkerPool(square, 2, (3,), np.float32)
    seen = []
    for _, result in pool.run(range(20)):
        seen.append(result)
        if len(seen) == 3:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGTERM)
                os.kill(process.pid, signal.SIGINT)
    assert seen == [job * job for job in range(20)]


@pytest.mark.parametrize("workers", [0, 2])
def test_two_iterations_at_a_time_are_refused(workers):
    pool = WorkerPool(square, workers, (3,), np.float32)
    first = pool.run(range(5))
    next(first)
    with pytest.raises(RuntimeError, match="one iteration at a time"):
        next(pool.run(range(5)))
    first.close()
    assert len(list(pool.run(range(5)))) == 5
