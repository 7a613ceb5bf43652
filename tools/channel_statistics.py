"""Find DATA.PIXEL_RANGE, IMAGENET_MEAN and IMAGENET_STD of images that are arrays (DATA.PIXELS array), per channel.

    python -m tools.channel_statistics -data_path DIR [-dataset folder] [-split train] [-bands 3 2 1] [-nodata 0]
    python -m tools.channel_statistics -data_path DIR -scale decibel -range -30 0 -num 10000 -out statistics.html

Prints a table and lines for a YAML file. The range is from the 0.1 % to the 99.9 % value, unless -range names it; mean
and deviation are of the pixels from 0 to 1 that the model sees, cut at that range. Integers of up to 16 bits are
counted exactly; bins of fractions are at most 0.8 % wide. Results do not depend on -workers. Exit code 1 if a channel
is constant, files have numbers of several types, or some cannot be read.
"""

import runtime

runtime.prepare()

import collections
import concurrent.futures
import math
import os
import sys

import numpy as np

import datasets
from arguments import Parser, finite
from config import DATASETS, DEFAULT_DATA_PATH
from errors import UserError, abridge
from launch import command_line, tool_flags
from measures.channel_counts import Counts
from pages import html
from pages.curves import html_charts
from pipeline import decoding
from pipeline.array_source import ArraySource
from pipeline.left_out import no_images
from pipeline.pixel_array import PixelFormat
from pipeline.sources import Source, describe_lost, describe_unreadable
from storage import results

_PERCENT = (0.1, 2, 50, 98, 99.9)
_MUCH = 0.05  # share of one value from which on it may mean "missing"
_POINTS = 64  # in a drawn histogram
_READ_TWICE = 100  # images whose tags are looked at
_AHEAD = 16  # images that are counted before their turn


def count_image(source: ArraySource, form: PixelFormat, index: int) -> tuple[Counts | None, str, str | None]:
    """Count an image; returns its counts, the type of its numbers, and what is wrong with it."""
    try:
        array = source.numbers(index)
        stored, array = str(array.dtype), array if form.bands is None else form.select(array)
        missing = np.zeros(array.shape, bool) if form.nodata is None else array == form.nodata
        if form.is_decibel:
            array, missing = form.values(array)
        return Counts.of_image(array, missing), stored, None
    except Exception as error:  # damaged files raise nearly anything
        return None, "", describe_unreadable(source, index, error)


def count_all(source: Source, form: PixelFormat, indices: np.ndarray, workers: int) -> tuple[Counts, int, list[str]]:
    """Count images, in the order of the indices; returns their number, too, and what is wrong with the others.

    Raises:
        UserError: if none can be read.
    """
    wrapped, total, problems, types = ArraySource(source, form), None, [], collections.Counter()
    names, num_counted = map(source.describe, map(int, indices)), 0
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(indices), _AHEAD * workers):
            chunk = indices[start : start + _AHEAD * workers]
            for counts, dtype, problem in pool.map(lambda index: count_image(wrapped, form, int(index)), chunk):
                name = next(names)
                if problem is None and total is not None and counts.counts.shape != total.counts.shape:
                    problem = f"{name}: has {len(counts.counts)} channels, and others {len(total.counts)}"
                if problem is not None:
                    problems.append(f"{problem}; it is not counted")
                    continue
                types[dtype] += 1
                if total is None:
                    total = counts
                elif counts.dtype == total.dtype:
                    total += counts
                else:
                    continue
                num_counted += 1
    if total is None:
        raise UserError(f"{source.origin}: none of {len(indices):,} images can be read: {abridge(problems, 3)}")
    if len(types) > 1:
        found = ", ".join(f"{count:,} of {dtype}" for dtype, count in types.items())
        problems.append(f"numbers of several types: {found}; only those of the first one's are counted")
    return total, num_counted, problems


def find_ranges(counts: Counts, given: tuple[float, float] | None) -> list[tuple[float, float]]:
    """Return low and high end of each channel: those given, or the 0.1 % and the 99.9 % values."""
    if given is not None:
        return [given] * len(counts.counts)
    ends = [[counts.percentile(channel, percent) for percent in (0.1, 99.9)] for channel in range(len(counts.counts))]
    return [(low, high if high > low else low + 1.0) for low, high in ends]


