"""The device that computes, and the precision in which it does."""

import os

import paddle

from config import amp_dtype
from errors import UserError
from training.log import RunLog


def set_device(device: str | None = None, deterministic: bool = False) -> None:
    """Choose the CPU, or this rank's GPU (None: if there is one), and set the device's flags."""
    has_gpu = paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if device == "gpu" and not has_gpu:
        raise UserError("-device gpu: Paddle sees no GPU (is paddlepaddle-gpu installed, and the driver?)")
    if device == "cpu" or not has_gpu:
        paddle.set_device("cpu")
        paddle.set_flags({"FLAGS_use_stride_kernel": False})  # strided copies are several times slower on CPU
    else:
        index = paddle.distributed.ParallelEnv().device_id
        properties = paddle.device.cuda.get_device_properties(index)
        check_capability(paddle.__version__, (properties.major, properties.minor), properties.name)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
            paddle.set_flags({"FLAGS_cudnn_deterministic": True, "FLAGS_embedding_deterministic": 1})
        paddle.set_device(f"gpu:{index}")


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
    """Return True if a GPU computes."""
    return not paddle.device.get_device().startswith("cpu")


def autocast_dtype(config, log: RunLog | None = None) -> str | None:
    """Return the precision to compute in; on CPU, where Paddle has none but float32, None and one warning."""
    dtype = amp_dtype(config)
    if dtype is not None and not is_on_gpu():
        if log is not None:
            log.say(f"warning: -amp {dtype} has no effect on CPU, where Paddle computes in float32")
        return None
    return dtype


def autocast(config):
    """Return the context in which losses and evaluations are computed."""
    dtype = autocast_dtype(config)
    return paddle.amp.auto_cast(enable=dtype is not None, dtype=dtype or "float16", level="O1")
