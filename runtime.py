"""Process environment that has to be in place before Paddle loads.

`prepare()` never overrides what the user set, and may be called twice. Called by a program of this project, it imports
Paddle, too. `MAE_RUNTIME=0` leaves the environment as it is.
"""

import contextlib
import ctypes
import importlib.util
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

from errors import UserError, printable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc, malloc.h
_KEEP_BYTES = 1 << 30

# Signals by which users and schedulers end a program; SIGUSR1 is Slurm's usual warning.
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
NOTES_VARIABLE = "MAE_LAUNCH_NOTES"  # directory in which the ranks of a job leave word of how they ended
ROOT = Path(__file__).resolve().parent
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_NO_CCACHE = "No ccache found"  # Paddle warns of it at import
_RUN_MODULE = (  # sys is built in, so that nothing is looked for before the path is set
    "import sys; root, name = sys.argv[1:3]; sys.path[0] = root; del sys.argv[1:3]; import runpy; "
    "runpy.run_module(name, run_name='__main__', alter_sys=True)"
)

# Number of a job's processes on this machine, as Paddle's launcher, mpirun and srun tell it.
_LOCAL_SIZES = ("PADDLE_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_TASKS_PER_NODE")

_changed: dict[str, str] = {}


def prepare(num_threads: int | None = None) -> dict[str, str]:
    """Set thread counts and the maths libraries' choices.

    - Threads: the maths library uses all cores that this process may run on, shared among the ranks of
      this machine. OMP_NUM_THREADS stays at Paddle's 1: more was not faster, and Paddle warns of it.
    - AMD: the MKL inside the Paddle wheel (2019 update 5) takes a slow path on AMD processors
      unless MKL_DEBUG_CPU_TYPE=5 is set.
    - NVIDIA: Paddle 2.6.2 lets GPUs compute products of float32 in TF32, with 10 bits of mantissa; 3.3.1 does not.
      NVIDIA_TF32_OVERRIDE=0 keeps cuBLAS and cuDNN from it with both.

    Args:
        num_threads: threads for this process; default: cores / local ranks.

    Returns:
        The environment variables that were set by this call.
    """
    if importlib.util.find_spec("paddle") is None:
        sys.exit(
            "error: Paddle is not installed in this environment; see Install in README.md (.venv: . .venv/bin/activate)"
        )
    if "paddle" in sys.modules:
        return {}
    if " " in os.environ.get(_VISIBLE, ""):  # "0, 1", of which Paddle's launcher makes the device " 1"
        os.environ[_VISIBLE] = os.environ[_VISIBLE].replace(" ", "")
    changed = {} if os.environ.get("MAE_RUNTIME") == "0" else _set_environment(num_threads)
    if _is_program():
        end_quietly()
        _import_paddle()
    return changed


def _set_environment(num_threads: int | None) -> dict[str, str]:
    if num_threads is None:
        num_threads = cores_per_rank()
    wanted = {"MKL_NUM_THREADS": str(num_threads), "MKL_DYNAMIC": "FALSE", "NVIDIA_TF32_OVERRIDE": "0"}
    if is_amd():
        wanted["MKL_DEBUG_CPU_TYPE"] = "5"
    changed = {key: value for key, value in wanted.items() if key not in os.environ}
    os.environ.update(changed)
    _changed.update(changed)
    # Paddle says these at import and at each batch norm; neither tells a user of ours anything.
    for message in (_NO_CCACHE, "When training, we now always track"):
        warnings.filterwarnings("ignore", message=message)
    return changed


def _is_program() -> bool:
    """Return True if this process runs a main script or a tool of this project, not somebody's own program."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return file is not None and ROOT in Path(file).resolve().parents and "tests" not in Path(file).parts


def end_quietly() -> None:
    """Have signals end the process with one line, until `program.run` takes over.

    Standard streams that the caller has closed go nowhere, so that no file of ours gets their numbers.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    _end_on(_ending_signals())


def _import_paddle() -> None:
    """Import Paddle, which takes a second; signals have to wait for so long.

    Paddle puts a handler of its own in the place of ours meanwhile, which takes memory, and may wait for ever if the
    signal came while memory was being taken.
    """
    numbers = _ending_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        importlib.import_module("zlib")  # after Paddle 2.6, Python's own would call the one inside it, and crash
        importlib.import_module("paddle")
    finally:
        _end_on(numbers)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def _ending_signals() -> list[int]:
    """Return the signals that end a program, without those that the caller wants ignored (nohup, jobs of a shell)."""
    return [number for number in ENDING_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def _end_on(numbers: list[int]) -> None:
    for number in numbers:
        signal.signal(number, _end_at_once)


def _end_at_once(number: int, frame: object) -> None:
    if NOTES_VARIABLE not in os.environ:  # else the process that started this one says it
        with contextlib.suppress(OSError):
            os.write(2, f"ended by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


def commit() -> str | None:
    """Return the commit of this project's code, with "-changed" where files differ from it; None without git."""
    if not (ROOT / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=-changed", "--exclude=*"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def module_command(name: str, *args: str) -> list[str]:
    """Return the command that runs a module like `python -m`, with this project where that has the working directory.

    `python -m` would import modules of the working directory first, which anyone may have written.
    """
    return [sys.executable, "-W", f"ignore:{_NO_CCACHE}", "-c", _RUN_MODULE, str(ROOT), name, *args]


def module_environment() -> dict[str, str]:
    """Return the environment for `module_command`: without what `prepare` added, and with absolute paths only."""
    environment = original_environment()
    paths = [path for path in environment.pop("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(path)]
    return environment | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})


def original_environment() -> dict[str, str]:
    """Return the environment without what `prepare` added: for processes that share this machine's cores."""
    return {key: value for key, value in os.environ.items() if key not in _changed}


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Have this process get a signal when the one that started it dies (Linux only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))


def rank() -> int:
    """Return this process's number in the job, from 0."""
    return _launcher_number("PADDLE_TRAINER_ID", "0")


def world_size() -> int:
    """Return the number of processes of the job, on all nodes."""
    return _launcher_number("PADDLE_TRAINERS_NUM", "1")


def local_ranks() -> int:
    """Return the number of processes of the job on this machine."""
    for name in _LOCAL_SIZES:
        digits = re.match(r"[0-9]{1,8}(?![0-9])", os.environ.get(name, ""))  # Slurm writes 2(x3) for three nodes
        if digits:
            return max(1, int(digits[0]))
    own = os.environ.get("PADDLE_CURRENT_ENDPOINT", "").rpartition(":")[0]
    hosts = [end.rpartition(":")[0] for end in os.environ.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")]
    return max(1, hosts.count(own)) if own else 1


def is_main() -> bool:
    """Return True if this process writes files and prints."""
    return rank() == 0


def _launcher_number(variable: str, default: str) -> int:
    """Return a number that a launcher left in the environment."""
    text = os.environ.get(variable, default)
    if not text.isdecimal() or len(text) > 9:
        raise UserError(f"{variable}={printable(text, 40)}: is not a number; launchers set it, so unset it")
    return int(text)


def num_cores() -> int:
    """Count the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cores_per_rank() -> int:
    """Return this process's share of the processors that the ranks of this machine may run on; at least 1."""
    return max(1, num_cores() // local_ranks())


def memory_bytes() -> int | None:
    """Return the memory of this machine, or of the group that limits this process; None where it is not known."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # a container; "max" is none
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(found, default=None)


def peak_memory_bytes() -> int | None:
    """Return the most memory that this process had; None where the system does not say it (Linux does)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return None


def is_amd() -> bool:
    """Return True if the processor is AMD's."""
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
