"""Judge encoders by their frozen features: neighbours, linear and attentive probes, few shots, layers, segmentation.

    python -m tools.judge RUN [RUN ...] [-data_path DIR] [-seeds 3] [-num 10000] [-masks scenes] [-out DIR]

Each encoder reads the same images, without augmentation: at most `-num` training images, of all classes alike, and the
whole val split. The table says what was read: the class token, the mean of the patches, or the patches. Probes have
their learning rate chosen on a tenth of the training images; their figures are means over `-seeds` seeds, with the
standard deviation. With `-masks NAME` (and `-masks_path DIR`), a data set with masks, also patch k-NN after CAPI and a
linear classifier of patches.

The figures compare encoders with each other. They are below those of the long probes with augmentation
(main_multi_gpu_linearprobe.py), which papers report.

`-out` gets judge.csv (a line for each figure), benchmark.csv (a line for each encoder, in the columns of the public
benchmark of efficient probing, arXiv 2506.10178) and report.html.
"""

import runtime

runtime.prepare()

import argparse
from pathlib import Path

from arguments import Parser
from config import image_size_hw, network_kind
from errors import UserError
from launch import command_line, tool_flags
from measures import few_shots, image_sets
from measures.attentive_fit import num_queries
from measures.encoder_scores import ATTENTIVE, KNN, LINEAR, Figure, score_classes, score_masks
from measures.layer_accuracy import POOLS, Row
from methods import load_models, segmentation
from pages import html, tables
from pages.curves import html_charts
from pipeline import mask_sets
from pipeline.sources import Source
from pipeline.wrapped_sources import Subset
from storage import results, weight_files
from training import device

_FILES = ("judge.csv", "benchmark.csv", "report.html")
# The columns of results.csv in the repository of efficient probing.
_BENCHMARK = """
family method arch pretrain eval image_size lp lp_gap ep ep_queries ep_variant model loader pretrain_tag finetune
lp_variant lp_log ep_log notes verified amp waiting gap_reason knn knn_k knn_T knn_log extra_flags ep_head
""".split()  # noqa: SIM905
_TEMPERATURE = 0.07
_MOST_SEEDS = 100


