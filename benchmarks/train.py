"""Time real training from end to end: data from disk, workers, checkpoints off.

    python -m benchmarks.train -cfg FILE -data_path DIR [-dataset NAME] [-nproc 2] [-epochs 1] [-pairs 5]

Starts the main script as a user does, and reads the log that it writes: images per second (the first report of each run
is left out), the share of the time that was spent waiting for data. With -nproc N, runs with one and with N processes
take turns, with the same number of images per update, and the ratio of their rates is printed.
"""

import runtime

runtime.prepare()

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from arguments import Parser
from benchmarks import measure
from config import get_config
from errors import UserError
from launch import command_line
from training.log import read_log


def run_once(config, mode: str, args, nproc: int) -> dict[str, float]:
    """Train for some updates, and return the medians of the logged numbers."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(measure.ROOT / f"main_multi_gpu_{mode}.py"), "-cfg", args.cfg, "-output", folder]
        command += ["-data_path", args.data_path, "-nproc", str(nproc)]
        command += ["-batch_size", str(config.DATA.BATCH_SIZE // nproc)]
        command += ["-dataset", args.dataset] if args.dataset else []
        command += ["-opts", *args.opts, "REPORT_FREQ", "10", "SAVE_FREQ", "100000", "REPORT", "False"]
        command += ["TRAIN.NUM_EPOCHS", str(args.epochs), "TRAIN.WARMUP_EPOCHS", "0"]
        done = subprocess.run(
            command, cwd=measure.ROOT, env=runtime.original_environment(), capture_output=True, text=True
        )
        if done.returncode:
            raise UserError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1:]}")
        (run,) = [path for path in Path(folder).iterdir() if (path / "log.jsonl").is_file()]
        records = [record for record in read_log(run) if record["event"] == "train"][1:]
    return {key: statistics.median(record[key] for record in records) for key in ("images_per_sec", "data_wait")}


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    """Measure, print, and return the rows."""
    parser = Parser(prog="python -m benchmarks.train", description=__doc__)
    parser.add("cfg", "YAML of the recipe", required=True, metavar="FILE")
    parser.add("data_path", "directory of the data set", default=".", metavar="DIR")
    parser.add("dataset", "instead of the recipe's", metavar="NAME")
    parser.add("nproc", "compare one process with N", type=int, default=1, metavar="N")
    parser.add("epochs", "per run (default: 1)", type=int, default=1)
    parser.add("pairs", "runs of each kind (default: 5)", type=int, default=5)
    parser.add("json", "append the lines to this file", metavar="FILE")
    parser.add("opts", "settings: KEY VALUE or KEY=VALUE", nargs="+", action="extend", default=[])
    args = parser.parse_args(argv)
    config = get_config(args.cfg, args.opts)
    kinds = sorted({1, args.nproc})
    results: dict[int, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for number in range(args.pairs):
        for kind in kinds if number % 2 == 0 else kinds[::-1]:
            results[kind].append(run_once(config, config.MODEL.TYPE.lower(), args, kind))
    rows = []
    for kind in kinds:
        row = {"benchmark": "train", "cfg": args.cfg, "processes": kind, "workers": config.DATA.NUM_WORKERS}
        row |= {key: statistics.median(result[key] for result in results[kind]) for key in results[kind][0]}
        ratios = [
            many["images_per_sec"] / one["images_per_sec"] for many, one in zip(results[kind], results[1], strict=True)
        ]
        rows.append(row | {"rate/one": statistics.median(ratios)})
    measure.report(rows, args.json)
    return rows


if __name__ == "__main__":
    command_line.run(lambda: sys.exit(0 if main() else 1))
