"""Process environment that has to be in place before Paddle loads.

`prepare()` never overrides what the user set, imports neither Paddle nor anything else of this
project, and may be called twice. `MAE_RUNTIME=0` switches all of it off.
"""

import contextlib
import ctypes
import importlib.util
import os
import signal
import sys
import warnings
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc, malloc.h
_KEEP_BYTES = 1 << 30

_changed: dict[str, str] = {}


def prepare(num_threads: int | None = None) -> dict[str, str]:
    """Set thread counts and the maths library's dispatch for CPU work.

    - Threads: the maths library uses all cores that this process may run on, shared among the ranks of
      this machine. OMP_NUM_THREADS stays at Paddle's 1: more was not faster, and Paddle warns of it.
    - AMD: the MKL inside the Paddle wheel (2019 update 5) takes a slow path on AMD processors
      unless MKL_DEBUG_CPU_TYPE=5 is set.

    Args:
        num_threads: threads for this process; default: cores / local ranks.

    Returns:
        The environment variables that were set by this call.
    """
    if importlib.util.find_spec("paddle") is None:
        sys.exit(
            "error: Paddle is not installed in this environment; see Install in README.md (.venv: . .venv/bin/activate)"
        )
    if os.environ.get("MAE_RUNTIME") == "0" or "paddle" in sys.modules:
        return {}
    if num_threads is None:
        local_ranks = int(os.environ.get("PADDLE_LOCAL_SIZE", "1"))
        num_threads = max(1, num_cores() // max(1, local_ranks))
    wanted = {"MKL_NUM_THREADS": str(num_threads), "MKL_DYNAMIC": "FALSE"}
    if _is_amd():
        wanted["MKL_DEBUG_CPU_TYPE"] = "5"
    changed = {key: value for key, value in wanted.items() if key not in os.environ}
    os.environ.update(changed)
    _changed.update(changed)
    # Paddle says these at import and at each batch norm; neither tells a user of ours anything.
    for message in ("No ccache found", "When training, we now always track"):
        warnings.filterwarnings("ignore", message=message)
    return changed


def original_environment() -> dict[str, str]:
    """Return the environment without what `prepare` added: for processes that share this machine's cores."""
    return {key: value for key, value in os.environ.items() if key not in _changed}


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Have this process get a signal when the one that started it dies (Linux only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))


def num_cores() -> int:
    """Count the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def keep_large_blocks() -> None:
    """Have the C allocator keep large temporaries instead of returning them to the system after every operation.

    For a loop whose steps are alike, and to be called when its model is built: what building it freed is not kept.
    """
    if os.environ.get("MAE_RUNTIME") == "0" or not sys.platform.startswith("linux"):
        return
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
    except (OSError, AttributeError):  # not glibc
        return