def _parse(argv: list[str] | None):
    parser = Parser(prog="python -m tools.judge", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs, checkpoints, or weight files with their YAML")
    tool_flags.add_data_flags(parser, split=None)
    parser.add("num", "training images at most, of all classes alike (default: 10000)", type=int, default=10000)
    parser.add("seeds", "of the probes and of the few images (default: 3)", type=int, default=3)
    parser.add("k", "neighbours (default: 20)", type=int, default=20)
    parser.add("shots", "images per class (default: 1 5)", type=int, nargs="+", default=[1, 5])
    parser.add("masks", f"data set with masks: {', '.join(mask_sets.NAMES)}", metavar="NAME")
    parser.add("masks_path", "directory of it", metavar="DIR")
    parser.add("out", "directory for judge.csv, benchmark.csv and report.html", metavar="DIR")
    args = parser.parse_intermixed_args(argv)
    if min(args.num, args.seeds, args.k, *args.shots) < 1:
        raise UserError("-num, -seeds, -k and -shots must be at least 1")
    if args.seeds > _MOST_SEEDS:
        raise UserError(f"-seeds {args.seeds}: at most {_MOST_SEEDS}")
    if len({weight_files.resolve(run).resolve() for run in args.runs}) < len(args.runs):
        raise UserError(f"{' '.join(args.runs)}: a run is named twice")
    if args.masks not in (None, *mask_sets.NAMES):
        raise UserError(f"-masks {args.masks}: must be one of {', '.join(mask_sets.NAMES)}")
    if args.masks_path is not None and (args.masks is None or not Path(args.masks_path).is_dir()):
        why = "needs -masks NAME, the kind of data set" if args.masks is None else "no such directory"
        raise UserError(f"-masks_path {args.masks_path}: {why}")
    return args


def _check_same_data(args) -> None:
    """Raise UserError unless all encoders read the same data set."""
    named = {}
    for run in args.runs:
        data = tool_flags.read_config(argparse.Namespace(**{**vars(args), "run": run})).DATA
        named[data.DATASET, data.DATA_PATH, data.TRAIN_LIST, data.VAL_LIST, data.VAL_FRACTION, data.VAL_SEED] = run
    if len(named) > 1:
        words = "; ".join(f"{run}: {dataset} {path}".rstrip() for (dataset, path, *_), run in named.items())
        raise UserError(f"the encoders were trained on other data ({words}); say which to read: -dataset, -data_path")


def _open(args, config) -> list[Source]:
    """Return the training images, of all classes alike, and the val split."""
    train, val = (image_sets.open_images(config, split) for split in ("train", "val"))
    for source in (train, val):
        if source.labels.min() < 0:
            raise UserError(f"{source.origin}: has images without labels")
    num_classes = train.count_classes()
    if args.num < 2 * num_classes:
        raise UserError(f"-num {args.num}: {train.origin} has {num_classes} classes, and each needs two images")
    train = Subset(train, image_sets.choose_balanced(train.labels, args.num, seed=0))
    if len(train) < args.k:
        raise UserError(f"-k {args.k}: there are {len(train):,} training images")
    for count in args.shots:
        few_shots.draw(train.labels, count, seed=0)  # says at once if there are too few images
    return [train, val]


def _open_masks(args) -> tuple[Source, Source]:
    words = ["DATA.DATASET", args.masks] + ([] if args.masks_path is None else ["DATA.DATA_PATH", args.masks_path])
    config = tool_flags.read_config(
        args, *words, "DATA.CLASS_NAMES", None, "DATA.TRAIN_LIST", None, "DATA.VAL_LIST", None
    )
    return segmentation.open_splits(config)


def judge(args, run: str) -> tuple[list[Figure], list[Row], list[str]]:
    """Return the figures of an encoder, the accuracies of its layers, and its cells of benchmark.csv."""
    args = argparse.Namespace(**{**vars(args), "run": run})
    model, config = load_models.load_encoder(run, tool_flags.read_config(args))
    seeds = range(args.seeds)

    def say(line: str) -> None:
        print(f"  {line}", flush=True)

    train, val = _open(args, config)
    masks = None if args.masks is None else _open_masks(args)
    print(f"{run}: {len(train):,} training and {len(val):,} val images", flush=True)
    by_masks = [] if masks is None else score_masks(model, config, *masks, seeds, args.num, say)
    figures, rows = score_classes(model, config, train, val, seeds, args.k, args.shots, say)
    figures += by_masks
    return figures, rows, _benchmark_cells(args, config, model, figures, len(train))


def _benchmark_cells(args, config, model, figures: list[Figure], num_images: int) -> list[str]:
    found = {(figure.measure, figure.read): f"{figure.mean:.2f}" for figure in figures}
    encoder, (height, width) = model.architecture.encoder, image_size_hw(config)
    is_mae = network_kind(config) == "autoencoder"
    token = POOLS["cls"]
    cells = {
        "family": "MIM" if is_mae else "",
        "method": "MAE" if is_mae else config.MODEL.TYPE,
        "arch": f"ViT-{encoder.width}x{encoder.depth}/{model.patch_embedding.patch_size}",
        "eval": config.DATA.DATASET,
        "image_size": height if height == width else f"{height}x{width}",
        "lp": found[LINEAR, token],
        "lp_gap": "no",
        "ep": next(value for (measure, _), value in found.items() if measure == ATTENTIVE),
        "ep_queries": num_queries(encoder.width),
        "ep_variant": "ep",
        "model": config.MODEL.NAME,
        "loader": "mae_paddle",
        "finetune": Path(args.run).name,
        "lp_variant": "cls",
        "notes": f"features of {num_images} training images without augmentation; means over {args.seeds} seeds",
        "verified": "no",
        "knn": found[KNN, token],
        "knn_k": args.k,
        "knn_T": _TEMPERATURE,
    }
    return [str(cells.get(column, "")) for column in _BENCHMARK]


def _write(out: Path, args, judged: dict[str, tuple[list[Figure], list[Row], list[str]]]) -> None:
    results.claim(out, _FILES)
    lines = [
        [run, figure.measure, figure.read, figure.mean, "" if figure.deviation is None else figure.deviation]
        + [" ".join(f"{value:.4f}" for value in figure.values)]
        for run, (figures, *_) in judged.items()
        for figure in figures
    ]
    tables.write_csv(out / _FILES[0], ["encoder", "measure", "read", "mean", "deviation", "values"], lines)
    tables.write_csv(out / _FILES[1], _BENCHMARK, [cells for *_, cells in judged.values()])
    names = [f"{measure}, {words}" for measure in ("k-NN", "linear") for words in POOLS.values()]
    charts = [
        (f"{name}: top-1 accuracy (%)", {run: _curve(rows, name) for run, (_, rows, _) in judged.items()})
        for name in names
    ]
    about = (
        f"The same images for each encoder, without augmentation: at most {args.num:,} for training. Accuracy or mIoU "
        f"in %; means over {args.seeds} seeds with their standard deviation. Rates were chosen on a tenth of the "
        "training images. Long probes with augmentation give more."
    )
    sections = [
        ("Figures", html.html_paragraph(about) + html.html_table(*table(judged))),
        ("Layers", html_charts(charts, "layer")),
    ]
    html.write_page(out / _FILES[2], "Frozen features", sections)
    print(f"wrote {', '.join(str(out / file) for file in _FILES)}")


def _curve(rows: list[Row], name: str) -> list[tuple[float, float]]:
    return [(int(row["layer"]), row[name]) for row in rows if str(row["layer"]).isdigit()]


def table(judged: dict[str, tuple[list[Figure], list[Row], list[str]]]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: a row for each measure, and a column for each encoder."""
    names = [Path(run).name for run in judged]
    header, rows = ["measure", "read", *(names if len(set(names)) == len(names) else judged)], {}
    for number, (figures, *_) in enumerate(judged.values()):
        for figure in figures:
            read = "" if figure.measure.endswith("best on val") else figure.read
            cells = rows.setdefault((figure.measure, read), [""] * len(judged))
            cells[number] = str(figure) + (f" ({figure.read})" if not read else "")
    return header, [[*key, *cells] for key, cells in rows.items()]


def main(argv: list[str] | None = None) -> dict[str, list[Figure]]:
    """Print the table, and return the figures of each encoder."""
    args = _parse(argv)
    out = None if args.out is None else results.new_directory(args.out, args.runs, writes=_FILES)
    _check_same_data(args)
    device.set_device()
    judged = {run: judge(args, run) for run in args.runs}
    header, rows = table(judged)
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if out is not None:
        _write(out, args, judged)
    return {run: figures for run, (figures, *_) in judged.items()}


if __name__ == "__main__":
    command_line.run(main)
