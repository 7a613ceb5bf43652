"""Section 5: how fast ranks exchange gradients, and whether the loader keeps up with the steps."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import runtime
from measures.doctor import children
from measures.doctor.check import Case, Check, assess, not_applicable

_NUMBERS = 1 << 24  # 64 MiB in float32, about the gradients of a ViT-Small
_REPEATS = 5
_LEAST_GBPS = {"gpu": 1.0, "cpu": 0.05}  # GB/s; ViT-B's gradients in 0.6 s, and in 12 s
_LONGEST_SECS = 180
_PHOTOS, _PHOTO_HW = 96, {"gpu": (375, 500), "cpu": (40, 40)}  # as in ImageNet, and for the micro recipes


def examine(case: Case) -> list[Check]:
    """Time the sum of an array over all ranks, in processes of their own."""
    if case.nproc == 1:
        return [not_applicable("sums over ranks", "a single rank; -nproc N takes several")]
    result = case.folder / "exchange.json"
    launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(case.nproc)]
    launcher += ["--log_dir", str(case.folder / "exchange-logs"), __file__, str(result), case.device or ""]
    environment = children.environment() | {"PYTHONPATH": str(runtime.ROOT)}
    command = [sys.executable, *launcher]
    code = children.run(command, case.folder / "exchange.log", _LONGEST_SECS, env=environment)
    if code != 0:
        raise RuntimeError(f"the ranks ended with exit code {code}: {_last_line(case.folder)}")
    return assess_exchange(json.loads(result.read_text(encoding="utf-8")))


def _last_line(folder: Path) -> str:
    texts = [log.read_text(errors="replace") for log in sorted((folder / "exchange-logs").glob("workerlog.*"))]
    lines = [line for text in texts for line in text.splitlines() if "Error" in line]
    return lines[0] if lines else "no rank says why"


def assess_exchange(result: dict) -> list[Check]:
    """Assess `{"kind", "ranks", "secs", "is_right"}`: of the median time of a sum."""
    ranks, secs = result["ranks"], result["secs"]
    gbps = 2 * (ranks - 1) / ranks * 4 * _NUMBERS / secs / 1e9  # what each rank sends and receives in a ring
    least = _LEAST_GBPS[result["kind"]]
    advice = "look at nvidia-smi topo -m; between nodes, NCCL_SOCKET_IFNAME and NCCL_IB_HCA choose the network"
    found, limit = f"{gbps:.2f} GB/s, {ranks} ranks, 64 MiB", f"{least:g} GB/s"
    wrong = "the ranks add up wrongly: another NCCL or driver; report doctor.json"
    return [
        assess("sums over ranks", result["is_right"], "right" if result["is_right"] else "WRONG", "exact", wrong),
        assess("speed of sums over ranks", gbps >= least, found, limit, advice, gb_per_sec=gbps),
    ]


def work(result: Path, device_name: str | None) -> None:
    """Be one of the ranks."""
    import paddle

    from layers import across_ranks
    from training import device

    runtime.end_with_parent(signal.SIGKILL)
    device.set_device(device_name)
    across_ranks.join()
    secs, is_right = [], True
    for _ in range(_REPEATS):
        values = paddle.full([_NUMBERS], float(runtime.rank() + 1))
        paddle.distributed.barrier()
        started = time.perf_counter()
        paddle.distributed.all_reduce(values)
        float(values[-1])  # waits for the device
        secs.append(time.perf_counter() - started)
        is_right = is_right and is_sum(values, runtime.world_size())
    if runtime.is_main():
        kind = "gpu" if device.is_on_gpu() else "cpu"
        content = {"kind": kind, "ranks": runtime.world_size(), "secs": sorted(secs)[_REPEATS // 2]}
        result.write_text(json.dumps({**content, "is_right": is_right}), encoding="utf-8")


def is_sum(values, num_ranks: int) -> bool:
    """Return True if each value is the sum of 1, 2, ... of the ranks; float32 holds these sums exactly."""
    return bool((values == float(sum(range(1, num_ranks + 1)))).all())


def examine_loader(case: Case, recipe: str, step: float) -> list[Check]:
    """Compare the loader's images per second, on generated photos, with those of the fastest step of a recipe."""
    import paddle

    from config import get_config
    from methods import dispatch
    from training.log import RunLog
    from training.run import Run

    kind = "gpu" if recipe.startswith("vit_base") else "cpu"
    _make_photos(case.folder / "photos" / "train" / "photo", *_PHOTO_HW[kind])
    workers = max(1, min(8, runtime.num_cores() // case.nproc))
    options = ["DATA.DATASET", "folder", "DATA.DATA_PATH", str(case.folder / "photos"), "DATA.NUM_WORKERS", workers]
    options += ["DATA.BATCH_SIZE", 16, "TRAIN.ACCUM_ITER", 1, "TRAIN.TOTAL_BATCH_SIZE", None, "DATA.BATCH_FIT", "none"]
    config = get_config(runtime.ROOT / "configs" / f"{recipe}.yaml", options)
    paddle.set_device("cpu")
    loader = dispatch.build_train_loader(Run(config, None, RunLog(None, quiet=True)))
    for _ in loader.epoch(0):  # workers start, and files get into memory
        pass
    count, started = 0, time.perf_counter()
    for batch in loader.epoch(1):
        count += len(batch)
    rate = count / (time.perf_counter() - started)
    return [assess_loader(rate, step, workers)]


def _make_photos(folder: Path, height: int, width: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(_PHOTOS):
        small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        small.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)


def assess_loader(loader: float, step: float, workers: int) -> Check:
    """Assess the images per second of the loader of a rank."""
    name = "loader against steps"
    if not step:
        return not_applicable(name, "no step was timed")
    found = f"{loader:,.0f} images/s with {workers} worker(s), a step takes {step:,.0f}"
    advice = "pack the photos (tools.pack_dataset), DATA.FAST_DECODE, TRAIN.AUG_REPEATS or more workers: docs/speed.md"
    values = {"loader_images_per_sec": loader, "step_images_per_sec": step}
    return assess(name, loader >= step, found, "the loader is faster", advice, **values)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    runtime.prepare()
    work(Path(sys.argv[1]), (sys.argv[2:] + [""])[0] or None)
