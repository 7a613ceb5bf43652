"""A process that holds one side of a comparison, and does steps on request; see measure.py.

Reads lines "SIDE CONFIG.yaml BATCH" first, then numbers of steps; answers each with one JSON line.
"""

import runtime

runtime.prepare()

import json
import math
import sys
import time

from benchmarks.sides import describe, make_step
from config import get_config


def peak_memory_mb() -> float:
    """Return the most memory that this process had, in MiB; NaN if that is unknown."""
    peak = runtime.peak_memory_bytes()
    return math.nan if peak is None else peak / 2**20


def main() -> None:
    """Answer requests until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    side, config_file, batch_size = sys.stdin.readline().split("\t")
    config = get_config(config_file)
    step, flop_per_image = make_step(side, config, int(batch_size))
    about = describe(side, config) | {"flop_per_image": flop_per_image}
    for line in sys.stdin:
        secs = []
        for _ in range(int(line)):
            started = time.perf_counter()
            step()
            secs.append(time.perf_counter() - started)
        print(json.dumps({"secs": secs, "peak_mb": peak_memory_mb(), "about": about}), file=answers, flush=True)


if __name__ == "__main__":
    main()