def warnings_of(counts: Counts, form: PixelFormat) -> tuple[list[str], list[str]]:
    """Return what is wrong with channels, and what may be."""
    bad, notes = [], []
    for channel in range(len(counts.counts)):
        total, missing = int(counts.counts[channel].sum()), int(counts.missing[channel])
        if total == 0:
            bad.append(f"channel {channel}: all pixels are missing")
            continue
        if counts.lowest[channel] == counts.highest[channel]:
            bad.append(f"channel {channel}: is constant, {counts.lowest[channel]:g}")
        value, share = counts.commonest(channel)
        is_end = value in (counts.lowest[channel], counts.highest[channel], 0.0)
        if form.nodata is None and is_end and share > _MUCH and counts.lowest[channel] != counts.highest[channel]:
            notes.append(f"channel {channel}: {share:.0%} of the pixels are {value:g}; does it mean missing (-nodata)?")
        if missing:
            notes.append(f"channel {channel}: {missing / (missing + total):.1%} of the pixels are missing")
    return bad, notes


def yaml_lines(counts: Counts, form: PixelFormat, ranges: list[tuple[float, float]]) -> list[str]:
    """Return the settings that follow, as lines of a YAML file."""
    moments = [counts.mean_and_std(channel, *ends) for channel, ends in enumerate(ranges)]
    means, stds = ([float(f"{moment[i]:.5g}") for moment in moments] for i in (0, 1))
    pairs = [[float(f"{end:.9g}") for end in ends] for ends in ranges]
    lines = ["DATA:", "  PIXELS: array", f"  IMAGE_CHANNELS: {len(ranges)}"]
    if form.bands is not None:
        lines.append(f"  BANDS: {list(form.bands)}")
    if form.nodata is not None:
        lines.append(f"  NODATA: {int(form.nodata) if form.nodata.is_integer() else form.nodata!r}")
    lines += ["  PIXEL_SCALE: decibel"] * form.is_decibel
    lines.append(f"  PIXEL_RANGE: {pairs[0] if len({tuple(pair) for pair in pairs}) == 1 else pairs}")
    return [*lines, f"  IMAGENET_MEAN: {means}", f"  IMAGENET_STD: {stds}"]


def to_rows(counts: Counts, ranges: list[tuple[float, float]]) -> list[list[object]]:
    """Return a row of figures for each channel."""
    rows = []
    for channel, (low, high) in enumerate(ranges):
        values = [counts.percentile(channel, percent) for percent in _PERCENT]
        ends = [counts.lowest[channel], *values, counts.highest[channel]]
        cut = f"{counts.cut_share(channel, low, high):.2%}"
        rows.append([channel, int(counts.counts[channel].sum()), *(f"{value:.6g}" for value in ends), cut])
    return rows


_HEADER = ["channel", "pixels", "lowest", *(f"{percent:g} %" for percent in _PERCENT), "highest", "cut by the range"]


def histogram(counts: Counts, channel: int) -> list[tuple[float, float]]:
    """Return points (value, percent of the pixels) between the 0.1 % and the 99.9 % value."""
    low, high = (counts.percentile(channel, percent) for percent in (0.1, 99.9))
    if not high > low:
        return [(low, 100.0)]
    used = np.flatnonzero(counts.counts[channel])
    edges = np.linspace(low, high, _POINTS + 1)
    found, _ = np.histogram(counts.values[used], edges, weights=counts.counts[channel][used])
    share = 100 * found / counts.counts[channel].sum()
    return list(zip(((edges[1:] + edges[:-1]) / 2).tolist(), share.tolist(), strict=True))


