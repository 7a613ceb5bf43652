"""LiT with cached image features against LiT that computes them, same updates, in turns.

    python -m benchmarks.lit [-batch_size 128] [-pairs 1]

Each turn is a run of the main script on generated images with captions: ViT-Base/16, a text tower of XLM-R base's size,
float32. The time is the median of the updates after the first two, without the computation of the features.
"""

import runtime

runtime.end_quietly()

import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import sentencepiece
from PIL import Image

from arguments import Parser
from benchmarks import measure
from launch import command_line
from pipeline.captions import TRAINER_OPTIONS
from runtime import ROOT
from training.log import read_log

_UPDATES, _WARM_UP = 5, 2


def make_pairs(root: Path, count: int) -> None:
    """Write generated images with captions, and a tokenizer."""
    root.mkdir(parents=True, exist_ok=True)
    captions = [f"a generated picture, number {number}" for number in range(count)]
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(root / f"{number}.jpg", quality=90)
    (root / "train.tsv").write_text("\n".join(f"{number}.jpg\t{text}" for number, text in enumerate(captions)))
    files = {"sentence_iterator": iter(captions), "model_prefix": str(root / "tokenizer")}
    sentencepiece.SentencePieceTrainer.train(**files, vocab_size=1000, **TRAINER_OPTIONS)


def seconds(root: Path, batch_size: int, cached: bool, name: str) -> float:
    """Run one side, and return the seconds of an update."""
    command = [sys.executable, str(ROOT / "main_multi_gpu_pretrain.py"), "-device", "cpu", "-nproc", "1"]
    command += ["-cfg", str(ROOT / "configs" / "maws" / "vit_base_patch16_224_lit.yaml"), "-dataset", "lists"]
    command += ["-data_path", str(root), "-batch_size", str(batch_size), "-output", str(root / "runs")]
    command += ["-opts", "LIT.TOKENIZER", str(root / "tokenizer.model"), "LIT.CACHE_FEATURES", str(cached)]
    command += ["REPORT", "False", "REPORT_FREQ", "1", "RUN", name, "DATA.NUM_WORKERS", "2", "TRAIN.TOTAL_BATCH_SIZE"]
    done = subprocess.run([*command, "None"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    records = [record for record in read_log(root / "runs" / name) if record["event"] == "train"]
    return statistics.median(batch_size / record["images_per_sec"] for record in records[_WARM_UP:])


def main(argv: list[str] | None = None) -> None:
    """Measure, and print."""
    parser = Parser(prog="python -m benchmarks.lit", description=__doc__)
    parser.add("batch_size", "pairs per update (default: 128)", type=int, default=128)
    parser.add("pairs", "turns of each side (default: 1)", type=int, default=1)
    parser.add("out", "directory for images and runs", default="/tmp/benchmark-lit", metavar="DIR")
    args = parser.parse_args(argv)
    root = Path(args.out)
    make_pairs(root, args.batch_size * _UPDATES)
    rows = []
    for turn in range(args.pairs):
        images, cached = (seconds(root, args.batch_size, c, f"{turn}-{c}") for c in (False, True))
        rows.append({"benchmark": "lit", "images, s": images, "cached, s": cached, "times as fast": images / cached})
    measure.report(rows, None)


if __name__ == "__main__":
    command_line.run(main)
