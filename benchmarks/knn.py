"""Time k-NN classification against scikit-learn's brute force, in turns and in processes of their own.

    python -m benchmarks.knn [-bank 50000] [-queries 10000] [-dim 768] [-pairs 3]

Both classify the same random features by 20 neighbours with cosine similarity and votes weighted
exp(similarity / 0.07), and the classes that they give are compared.
"""

import runtime

runtime.prepare()

import hashlib
import json
import subprocess
import sys
import time

import numpy as np

from arguments import Parser
from benchmarks import measure
from benchmarks.worker import peak_memory_mb
from errors import UserError
from launch import command_line

_K, _TEMPERATURE, _CLASSES = 20, 0.07, 1000


def make_features(args) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return bank, its labels and queries: clusters that overlap."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((_CLASSES, args.dim), dtype=np.float32)
    labels, asked = rng.integers(0, _CLASSES, args.bank), rng.integers(0, _CLASSES, args.queries)
    bank, queries = (
        rng.standard_normal((args.bank, args.dim), np.float32),
        rng.standard_normal((args.queries, args.dim), np.float32),
    )
    bank *= 3.0
    queries *= 3.0
    bank += centres[labels]
    queries += centres[asked]
    return bank, labels, queries


def work(side: str, args) -> dict[str, object]:
    """Classify once; returns seconds, the process's peak memory, and a digest of the classes."""
    bank, labels, queries = make_features(args)
    started = time.perf_counter()
    if side == "ours":
        from measures.neighbours import classify

        classes = classify(bank, labels, queries, [_K], _TEMPERATURE)[_K]
    else:
        from sklearn.neighbors import KNeighborsClassifier

        model = KNeighborsClassifier(
            _K, algorithm="brute", metric="cosine", weights=lambda distance: np.exp((1 - distance) / _TEMPERATURE)
        )
        classes = model.fit(bank, labels).predict(queries)
    secs = time.perf_counter() - started
    digest = hashlib.sha256(classes.astype(np.int64).tobytes()).hexdigest()
    return {"secs": secs, "peak_mb": peak_memory_mb(), "digest": digest}


class _Side:
    def __init__(self, name: str, flags: list[str]):
        self.name, self.peak_mb, self.digests = name, 0.0, set()
        self._command = [sys.executable, "-m", "benchmarks.knn", "-side", name, *flags]

    def steps(self, count: int) -> list[float]:
        secs = []
        for _ in range(count):
            done = subprocess.run(
                self._command, cwd=measure.ROOT, env=runtime.original_environment(), capture_output=True, text=True
            )
            if done.returncode:
                raise UserError(f"{self.name}: {done.stderr.strip().splitlines()[-1:]}")
            values = json.loads(done.stdout.strip().splitlines()[-1])
            self.peak_mb = max(self.peak_mb, values["peak_mb"])
            self.digests.add(values["digest"])
            secs.append(values["secs"])
        return secs


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    """Measure, print, and return the rows."""
    parser = Parser(prog="python -m benchmarks.knn", description=__doc__)
    parser.add("bank", "training images (default: 50000)", type=int, default=50_000)
    parser.add("queries", "images to classify (default: 10000)", type=int, default=10_000)
    parser.add("dim", "length of a feature vector (default: 768)", type=int, default=768)
    parser.add("pairs", "turns of each side (default: 3)", type=int, default=3)
    parser.add("json", "append the lines to this file", metavar="FILE")
    parser.add("side", "do one side's work here; used by the benchmark itself", choices=("ours", "scikit-learn"))
    args = parser.parse_args(argv)
    if args.side is not None:
        print(json.dumps(work(args.side, args)))
        return []
    flags = ["-bank", str(args.bank), "-queries", str(args.queries), "-dim", str(args.dim)]
    sides = [_Side("ours", flags), _Side("scikit-learn", flags)]
    turns = measure.take_turns(sides, args.pairs, 1, warm_up=0)
    rows = []
    for side in sides:
        numbers = measure.summarise(turns[side.name], args.queries)
        row = {"benchmark": "knn", "side": side.name, **numbers, "peak_mb": side.peak_mb}
        if side is not sides[0]:
            row |= {f"ours/{key}": value for key, value in measure.ratio(turns["ours"], turns[side.name]).items()}
            row["same classes"] = side.digests == sides[0].digests
        rows.append(row)
    measure.report(rows, args.json)
    return rows


if __name__ == "__main__":
    command_line.run(main)
