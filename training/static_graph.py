"""Training on a static graph that Paddle makes of the model, where that works."""

import warnings
from collections.abc import Callable

import paddle
from paddle import nn

from config import image_size_hw
from errors import one_line
from training import data_parallel
from training.task import Task


def compile_model(task: Task, config, autocast: Callable, say: Callable[[str], None]) -> None:
    """Turn the model's forward pass into a static graph, in place, if TRAIN.TO_STATIC is set.

    The graph is tried on a batch first, forward and backward; where Paddle fails on it, the model stays as it was, and
    the log says why. One graph serves batches of all sizes: between graphs, Paddle 3.3 adds gradients up wrongly.

    Args:
        autocast: returns the context of mixed precision.
    """
    if not task.can_be_traced:
        say(f"warning: TRAIN.TO_STATIC: {task.name} runs its networks in several passes, which stay eager")
        return
    model = task.model
    backend = "CINN" if config.TRAIN.TO_STATIC == "cinn" else None
    if backend and not paddle.base.core.is_compiled_with_cinn():
        say("warning: TRAIN.TO_STATIC cinn: this Paddle is built without CINN; the static graph runs without it")
        backend = None
    if paddle.device.get_device() == "cpu":
        say("warning: TRAIN.TO_STATIC is for GPUs; on CPU it leaves out this project's faster kernels")
    eager = model.forward
    try:
        spec = paddle.static.InputSpec([None, *_image_shape(config)], "float32", "images")
        paddle.jit.to_static(model, input_spec=[spec], backend=backend, full_graph=True)
        _try(model, config, autocast)
    except Exception as error:  # whatever it is, training works without
        model.forward = eager
        say(f"warning: TRAIN.TO_STATIC: Paddle cannot trace the model ({one_line(error)}); it runs eagerly")
    else:
        say("the model runs as a static graph" + (", compiled by CINN" if backend else ""))


def _try(model: nn.Layer, config, autocast: Callable) -> None:
    """Do a forward and a backward pass that leave nothing behind."""
    running = data_parallel.running_statistics(model)
    before = [value.clone() for value in running]
    images = paddle.zeros([config.DATA.BATCH_SIZE, *_image_shape(config)])
    with warnings.catch_warnings(), autocast():
        warnings.simplefilter("ignore")  # tracing reads attributes that a graph's tensors lack
        outputs = model(images)
    loss = outputs[0] if isinstance(outputs, (list, tuple)) else outputs.astype("float32").mean()
    loss.backward()
    model.clear_gradients()
    for value, old in zip(running, before, strict=True):
        value.set_value(old)


def _image_shape(config) -> tuple[int, int, int]:
    return (config.DATA.IMAGE_CHANNELS, *image_size_hw(config))
