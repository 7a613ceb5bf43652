"""Worker processes that fill arrays in shared memory; results come in the order of the jobs.

Paddle's own loader processes use Paddle, where another thread may hold a lock at the moment of the fork, which is then
never released; they say "Blocking queue is killed" of any exception; and they need much of /dev/shm, of which
containers have little. The processes here do without Paddle. An exception in one of them is raised in the parent.
"""

import concurrent.futures
import gc
import math
import mmap
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool

import numpy as np

import runtime

_JOBS_PER_WORKER = 2  # one in work and one waiting

_fill: Callable[[object, np.ndarray], object]  # in a worker: what its pool was made with
_slots: list[np.ndarray]


class WorkerPool:
    """Worker processes that fill arrays in shared memory.

    Args:
        fill: `(job, out) -> result`; writes its array to `out`, and returns something small beside it.
        num_workers: processes; 0: everything is done by this one.
        shape: of `out`.
        dtype: of `out`.
    """

    def __init__(self, fill: Callable, num_workers: int, shape: tuple[int, ...], dtype: np.dtype):
        self._fill = fill
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        # Anonymous memory: no name that a killed process would leave behind, and none of /dev/shm.
        memory = [mmap.mmap(-1, num_bytes) for _ in range(1 + _JOBS_PER_WORKER * num_workers)]
        self._slots = [np.frombuffer(block, dtype).reshape(shape) for block in memory]
        self._is_running, self._executor = False, None
        if num_workers > 0:
            self._executor = concurrent.futures.ProcessPoolExecutor(
                num_workers,
                multiprocessing.get_context("fork"),  # `fill` and all that it knows need not be copied
                initializer=_begin,
                initargs=(fill, self._slots, os.getpid()),
            )

    def close(self) -> None:
        """End the processes; nothing can be loaded by this pool any more."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def run(self, jobs: Iterable) -> Iterator[tuple[np.ndarray, object]]:
        """Yield (array, result) of every job, in order; an array is overwritten when the next one is asked for.

        Raises:
            RuntimeError: if a process died, or the results of another call are still being taken.
        """
        if self._is_running:
            raise RuntimeError("one iteration at a time: they would share their arrays")
        self._is_running = True
        try:
            yield from self._run_here(jobs) if self._executor is None else self._run_there(jobs)
        finally:
            self._is_running = False

    def _run_here(self, jobs: Iterable) -> Iterator[tuple[np.ndarray, object]]:
        for job in jobs:
            yield self._slots[0], self._fill(job, self._slots[0])

    def _run_there(self, jobs: Iterable) -> Iterator[tuple[np.ndarray, object]]:
        jobs, free, pending = iter(jobs), list(range(len(self._slots))), deque()
        try:
            while True:
                for job in jobs if free else ():
                    slot = free.pop()
                    pending.append((slot, self._executor.submit(_work, job, slot)))
                    if not free:
                        break
                if not pending:
                    return
                slot, future = pending.popleft()
                yield self._slots[slot], future.result()
                free.append(slot)
        except BrokenProcessPool as error:
            kill_all()  # the pool waits for the others, and they ignore its SIGTERM
            raise RuntimeError(
                "a process that loads data died; if the machine ran out of memory, lower DATA.NUM_WORKERS"
            ) from error
        finally:  # the slots are free again when nobody writes to them
            for _, future in pending:
                future.cancel()
            concurrent.futures.wait([future for _, future in pending])


def kill_all() -> None:
    """End the processes of all pools; nothing can be loaded any more."""
    for process in multiprocessing.active_children():
        process.kill()


def _begin(fill: Callable, slots: list[np.ndarray], parent: int) -> None:
    global _fill, _slots
    _fill, _slots = fill, slots
    gc.freeze()  # never collect objects inherited from the parent: freeing its tensors would take Paddle's locks
    for number in runtime.ENDING_SIGNALS:  # the parent decides; terminals and schedulers signal all
        signal.signal(number, signal.SIG_IGN)
    runtime.end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _work(job: object, slot: int) -> object:
    return _fill(job, _slots[slot])
