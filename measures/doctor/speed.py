"""Section 4: images per second, share of the peak, and memory against its estimate, of one recipe and batch.

Each batch has a process of its own, as the peak of a process's memory only grows.
"""

import gc
import statistics
import time

import paddle

import runtime
from config import get_config, network_kind, replaced
from measures.doctor.check import Case, Check, assess, not_applicable
from measures.synthetic import synthetic_arrays
from measures.training_step import OneBatchTraining, split_views
from storage.architecture import of_config
from training import device, flops, memory

_WARM_UP, _STEPS = 2, 6
_LEAST_MFU = 0.1  # what published MAE code reaches on GPUs is 6 to 12 %
_ESTIMATE = (0.6, 1.15)  # the peak, as a share of the estimate; one that is too small is worse


def recipe_config(recipe: str, batch: int):
    """Return the configuration of a recipe at a batch size."""
    options = f"DATA.BATCH_SIZE {batch} DATA.NUM_WORKERS 0 TRAIN.ACCUM_ITER 1 TRAIN.TOTAL_BATCH_SIZE None".split()
    return get_config(runtime.ROOT / "configs" / f"{recipe}.yaml", options)


def examine(case: Case, recipe: str, batch: int) -> list[Check]:
    """Return the checks of a recipe at a batch size, at each level of mixed precision; the device is chosen."""
    config, precision = device.choose_precision(recipe_config(recipe, batch))
    name = f"{recipe}, batch {batch}"
    if device.autocast_dtype(config) is None:
        return _examine_level(name, config, batch, precision)
    checks = []
    for level in ("O2", "O1"):  # the peak of a process only grows, and O1 needs more memory
        checks += _examine_level(f"{name}, {level}", replaced(config, "TRAIN.AMP_LEVEL", level), batch, precision)
        gc.collect()
    return checks


def _examine_level(name: str, config, batch: int, precision: str) -> list[Check]:
    kind = "gpu" if device.is_on_gpu() else "cpu"
    estimate = memory.estimate(of_config(config, network_kind(config)), config, device=kind)
    needed = estimate.peak - (estimate.framework if device.is_on_gpu() else 0)  # Paddle counts its own tensors there
    there = device.memory_of_rank()
    try:
        rate, flop_per_image = measure(config, batch)
    except (MemoryError, RuntimeError, SystemError) as error:
        if there is not None and needed > there and "memory" in str(error).lower():
            return [not_applicable(name, "needs more memory than there is, as estimated")]
        raise
    return assess_speed(name, precision, rate, flop_per_image, device.peak_bytes(), needed)


def measure(config, batch: int) -> tuple[float, float]:
    """Return the images per second of updates on one batch, and the FLOPs of an image."""
    training = OneBatchTraining(config, split_views(config, *synthetic_arrays(config, batch)))
    secs = []
    for _ in range(_WARM_UP + _STEPS):
        started = time.perf_counter()
        training.update()
        secs.append(time.perf_counter() - started)
    return batch / statistics.median(secs[_WARM_UP:]), training.flop_per_image


def assess_speed(
    name: str, precision: str, rate: float, flop_per_image: float, peak_bytes: int, estimate: float
) -> list[Check]:
    """Return the checks of a measurement."""
    values = {"images_per_sec": rate, "tflops": rate * flop_per_image / 1e12}
    found = f"{rate:,.1f} images/s, {values['tflops']:.3g} TFLOP/s, {precision.removeprefix('precision: ')}"
    peak = flops.peak_flops(paddle.device.cuda.get_device_name()) if device.is_on_gpu() else None
    if peak is None:
        limit, advice = "some", "the step does not run"
        speed = assess(f"{name}: speed", rate > 0, found, limit, advice, **values)
    else:
        mfu = rate * flop_per_image / peak
        advice = "a GPU that is shared, hot or limited in power, or -amp none; see docs/speed.md"
        found, limit = f"{found}, MFU {mfu:.1%}", f"MFU {_LEAST_MFU:.0%}"
        speed = assess(f"{name}: speed", mfu >= _LEAST_MFU, found, limit, advice, mfu=mfu, **values)
    share = peak_bytes / estimate
    found = f"{peak_bytes / 2**30:.2f} GiB, {share:.0%} of the estimate"
    limit = "{:.0%} to {:.0%}".format(*_ESTIMATE)
    advice = "the memory that -dry_run and -batch_size auto expect is wrong here: report doctor.json"
    holds = _ESTIMATE[0] <= share <= _ESTIMATE[1]
    values = {"peak_bytes": peak_bytes, "estimate_bytes": estimate}
    return [speed, assess(f"{name}: memory", holds, found, limit, advice, **values)]
