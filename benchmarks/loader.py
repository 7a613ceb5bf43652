"""Time the input pipeline alone, in one process, against a plain one on the same files.

    python -m benchmarks.loader -data_path DIR [-dataset imagenet2012] [-cfg FILE] [-packed DIR] [-pairs 5]

The plain one is what the official code does: Pillow decodes, a random resized crop (bicubic), flip, float32, normalise,
stack. Ours takes the same boxes, and stops at the uint8 batch, because the device does the rest. Rows: exact decoding
(Pillow), fast decoding (DATA.FAST_DECODE), and both from a packed copy if -packed names one. A ratio is images per
second over the plain pipeline's, in turns; `difference` is the mean absolute one of fast and exact pixels, out of 255.
"""

import runtime

runtime.prepare()

import io
import itertools
import sys
import time

import numpy as np
from PIL import Image

import datasets
from arguments import Parser
from benchmarks import measure
from config import get_config
from errors import UserError
from launch import command_line
from methods import dispatch
from pipeline import augment, fast_jpeg, loading
from pipeline.decoding import FORMATS
from pipeline.samplers import TrainSampler
from pipeline.sources import Source, read_image
from pipeline.workers import WorkerPool

_BATCH = 32


class Pipeline:
    """A side: batches of all images of a source, again and again."""

    def __init__(self, name: str, source: Source, fill, shape: tuple[int, ...], dtype):
        self.name = name
        self._pool = WorkerPool(fill, 0, (_BATCH, *shape), dtype)
        sampler = TrainSampler(len(source), _BATCH, order=source.order)
        self._batches = itertools.cycle(list(sampler))

    def steps(self, count: int) -> list[float]:
        """Make some batches, and return the seconds of each."""
        started, secs = time.perf_counter(), []
        for _ in self._pool.run(itertools.islice(self._batches, count)):
            secs.append(time.perf_counter() - started)
            started = time.perf_counter()
        return secs


def plain_pipeline(source: Source, config) -> Pipeline:
    """Build a plain pipeline in Pillow and NumPy."""
    mean, std = (np.asarray(values, np.float32) for values in (config.DATA.IMAGENET_MEAN, config.DATA.IMAGENET_STD))
    side = config.DATA.IMAGE_SIZE

    def fill(keys: list[tuple[int, int]], out: np.ndarray) -> None:
        arrays = []
        for epoch, index in keys:
            with Image.open(io.BytesIO(source.read(index)), formats=FORMATS) as image:
                image = image.convert("RGB")
            rng = np.random.default_rng([0, epoch, index])
            image = augment.random_flip(augment.random_resized_crop(image, (side, side), rng, (0.2, 1.0)), rng)
            array = (np.asarray(image, np.float32) / 255.0 - mean) / std
            arrays.append(np.ascontiguousarray(array.transpose(2, 0, 1)))
        out[: len(keys)] = np.stack(arrays)

    return Pipeline("plain", source, fill, (3, side, side), np.float32)


def our_pipeline(name: str, source: Source, config, fast: bool) -> Pipeline:
    """Build the pipeline that training uses."""
    transform, side = dispatch.train_transform(config), config.DATA.IMAGE_SIZE
    reader = loading.Reader(source, transform.views, 3, 0, "error", True, fast, True)
    return Pipeline(name, source, reader.fill, (), np.dtype([("view0", np.uint8, (side, side, 3))]))


def pixel_difference(source: Source, config) -> float:
    """Return the mean absolute difference of fast and exact pixels, same boxes, out of 255."""
    pixels = dispatch.train_transform(config).views[0]
    total = 0.0
    for index in range(len(source)):
        jpeg = fast_jpeg.open_jpeg(source.read(index), 3) or read_image(source, index, 3)
        images = (jpeg, read_image(source, index, 3))
        fast, exact = (pixels(image, np.random.default_rng(index)).astype(np.float32) for image in images)
        total += np.abs(fast - exact).mean()
    return float(total / len(source))


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    """Measure, print, and return the rows."""
    parser = Parser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add("data_path", "directory of image files", required=True, metavar="DIR")
    parser.add("dataset", "as in training (default: imagenet2012)", default="imagenet2012")
    parser.add("packed", "the same data set, packed", metavar="DIR")
    parser.add("cfg", "pretraining recipe", default="configs/vit_base_patch16_224_pretrain.yaml", metavar="FILE")
    parser.add("pairs", "turns of each side (default: 5)", type=int, default=5)
    parser.add("steps", "batches of 32 per turn (default: 8)", type=int, default=8)
    parser.add("json", "append the lines to this file", metavar="FILE")
    args = parser.parse_args(argv)
    fast_jpeg.check_installed()
    config = get_config(args.cfg)
    files = datasets.open_source(args.dataset, args.data_path, "train", num_classes=1, needs="none")
    if not files.is_encoded:
        raise UserError(f"-data_path {args.data_path}: image files are needed, for the plain pipeline")
    sources = {"files": files}
    if args.packed:
        sources["packed"] = datasets.open_source(args.dataset, args.packed, "train", num_classes=1)
    sides = [plain_pipeline(files, config)]
    for name, source in sources.items():
        sides += [
            our_pipeline(f"{name}, {'fast' if fast else 'exact'}", source, config, fast) for fast in (False, True)
        ]
    turns = measure.take_turns(sides, args.pairs, args.steps)
    rows = []
    for side in sides:
        row = {"benchmark": "loader", "side": side.name, **measure.summarise(turns[side.name], _BATCH)}
        row |= measure.ratio(turns["plain"], turns[side.name])
        if side.name.endswith("fast"):
            row["difference"] = pixel_difference(sources[side.name.partition(",")[0]], config)
        rows.append(row)
    measure.report(rows, args.json)
    return rows


if __name__ == "__main__":
    command_line.run(lambda: sys.exit(0 if main() else 1))
