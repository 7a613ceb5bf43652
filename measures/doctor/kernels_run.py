"""Section 3: which kernels ran, as the profiler or a counter saw them, not as the code hoped."""

import json
from pathlib import Path

import paddle

from layers import cpu_kernels
from measures.doctor import reference
from measures.doctor.check import Case, Check, assess, not_applicable
from measures.synthetic import synthetic_arrays
from measures.training_step import OneBatchTraining, split_views
from training import device
from training.device import autocast_dtype, choose_precision

_FLASH = ("flash", "fmha")
_PRODUCTS = ("gemm", "cutlass", "cublas", "xmma", "nvjet")
_LOW = ("bf16", "bfloat16", "fp16", "f16", "h16", "half", "16816", "nvjet_t", "nvjet_h")
_CPU_KERNELS = ("linear", "attention")


def examine(case: Case) -> list[Check]:
    """Return the checks of this section; the device is chosen."""
    config, _ = choose_precision(reference.configuration("pretraining", case.folder, amp="auto"))
    if device.is_on_cpu():
        return [*check_cpu_kernels(config), not_applicable("GPU kernels", "no NVIDIA GPU computes")]
    if not device.is_on_gpu():
        return [not_applicable("kernels", "only NVIDIA GPUs and CPUs are known")]
    names = _profile(config, case.folder)
    return assess_gpu_kernels(names, autocast_dtype(config), paddle.device.cuda.get_device_capability())


def check_cpu_kernels(config) -> list[Check]:
    """Count the calls of this project's own kernels in an update."""
    counts, kept = dict.fromkeys(_CPU_KERNELS, 0), {name: getattr(cpu_kernels, name) for name in _CPU_KERNELS}

    def counting(name: str):
        def call(*args, **options):
            counts[name] += 1
            return kept[name](*args, **options)

        return call

    training = OneBatchTraining(config, split_views(config, *synthetic_arrays(config, 8)))
    for name in _CPU_KERNELS:
        setattr(cpu_kernels, name, counting(name))
    try:
        training.update()
    finally:
        for name, kernel in kept.items():
            setattr(cpu_kernels, name, kernel)
    blocks = config.MODEL.ENCODER.DEPTH + config.MODEL.DECODER.DEPTH
    advice = "Paddle's own, slower kernels ran: the layers were not called in float32 and eager mode"
    return [
        assess(f"{name} on CPU", counts[name] >= blocks, f"{counts[name]} calls", f"at least {blocks}", advice)
        for name in _CPU_KERNELS
    ]


def _profile(config, folder: Path) -> list[str]:
    """Return the names of the kernels that a GPU runs in an update."""
    training = OneBatchTraining(config, split_views(config, *synthetic_arrays(config, 32)))
    training.update()
    targets = [paddle.profiler.ProfilerTarget.GPU]
    profiler = paddle.profiler.Profiler(targets=targets, on_trace_ready=lambda profiler: None)  # else it writes a file
    with profiler:
        training.update()
    file = folder / "trace.json"
    profiler.export(str(file), format="json")
    events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    return [event["name"] for event in events if str(event.get("cat", "")).lower() == "kernel"]


def assess_gpu_kernels(names: list[str], precision: str | None, capability: tuple[int, int]) -> list[Check]:
    """Assess the names of the kernels of an update.

    Args:
        names: of each kernel that ran.
        precision: "float16", "bfloat16", or None.
        capability: of the GPU.
    """
    flash = [name for name in names if any(word in name.lower() for word in _FLASH)]
    products = [name for name in names if name not in flash and any(word in name.lower() for word in _PRODUCTS)]
    low = [name for name in products if any(word in name.lower() for word in _LOW)]
    values = {"flash": sorted(set(flash)), "products": sorted(set(products)), "kernels": len(names)}
    checks = [assess("kernels", bool(names), f"{len(names)} in an update", "some", "the profiler saw none", **values)]
    if precision is None:
        why = "the run is in float32"
        return [*checks, not_applicable("flash attention", why), not_applicable("products in low precision", why)]
    advice = "plain attention ran although the log says flash: report doctor.json"
    if capability >= (8, 0):
        checks.append(assess("flash attention", bool(flash), f"{len(flash)} kernels", "some", advice))
    else:
        checks.append(not_applicable("flash attention", "the GPU's compute capability is below 8.0"))
    share, advice = len(low) / max(1, len(products)), "products ran in float32 under -amp: report doctor.json"
    found = f"{len(low)} of {len(products)} in {precision}"
    return [*checks, assess("products in low precision", share >= 0.9, found, "90 %", advice)]
