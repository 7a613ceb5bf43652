"""Golden traces: loss, learning rate and gradient norm of 20 updates of each mode, written exactly.

    python -m tests.traces DIRECTORY        # writes trace-MODE-paddleVERSION.txt; tests/golden has those that hold

A change that should not alter numbers leaves them alone, to the bit on a processor like the one that wrote them. The
modes are trained as users train them, through the recipes, on generated images; in a process of their own, as sums
depend on where the allocator puts an array.
"""

import runtime

runtime.prepare()

import sys
import tempfile
from pathlib import Path

import numpy as np
import paddle

from config import get_config
from methods import dispatch
from tests.conftest import MODES, TINY
from training.log import RunLog, read_log
from training.task import Run

GOLDEN = runtime.ROOT / "tests" / "golden"
NUM_STEPS = 20
OPTIONS = {
    "pretrain": [],
    "finetune": ["TRAIN.EMA_DECAY", 0.9, "TRAIN.ACCUM_ITER", 2, "MODEL.DROPPATH", 0.2, "TRAIN.GRAD_CLIP", 1.0],
    "linearprobe": [],
}


def trace(mode: str) -> list[str]:
    """Train for 20 updates, and return a line per update: step, loss, learning rate, gradient norm."""
    with tempfile.TemporaryDirectory() as folder:
        size = ["DATA.BATCH_SIZE", 48 if mode == "finetune" else 96, "REPORT_FREQ", 1, "TRAIN.NUM_EPOCHS", 2]
        config = get_config(None, [*TINY, *MODES[mode], *size, *OPTIONS[mode]])
        run = Run(config, Path(folder), RunLog(Path(folder), quiet=True))
        dispatch.train_or_evaluate(run)
        records = [record for record in read_log(folder) if record["event"] == "train"][:NUM_STEPS]
    keys = ("loss", "lr", "grad_norm")
    return [" ".join([str(record["step"]), *(str(np.float32(record[key])) for key in keys)]) for record in records]


def processor() -> str:
    """Describe what the bits depend on: the processor's instructions, and the number of threads."""
    about = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    wanted = ("vendor_id", "cpu family", "model\t")
    lines = [" ".join(line.split()) for line in about.splitlines() if line.startswith(wanted)][:3]
    return f"{', '.join(lines)}, {runtime.num_cores()} cores"


def name_of(mode: str) -> str:
    """Return the name of a mode's file for this version of Paddle."""
    return f"trace-{mode}-paddle{paddle.__version__}.txt"


def main() -> None:
    """Write the files of this version of Paddle into a directory."""
    folder = Path(sys.argv[1])
    paddle.set_device("cpu")
    paddle.set_flags({"FLAGS_use_stride_kernel": False})
    for mode in MODES:
        header = [f"# {processor()}", "# step loss lr grad_norm"]
        (folder / name_of(mode)).write_text("\n".join([*header, *trace(mode)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
