"""Timing that can be compared: sides take turns in one run; medians, ratios and the environment are reported."""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import runtime

ROOT = runtime.ROOT
_PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "numpy", "pillow", "simplejpeg", "opencv-python-headless", "torch")
_VARIABLES = ("MKL_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "OMP_NUM_THREADS", "FLAGS_use_stride_kernel", "MAE_RUNTIME")


class Side:
    """A process that does steps of one side on request; see worker.py.

    Attributes:
        name: the label, or the side's own name.
        peak_mb: the most memory that the process had, in MiB.
        about: device, precision and attention kernel.
    """

    def __init__(self, name: str, config, batch_size: int, label: str | None = None):
        self.name, self.peak_mb, self.about = label or name, float("nan"), {}
        self._folder = tempfile.TemporaryDirectory()
        config_file = Path(self._folder.name) / "config.yaml"
        config_file.write_text(config.dump(), encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            cwd=ROOT,
            env=runtime.original_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask(f"{name}\t{config_file}\t{batch_size}\n")

    def _ask(self, line: str) -> None:
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def steps(self, count: int) -> list[float]:
        """Do some steps, and return the seconds of each."""
        self._ask(f"{count}\n")
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self.name} ended with code {self._process.wait()}")
        values = json.loads(answer)
        self.peak_mb, self.about = values["peak_mb"], values["about"]
        return values["secs"]

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def take_turns(sides: Sequence, pairs: int, steps: int = 1, warm_up: int = 2) -> dict[str, list[list[float]]]:
    """Let sides, which have `name` and `steps(count) -> seconds`, work in turn; returns the seconds of each turn."""
    for side in sides:
        side.steps(warm_up)
    turns: dict[str, list[list[float]]] = {side.name: [] for side in sides}
    for number in range(pairs):
        for side in sides if number % 2 == 0 else list(reversed(sides)):
            turns[side.name].append(side.steps(steps))
    return turns


def summarise(turns: list[list[float]], images_per_step: int) -> dict[str, float]:
    """Return medians of the seconds per step and of the rate."""
    secs = sorted(sec for turn in turns for sec in turn)
    p50, p95 = statistics.median(secs), secs[min(len(secs) - 1, int(0.95 * len(secs)))]
    return {"step_ms_p50": 1000 * p50, "step_ms_p95": 1000 * p95, "images_per_sec": images_per_step / p50}


def ratio(ours: list[list[float]], other: list[list[float]]) -> dict[str, float]:
    """Return median, smallest and largest of ours / other over the pairs of turns."""
    ratios = [sum(one) / sum(two) for one, two in zip(ours, other, strict=True)]
    return {"ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def environment() -> dict[str, object]:
    """Return machine, versions and commit, on which figures depend."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": runtime.num_cores(),
        "versions": versions,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "time": time.strftime("%Y-%m-%d %H:%M"),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def report(rows: list[dict[str, object]], json_file: str | None) -> None:
    """Print one JSON line per row and a table; append the lines to a file if there is one."""
    lines = [json.dumps({**row, "environment": environment()}) for row in rows]
    if json_file:
        with open(json_file, "a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    print("\n".join(lines))
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([_cell(row.get(name, "")) for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value)
