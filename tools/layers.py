"""Read every layer of an encoder at once: k-NN and a linear probe on the features of each block.

    python -m tools.layers RUN [-data_path DIR] [-k 20] [-cache DIR] [-out DIR]

One pass over the images gives the class token and the mean of the patches of every block, with the encoder's last norm
behind them: the features of an encoder that ends there. A row of the table has their accuracies by k nearest
neighbours, and by a linear classifier that is fitted to the features as they are, without augmentation: its learning
rate is chosen on a tenth of the training images, and the val split chooses nothing but the row that is named in the
end. The last row has the last four blocks side by side. `-out` writes `layers.csv` and a page with the curves.

What is best for these features need not be best for the longer linear probe with augmentation: the command that is
printed runs that one.
"""

import runtime

runtime.prepare()

import csv
import io
from pathlib import Path

from arguments import Parser
from errors import UserError
from launch import command_line
from measures import feature_cache
from measures.layer_accuracy import POOLS, Row, measure_layers
from pages import html
from pages.curves import html_charts
from storage import atomic, results

_FILES = ("layers.csv", "report.html")


def _line(cells: list) -> str:
    return "  ".join(f"{cell:6.2f}" if isinstance(cell, float) else f"{cell:>6}" for cell in cells)


def advice(rows: list[Row], args) -> str:
    """Return which single layer and pool are best by each measure, and the command of the whole linear probe."""
    single = [row for row in rows if not str(row["layer"]).startswith("last")]
    depth, lines = len(single), []
    for measure in ("k-NN", "linear"):
        names = [f"{measure}, {words}" for words in POOLS.values()]
        row, name = max(((row, name) for row in single for name in names), key=lambda pair: pair[0][pair[1]])
        lines.append(f"{measure}: layer {row['layer']} of {depth}, {name.partition(', ')[2]}: {row[name]:.2f} %")
    options = (
        "" if row["layer"] == str(depth) else f" MODEL.ENCODER.DEPTH {row['layer']} MODEL.PRETRAINED_BLOCKS {depth}"
    )
    options += " MODEL.POOL_AFTER_NORM True" if name.endswith(POOLS["mean"]) else ""
    command = f"python main_multi_gpu_linearprobe.py -cfg CONFIG -pretrained {args.run}"
    return "\n".join([*lines, "to probe it: " + command + (f" -opts{options}" if options else "")])


def write_results(out: Path, rows: list[Row], said: str, title: str) -> None:
    """Write layers.csv, and the page with the table and the curves."""
    results.claim(out, _FILES)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic.write_text(out / _FILES[0], text.getvalue())
    single = [row for row in rows if str(row["layer"]).isdigit()]
    curves = {name: [(int(row["layer"]), row[name]) for row in single] for name in rows[0] if name != "layer"}
    table = html.html_table(list(rows[0]), [list(row.values()) for row in rows])
    sections = [
        ("Which layer", html.html_text(said)),
        ("Accuracy (%)", table),
        ("Curves", html_charts([("top-1 accuracy (%)", curves)], "layer")),
    ]
    html.write_page(out / _FILES[1], title, sections)


def main(argv: list[str] | None = None) -> list[Row]:
    """Print and return the table; see `measure_layers`."""
    parser = Parser(prog="python -m tools.layers", description=__doc__)
    feature_cache.add_feature_flags(parser)
    parser.add("k", "neighbours (default: 20)", type=int, default=20)
    parser.add("out", "directory for layers.csv and report.html", metavar="DIR")
    args = parser.parse_args(argv)
    if args.k < 1:
        raise UserError(f"-k {args.k}: must be at least 1")
    feature_cache.check_outputs(args)
    out = None if args.out is None else results.new_directory(args.out, [args.run], writes=_FILES)
    train, val = feature_cache.split_features(args, "train", "val", pool="cls+mean", all_layers=True, neighbours=args.k)
    print(_line(["layer", *(f"{m}, {pool}" for pool in POOLS for m in ("k-NN", "linear"))]))
    rows = []
    for row in measure_layers(train, val, args.k):
        rows.append(row)
        print(_line(list(row.values())), flush=True)
    said = advice(rows, args)
    print(said)
    title = f"Layers of {Path(args.run).name}: {len(val['labels']):,} images by {len(train['labels']):,}"
    if out is not None:
        write_results(out, rows, said, title)
        print(f"wrote {out / _FILES[0]} and {out / _FILES[1]}")
    feature_cache.write_json(args, rows)
    return rows


if __name__ == "__main__":
    command_line.run(main)