def main(argv: list[str] | None = None) -> bool:
    """Print statistics and settings; returns True if nothing is wrong with the images."""
    parser = Parser(prog="python -m tools.channel_statistics", description=__doc__)
    parser.add("data_path", "directory of the data set", default=DEFAULT_DATA_PATH, metavar="DIR")
    parser.add("dataset", "as in training (default: folder)", default="folder", metavar="NAME")
    parser.add("split", "train or val (default: train)", choices=("train", "val"), default="train")
    parser.add("bands", "channels of the files to take, from 0 (DATA.BANDS)", type=tool_flags.natural, nargs="+")
    parser.add("channels", "DATA.IMAGE_CHANNELS, where .npy files do not tell", type=tool_flags.natural, default=0)
    parser.add("nodata", "number that means missing (DATA.NODATA)", type=finite)
    parser.add("scale", "DATA.PIXEL_SCALE", choices=("linear", "decibel"), default="linear")
    parser.add("range", "DATA.PIXEL_RANGE of all channels", type=finite, nargs=2, metavar=("LOW", "HIGH"))
    parser.add("num", "images to count, drawn by -seed (default: all)", type=int)
    parser.add("seed", "of the draw (default: 0)", type=tool_flags.natural, default=0)
    parser.add("workers", "threads (default: as many as cores)", type=int, default=os.cpu_count() or 1)
    parser.add("out", "page with histograms", metavar="FILE.html")
    args = parser.parse_args(argv)
    if args.dataset not in DATASETS:
        raise UserError(f"-dataset {args.dataset}: must be one of {', '.join(DATASETS)}")
    if args.workers < 1 or (args.num is not None and args.num < 1):
        raise UserError("-workers and -num must be at least 1")
    if len(set(args.bands or ())) < len(args.bands or ()):
        raise UserError(f"-bands {' '.join(map(str, args.bands))}: must be different channels")
    if args.range is not None and not args.range[0] < args.range[1]:
        raise UserError(f"-range {args.range[0]:g} {args.range[1]:g}: the low end must be below the high one")
    out = None if args.out is None else results.new_file(args.out, ".html", inputs=[args.data_path])
    decoding.allow_arrays(True)
    source = datasets.open_source(args.dataset, args.data_path, args.split, num_classes=10, needs="none")
    if len(source) == 0:
        raise no_images(source.origin, source.notes)
    indices = np.arange(len(source))
    if args.num is not None and args.num < len(source):
        indices = np.sort(np.random.default_rng(args.seed).choice(len(source), args.num, replace=False))
    bands = None if args.bands is None else tuple(args.bands)
    form = PixelFormat(len(bands or ()) or args.channels, (), (), args.scale == "decibel", bands, args.nodata)
    return report(out, source, form, indices, args)


def report(out, source: Source, form: PixelFormat, indices: np.ndarray, args) -> bool:
    """Count, print, write the page; returns True if nothing is wrong."""
    counts, num_counted, problems = count_all(source, form, indices, args.workers)
    lost = describe_lost(ArraySource(source, form), indices[:_READ_TWICE].tolist())
    ranges = find_ranges(counts, None if args.range is None else tuple(args.range))
    bad, notes = warnings_of(counts, form)
    notes += lost
    rows = to_rows(counts, ranges)
    print(f"{num_counted:,} of {len(source):,} images of {source.origin}, numbers of type {counts.dtype}")
    table = [_HEADER, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADER))]
    for row in table:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    for line in (*notes, *bad, *problems[:20]):
        print(f"warning: {line}")
    if len(problems) > 20:
        print(f"warning: and {len(problems) - 20:,} more")
    is_empty = bool(bad) or any(math.isnan(end) for ends in ranges for end in ends)
    lines = [] if is_empty else yaml_lines(counts, form, ranges)
    print(*["", *(lines or ["no settings, because of what is wrong with channels"])], sep="\n")
    if out is not None:
        curves = {f"channel {channel}": histogram(counts, channel) for channel in range(len(ranges)) if not is_empty}
        sections = [
            ("Settings", html.html_text("\n".join(lines))),
            ("Numbers", html.html_table(_HEADER, rows)),
            ("Histograms", html_charts([("percent of the pixels", curves)], "number")),
            ("Warnings", html.html_text("\n".join((*notes, *bad, *problems)) or "none")),
        ]
        html.write_page(out, f"Channels of {source.origin}", sections)
        print(f"wrote {out}")
    return not bad and not problems


if __name__ == "__main__":
    command_line.run(lambda: sys.exit(0 if main() else 1))
