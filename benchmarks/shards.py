"""WebDataset shards against the same images as files; a simulated index of billions; the first resumed image.

    python -m benchmarks.shards [-images 20000] [-pairs 5] [-out DIR]

1. Images per second of one process, exact decoding, in turns, on generated JPEGs of 256 x 256 pixels.
2. Memory of the index of 5 billion images in 500,000 shards, with the order of an epoch, and the time to open it.
3. Seconds from opening the shards to the first image of a run that resumes in the middle of an epoch, and whether it is
   the image that an undisturbed run would have had.
"""

import runtime

runtime.prepare()

import resource
import time
from pathlib import Path

import numpy as np
from PIL import Image

import datasets
from arguments import Parser
from benchmarks import measure
from benchmarks.loader import our_pipeline
from config import get_config
from launch import command_line
from pipeline import shard_index
from pipeline.left_out import LeftOut
from pipeline.samplers import TrainSampler
from pipeline.shard_index import SplitIndex
from pipeline.sources import Source
from pipeline.web_shards import WebShards, WindowOrder
from tools import pack_dataset

_PIXELS, _PER_SHARD = 256, 1000


def make_images(root: Path, count: int) -> None:
    """Write generated JPEGs, and a list with captions."""
    root.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[0:_PIXELS, 0:_PIXELS] / _PIXELS
    captions = []
    for number in range(count):
        path = root / f"{number:06d}.jpg"
        if not path.exists():
            rng = np.random.default_rng(number)
            waves = rng.uniform(1, 20, (3, 2))
            pixels = [np.sin(waves[c, 0] * rows + waves[c, 1] * columns + c) * 100 + 128 for c in range(3)]
            noisy = np.stack(pixels, axis=-1) + rng.normal(0, 12, (_PIXELS, _PIXELS, 1))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        captions.append(f"{path.name}\timage number {number}")
    (root / "train.tsv").write_text("\n".join(captions))


def make_both(out: Path, count: int) -> tuple[Source, Source]:
    """Return the same images as files and as shards."""
    make_images(out / "files", count)
    if not (out / "shards").exists():
        flags = ["-dataset", "lists", "-size", "0", "-per_shard", str(_PER_SHARD)]
        pack_dataset.main([str(out / "files"), str(out / "shards"), *flags])
    return tuple(
        datasets.open_source(name, str(out / folder), "train", num_classes=1, needs="caption")
        for name, folder in (("lists", "files"), ("webdataset", "shards"))
    )


def simulate_billions(out: Path) -> dict[str, object]:
    """Write and open the index of 5 billion images in 500,000 shards, and take images of an epoch's order."""
    shards, images = 500_000, 10_000
    names = np.array([f"{number:08d}.tar".encode() for number in range(shards)])
    counts = {needs: np.full(shards, images, np.int64) for needs in ("none", "caption", "labels")}
    folder = out / "billions"
    (folder / shard_index.FOLDER).mkdir(parents=True, exist_ok=True)
    sizes, times = np.full(shards, 1 << 30), np.arange(shards)
    split = SplitIndex(folder, folder / shard_index.FOLDER, names, sizes, times, counts, 27_999, [], LeftOut())
    file = folder / shard_index.FOLDER / "train.npz"
    shard_index.write_arrays(file, shard_index.split_arrays(split))
    del split, counts
    before, started = _memory_mb(), time.perf_counter()
    listed = shard_index.Shards([name.decode() for name in names.tolist()], sizes.tolist(), times.tolist())
    opened = shard_index.read_split(file, folder, file.parent, listed)
    order = WindowOrder(opened.counts["caption"], 0, 0)
    places = np.arange(4_321_000_000, 4_321_000_256)
    taken = order[places]
    assert len(set(taken.tolist())) == len(places)
    return {
        "benchmark": "shards",
        "side": f"index of {shards * images:,} images in {shards:,} shards",
        "seconds to open it and take a batch": round(time.perf_counter() - started, 2),
        "memory, MiB": round(_memory_mb() - before),
        "peak of the process, MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _memory_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def resume_in_the_middle(out: Path, count: int) -> dict[str, object]:
    """Take the first image of a run that resumes in the middle of its third epoch."""
    wanted = WebShards(out / "shards", "train", "caption").order(7, 2)[np.arange(count)]
    update = count // 64 // 2
    started = time.perf_counter()
    source = WebShards(out / "shards", "train", "caption")
    sampler = TrainSampler(len(source), 64, seed=7, order=source.order)
    sampler.set_position(2, update)
    index = next(iter(sampler))[0][1]
    source.image(index)
    secs = time.perf_counter() - started
    is_exact = index == wanted[update * 64]
    return {
        "benchmark": "shards",
        "side": "resumed",
        "seconds to the first image": round(secs, 3),
        "exact": bool(is_exact),
    }


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    """Measure, print, and return the rows."""
    parser = Parser(prog="python -m benchmarks.shards", description=__doc__)
    parser.add("images", "number of images (default: 20000)", type=int, default=20_000)
    parser.add("pairs", "turns of each side (default: 5)", type=int, default=5)
    parser.add("steps", "batches of 32 per turn (default: 40)", type=int, default=40)
    parser.add("out", "directory for the images", default="/tmp/benchmark-shards", metavar="DIR")
    parser.add("json", "append the lines to this file", metavar="FILE")
    args = parser.parse_args(argv)
    out = Path(args.out)
    config = get_config("configs/vit_base_patch16_224_pretrain.yaml")
    files, shards = make_both(out, args.images)
    sides = [our_pipeline("files", files, config, False), our_pipeline("shards", shards, config, False)]
    turns = measure.take_turns(sides, args.pairs, args.steps)
    rows = [
        {"benchmark": "shards", "side": side.name, **measure.summarise(turns[side.name], 32)}
        | measure.ratio(turns["files"], turns[side.name])
        for side in sides
    ]
    rows += [resume_in_the_middle(out, args.images), simulate_billions(out)]
    measure.report(rows, args.json)
    return rows


if __name__ == "__main__":
    command_line.run(main)
