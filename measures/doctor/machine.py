"""Section 1: Paddle, driver, device, libraries, memory, limits of the operating system."""

import os
import platform
import re
import resource
import shutil
import subprocess
from pathlib import Path

import paddle

import runtime
from measures.doctor.check import Case, Check, assess, not_applicable
from training import device

_OLDEST_PADDLE = (2, 6, 2)
_LEAST_HOST_BYTES = 2 << 30  # free memory for each rank
_LEAST_SHARED_BYTES = 256 << 20  # NCCL's buffers between the GPUs of a node
_LEAST_FILES = 1024
_MOST_USED_SHARE = 0.1  # other processes' share of a GPU's memory


def examine(case: Case) -> list[Check]:
    """Return the checks of this section; the device is chosen."""
    return [
        check_paddle(paddle.__version__),
        check_device(case.device),
        check_libraries(),
        check_gpu_memory(),
        check_host_memory(case.nproc, _free_memory()),
        check_shared_memory(case.nproc, Path("/dev/shm")),
        check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        check_cores(case.nproc, runtime.num_cores()),
        check_maths_library(),
    ]


def check_paddle(version: str) -> Check:
    """Check that this Paddle is one that the project is tested with, or newer."""
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())
    advice = "install paddlepaddle 3.3.1 or 2.6.2, see Install in README.md"
    found = f"{version}, Python {platform.python_version()}"
    return assess("Paddle", numbers >= _OLDEST_PADDLE, found, "2.6.2 or newer", advice, version=version)


def check_device(wanted: str | None) -> Check:
    """Check that an accelerator that is there computes, unless another device was asked for."""
    name = paddle.device.get_device()
    if device.is_on_gpu():
        properties = paddle.device.cuda.get_device_properties()
        found = f"{name}, {properties.name}, compute capability {properties.major}.{properties.minor}"
    else:
        found = name
    idle = [*device.other_accelerators(), *_nvidia_gpus()] if wanted is None and device.is_on_cpu() else []
    advice = f"{', '.join(idle)} is idle: install Paddle's wheel for it (README.md, Install), or give -device"
    return assess("device", not idle, found, "no idle accelerator", advice, device=found)


def _nvidia_gpus() -> list[str]:
    return [f"an NVIDIA GPU ({path})" for path in ("/dev/nvidia0", "/dev/dxg") if Path(path).exists()][:1]


def check_libraries() -> Check:
    """Check that cuDNN, which Paddle's wheel may not bring, can be loaded."""
    name = "CUDA, cuDNN, NCCL"
    if not device.is_on_gpu():
        return not_applicable(name, "no NVIDIA GPU computes")
    versions = {"CUDA": paddle.version.cuda(), "cuDNN": paddle.device.get_cudnn_version(), "NCCL": _nccl()}
    versions |= {"driver": _query_gpus("driver_version") or "unknown"}
    found = ", ".join(f"{library} {version}" for library, version in versions.items())
    advice = "install nvidia-cudnn-cu11 or -cu12 and put it on LD_LIBRARY_PATH, see Install in README.md"
    return assess(name, bool(versions["cuDNN"]), found, "cuDNN is loaded", advice, **versions)


def _nccl() -> str:
    return str(paddle.version.nccl()) if hasattr(paddle.version, "nccl") else "unknown"


def _query_gpus(field: str) -> str:
    """Return what nvidia-smi says of the GPUs; empty without it."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        command += ["-i", visible]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return ", ".join(done.stdout.split("\n")).strip(", ") if done.returncode == 0 else ""


def check_gpu_memory() -> Check:
    """Check that other processes leave the GPUs' memory."""
    used, total = _query_gpus("memory.used"), _query_gpus("memory.total")
    if not device.is_on_gpu() or not re.fullmatch(r"[0-9.]+(, [0-9.]+)*", used):
        return not_applicable("free GPU memory", "no NVIDIA GPU computes, or nvidia-smi does not say it")
    pairs = zip(map(float, used.split(", ")), map(float, total.split(", ")), strict=True)
    share = max(mib / whole for mib, whole in pairs)
    advice = "nvidia-smi names the processes that use it"
    found, limit = f"{share:.0%} of one is used", f"at most {_MOST_USED_SHARE:.0%}"
    return assess("free GPU memory", share <= _MOST_USED_SHARE, found, limit, advice, used_mib=used, total_mib=total)


def _free_memory() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) << 10, runtime.memory_bytes() or 1 << 62)
    return runtime.memory_bytes() or 0


def check_host_memory(nproc: int, free: int) -> Check:
    """Check that the ranks of this machine have memory for Paddle and the loader."""
    needed = nproc * _LEAST_HOST_BYTES
    found, limit = f"{free / 2**30:.1f} GiB free", f"{needed / 2**30:.0f} GiB, for {nproc} ranks"
    return assess(
        "host memory", free >= needed, found, limit, "end other programs, or use fewer ranks", free_bytes=free
    )


def check_shared_memory(nproc: int, folder: Path) -> Check:
    """Check that NCCL has shared memory; Docker's default is 64 MiB."""
    if nproc == 1 or not device.is_on_gpu():
        return not_applicable("/dev/shm", "only NCCL needs it, with several ranks")
    free = shutil.disk_usage(folder).free
    found, limit = f"{free / 2**20:,.0f} MiB free", f"{_LEAST_SHARED_BYTES >> 20} MiB"
    advice = "docker run --shm-size 8g, or --ipc=host"
    return assess("/dev/shm", free >= _LEAST_SHARED_BYTES, found, limit, advice, free_bytes=free)


def check_open_files(most: int) -> Check:
    """Check the limit of open files; loaders have some for each worker and shard."""
    holds = most == resource.RLIM_INFINITY or most >= _LEAST_FILES
    return assess("open files", holds, f"{most:,}", f"at least {_LEAST_FILES:,}", "ulimit -n 65536", most=most)


def check_cores(nproc: int, cores: int) -> Check:
    """Check that each rank has a core."""
    found = f"{cores} for {nproc} rank{'s' if nproc > 1 else ''}, {platform.machine()}"
    return assess(
        "cores", cores >= nproc, found, "one per rank", "give the job more cores, or lower -nproc", cores=cores
    )


def check_maths_library() -> Check:
    """Check that MKL, inside Paddle's wheel, takes its fast path on AMD processors."""
    if not device.is_on_cpu() or not runtime.is_amd():
        return not_applicable("MKL on AMD", "the processor is not AMD's, or does not compute")
    value = os.environ.get("MKL_DEBUG_CPU_TYPE")
    advice = "unset MKL_DEBUG_CPU_TYPE and MAE_RUNTIME; runtime.prepare() comes before any import of Paddle"
    return assess("MKL on AMD", value == "5", f"MKL_DEBUG_CPU_TYPE={value}", "5", advice)
