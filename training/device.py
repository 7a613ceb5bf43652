"""The device that computes, and the precision in which it does."""

import contextlib
import os
from collections.abc import Callable, Iterator

import paddle

import runtime
from config import amp_dtype, replaced
from errors import UserError, one_line
from layers.kernels import low_residual


def set_device(device: str | None = None, deterministic: bool = False) -> None:
    """Choose where to compute, and set the device's flags.

    Args:
        device: what `paddle.set_device` takes: cpu, gpu, gpu:3, npu, xpu:1, ...; None: this rank's GPU if there is one,
            else the CPU. Other accelerators than NVIDIA's GPUs have not been tried.

    Raises:
        UserError: if it is not there, or this build of Paddle has no code for it.
    """
    kind, _, number = (device or ("gpu" if _has_gpu() else "cpu")).partition(":")
    if kind == "gpu" and not _has_gpu():
        raise UserError(f"-device {device}: Paddle sees no GPU (is paddlepaddle-gpu installed, and the driver?)")
    if kind == "cpu" and number:
        raise UserError(f"-device {device}: the CPU has no number; leave it out")
    if kind == "cpu":
        paddle.set_device("cpu")
        paddle.set_flags({"FLAGS_use_stride_kernel": False})  # strided copies are several times slower on CPU
        unused = other_accelerators() if device is None and runtime.is_main() else []
        if unused:
            print(f"warning: this Paddle has {', '.join(unused)}, and the CPU computes; -device {unused[0]} uses it")
        return
    index = number or getattr(paddle.distributed.ParallelEnv(), "device_id", 0)  # this rank's
    if kind == "gpu":
        properties = paddle.device.cuda.get_device_properties(int(index))
        check_capability(paddle.__version__, (properties.major, properties.minor), properties.name)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
            paddle.set_flags({"FLAGS_cudnn_deterministic": True, "FLAGS_embedding_deterministic": 1})
    try:
        paddle.set_device(f"{kind}:{index}")
    except Exception as error:  # Paddle has an exception for each reason
        names = ["cpu", *["gpu"] * _has_gpu(), *other_accelerators()]
        why = (
            f"Paddle cannot use it ({one_line(error)})" if kind in names else "this build of Paddle has no such device"
        )
        raise UserError(f"-device {device}: {why}; here are {', '.join(names)}") from error


def _has_gpu() -> bool:
    return paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0


def other_accelerators() -> list[str]:
    """Return the names of devices besides CPU and GPU that this build of Paddle can use."""
    return ["xpu"] * paddle.device.is_compiled_with_xpu() + list(paddle.device.get_all_custom_device_type() or ())


def check_capability(version: str, capability: tuple[int, int], name: str) -> None:
    """Raise UserError for a GPU that the build of Paddle has no code for.

    The newest `paddlepaddle-gpu` on PyPI, 2.6.2, has machine code for compute capability 5.0 to 8.6, which also runs on
    8.9, and no PTX that newer GPUs could translate.
    """
    if version.startswith("2.") and not (5, 0) <= capability < (9, 0):
        raise UserError(
            f"{name}: Paddle {version} has no code for its compute capability {capability[0]}.{capability[1]} (5.0 to "
            "8.9 work); install Paddle 3, see Install in README.md"
        )


def is_on_gpu() -> bool:
    """Return True if an NVIDIA GPU computes."""
    return paddle.device.get_device().startswith("gpu")


def memory_of_rank() -> int | None:
    """Return the bytes of memory that each rank may use on the device that computes; None if that is unknown."""
    if is_on_gpu():
        return paddle.device.cuda.get_device_properties().total_memory
    there = runtime.memory_bytes() if is_on_cpu() else None
    return None if there is None else there // runtime.local_ranks()


def peak_bytes() -> int:
    """Return the most memory that this process had on the device that computes, in bytes."""
    if is_on_gpu():
        return paddle.device.cuda.max_memory_allocated()
    return runtime.peak_memory_bytes() or 0


def is_on_cpu() -> bool:
    """Return True if the CPU computes, and not an accelerator that works on its own."""
    return paddle.device.get_device().startswith("cpu")


FIRST_CAPABILITY = {"bf16": (8, 0), "fp16": (7, 0)}  # GPUs whose tensor cores compute in it


def choose_precision(config) -> tuple[object, str]:
    """Settle AMP for the current device.

    Returns:
        The configuration with AMP False, "fp16" or "bf16", and a line for the log.

    Raises:
        UserError: if a GPU does not compute in the precision that AMP asks for; Paddle would use float32 silently.
    """
    wanted = "fp16" if config.AMP is True else config.AMP
    if not is_on_gpu():
        config = replaced(config, "AMP", False) if wanted == "auto" else config
        return config, f"precision: {'float32' if is_on_cpu() or not config.AMP else config.AMP}"
    capability = paddle.device.cuda.get_device_capability()
    has = [name for name, first in FIRST_CAPABILITY.items() if capability >= first]
    best, words = (has or [False])[0], "compute capability {}.{}".format(*capability)
    if wanted in FIRST_CAPABILITY and wanted not in has:
        first = "compute capability {}.{}".format(*FIRST_CAPABILITY[wanted])
        raise UserError(f"-amp {wanted}: needs {first}, and this GPU has {words}; -amp {best or 'none'} works")
    chosen = best if wanted == "auto" else wanted
    how = f", by {words}; -amp fp16, bf16 or none chooses another" if wanted == "auto" else ""
    return replaced(config, "AMP", chosen), f"precision: {chosen or 'float32'}{how}"


def autocast_dtype(config, say: Callable[[str], None] | None = None) -> str | None:
    """Return the precision to compute in; on CPU, where Paddle has none but float32, None and one warning."""
    dtype = amp_dtype(config)
    if dtype is not None and is_on_cpu():
        if say is not None:
            say(f"warning: -amp {dtype} has no effect on CPU, where Paddle computes in float32")
        return None
    return dtype


@contextlib.contextmanager
def autocast(config) -> Iterator[None]:
    """Be the context in which losses and evaluations are computed.

    AMP_LEVEL O2 differs from Paddle's O2: the weights stay float32, and so do targets and losses.
    """
    dtype = autocast_dtype(config)
    mixed = paddle.amp.auto_cast(enable=dtype is not None, dtype=dtype or "float16", level="O1")
    with mixed, low_residual(dtype if config.TRAIN.AMP_LEVEL == "O2" else None):
        yield
