"""Draw the nearest neighbours of some images in the feature space of one or several encoders.

    python -m tools.neighbours RUN [RUN ...] -out FILE.png [-data_path DIR] [-num 8] [-k 5] [-pool mean]

Each row is an image of the split, then for each RUN its -k nearest others by the cosine of the features. A green frame
marks a neighbour of the same class, a red one of another class; without labels there are no frames. Images are those of
the first RUN's data set, prepared for each encoder as it was trained.
"""

import runtime

runtime.prepare()

import argparse
from pathlib import Path

import numpy as np

from arguments import Parser
from errors import UserError
from launch import command_line, tool_flags
from measures import image_sets
from measures.extraction import POOLS, extract_all
from measures.neighbours import nearest
from methods import load_models
from pages import drawing, html
from pipeline import sources
from pipeline.wrapped_sources import Subset
from storage import atomic, results
from training import device

_GREEN, _RED, _WHITE = (40, 160, 60), (200, 50, 40), (255, 255, 255)
_SIDE_PX, _FRAME_PX = 64, 3


def framed(pictures: np.ndarray, colours: list[tuple[int, int, int]]) -> np.ndarray:
    """Put frames of these colours around pictures uint8 [B, H, W, C]; small ones are enlarged by a whole factor."""
    pictures = np.broadcast_to(pictures[..., :3], (*pictures.shape[:3], 3))
    factor = max(1, _SIDE_PX // max(pictures.shape[1:3]))
    pictures = pictures.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = pictures.shape[1] + 2 * _FRAME_PX, pictures.shape[2] + 2 * _FRAME_PX
    out = np.empty((len(pictures), height, width, 3), np.uint8)
    out[:] = np.array(colours, np.uint8)[:, None, None, :]
    out[:, _FRAME_PX:-_FRAME_PX, _FRAME_PX:-_FRAME_PX] = pictures
    return out


def draw_neighbours(args) -> tuple[list[np.ndarray], list[str]]:
    """Return one array [Q, H, W, 3] per column, and a line per run with the share of neighbours of the same class."""
    configs = [tool_flags.read_config(argparse.Namespace(**{**vars(args), "run": run})) for run in args.runs]
    source = image_sets.open_any_images(configs[0], args.split)
    bank = Subset(source, image_sets.choose_balanced(source.labels, args.bank, args.seed))
    if not 0 < args.k < len(bank):
        raise UserError(f"-k {args.k}: must be from 1 to {len(bank) - 1}, as there are {len(bank)} images")
    queries = np.sort(np.random.default_rng(args.seed).permutation(len(bank))[: args.num])
    columns = [framed(_pictures(configs[0], bank, queries), [_WHITE] * len(queries))]
    lines = []
    for run, config in zip(args.runs, configs, strict=True):
        model, _ = load_models.load_encoder(run, config)
        features = extract_all(model, image_sets.open_loader(config, bank), None, args.pool)["features"]
        if len(features) < len(bank):
            raise UserError(f"{source.origin}: {len(bank) - len(features)} images cannot be read; leave them out")
        found = nearest(features, queries, args.k)
        same = bank.labels[found] == bank.labels[queries][:, None]
        for place in range(args.k):
            colours = [_WHITE if bank.labels[0] < 0 else _GREEN if hit else _RED for hit in same[:, place]]
            columns.append(framed(_pictures(configs[0], bank, found[:, place]), colours))
        everyone = nearest(features, np.arange(len(bank)), args.k)
        share = float((bank.labels[everyone] == bank.labels[:, None]).mean())
        what = f"of the {args.k} nearest of all {len(bank):,} have the image's class"
        if bank.labels[0] >= 0:
            lines.append(f"{Path(run).name}: {share:.1%} {what}")
    return columns, lines


def _pictures(config, source: sources.Source, indices: np.ndarray) -> np.ndarray:
    return drawing.as_uint8(drawing.to_pixels(config, drawing.load_images(config, source, indices)))


def main(argv: list[str] | None = None) -> Path:
    """Write the picture or the page, and return its path."""
    parser = Parser(prog="python -m tools.neighbours", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs, checkpoints, or weight files with their YAML")
    tool_flags.add_data_flags(parser)
    parser.add("num", "images whose neighbours are drawn (default: 8)", type=int, default=8)
    parser.add("k", "neighbours (default: 5)", type=int, default=5)
    parser.add("bank", "images among which they are, of all classes alike (default: 2000)", type=int, default=2000)
    parser.add("pool", "class token or mean of the patches, instead of what a classifier reads", choices=POOLS[:2])
    parser.add("seed", "chooses the images", type=tool_flags.natural, default=0)
    parser.add("out", ".png or .html file to write", default="neighbours.png")
    args = parser.parse_intermixed_args(argv)
    if args.num < 1 or args.bank < 2:
        raise UserError("-num must be at least 1, and -bank at least 2")
    given = [path for run in args.runs for path in tool_flags.list_inputs(args, run)]
    out = results.new_file(args.out, ".png", ".html", inputs=given)
    device.set_device()
    columns, lines = draw_neighbours(args)
    headings = ["image", *(f"{Path(run).name}: {place}" for run in args.runs for place in range(1, args.k + 1))]
    if out.suffix.lower() == ".png":
        with atomic.replacing(out) as temporary:
            short = ["image", *(str(place) for _ in args.runs for place in range(1, args.k + 1))]  # cells are narrow
            drawing.make_grid(columns, short, side_px=1).save(temporary, format="PNG")
    else:
        names = ", ".join(Path(run).name for run in args.runs)
        grid = html.html_grid(headings, columns) + html.html_paragraph("; ".join(lines))
        html.write_page(out, "Nearest neighbours", [(names, grid)])
    print("\n".join([*lines, f"wrote {out}"]))
    return out


if __name__ == "__main__":
    command_line.run(main)
