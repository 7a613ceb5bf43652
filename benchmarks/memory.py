"""Compare estimates of memory with the peaks that training on CPU really takes.

    python -m benchmarks.memory [-quick]

Each case is a run of a main script on generated images, which is ended after three updates; the peak is the kernel's
`VmHWM`. About 10 minutes and 8 GiB on two cores; -quick does the cases of ViT-Base with 8 images only.
"""

import runtime

runtime.end_quietly()

import os
import subprocess
import sys
from pathlib import Path

from arguments import Parser
from config import get_config, network_kind
from launch import command_line
from runtime import ROOT
from storage.architecture import of_config
from training import memory

# Script, model, images per batch, recomputation.
CASES = [
    ("pretrain", "vit_base_patch16_224", 8, False),
    ("finetune", "vit_base_patch16_224", 8, False),
    ("pretrain", "vit_base_patch16_224", 32, False),
    ("pretrain", "vit_base_patch16_224", 32, True),
    ("finetune", "vit_base_patch16_224", 32, False),
    ("finetune", "vit_base_patch16_224", 32, True),
    ("finetune", "vit_large_patch16_224", 8, False),
    ("finetune", "vit_large_patch16_224", 8, True),
    ("pretrain", "vit_large_patch16_224", 16, False),
    ("pretrain", "vit_large_patch16_224", 16, True),
    # Not used to fit the constants.
    ("finetune", "vit_base_patch16_224", 16, False),
    ("finetune", "vit_large_patch16_224", 4, True),
    ("pretrain", "vit_large_patch16_224", 32, False),
]
_UPDATES = 3


def settings(batch: int, recompute: bool) -> list[object]:
    """Return the overrides of a case."""
    opts = ["DATA.BATCH_SIZE", batch, "TRAIN.RECOMPUTE", recompute, "DATA.NUM_WORKERS", 0, "TRAIN.ACCUM_ITER", 1]
    opts += ["TRAIN.TOTAL_BATCH_SIZE", None, "TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "REPORT", False]
    return [*opts, "REPORT_FREQ", 1]


def estimated(script: str, model: str, batch: int, recompute: bool) -> float:
    """Return the estimate of a case in GiB."""
    config = get_config(ROOT / "configs" / f"{model}_{script}.yaml", settings(batch, recompute))
    return memory.estimate(of_config(config, network_kind(config)), config).peak / memory.GIB


def measured(script: str, model: str, batch: int, recompute: bool, out: Path) -> float:
    """Run a case, and return its peak in GiB."""
    command = [sys.executable, str(ROOT / f"main_multi_gpu_{script}.py"), "-device", "cpu", "-nproc", "1"]
    command += ["-cfg", str(ROOT / "configs" / f"{model}_{script}.yaml"), "-dataset", "synthetic", "-output", str(out)]
    command += ["-opts", *map(str, settings(batch, recompute))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    steps, lines = 0, []
    for line in process.stdout:
        lines.append(line)
        steps += line.startswith("step ")
        if steps == _UPDATES:
            break
    if steps < _UPDATES:
        raise RuntimeError("".join(lines[-20:]))
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    process.kill()
    process.wait()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**20


def main(argv: list[str] | None = None) -> None:
    """Print a table."""
    parser = Parser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add("quick", "ViT-Base with 8 images only", action="store_true")
    parser.add("out", "directory for the runs", default="/tmp/benchmark-memory", metavar="DIR")
    args = parser.parse_args(argv)
    os.environ.pop("PADDLE_TRAINER_ID", None)
    print("| script | model | batch | recompute | estimate, GiB | peak, GiB | ratio |\n|---|---|---|---|---|---|---|")
    for case in CASES[: 2 if args.quick else None]:
        guess, peak = estimated(*case), measured(*case, Path(args.out))
        script, model, batch, recompute = case
        row = [script, model, batch, recompute, f"{guess:.2f}", f"{peak:.2f}", f"{guess / peak:.3f}"]
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    command_line.run(main)
