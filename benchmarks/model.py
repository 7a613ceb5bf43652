"""Time training or evaluation steps on a synthetic batch, without any input pipeline.

    python -m benchmarks.model -cfg configs/vit_base_patch16_224_pretrain.yaml -batch_size 8 [-eval] [-peer torch]
    python -m benchmarks.model -cfg configs/vit_base_patch16_224_pretrain.yaml -vary MODEL.MASK_RATIO 0.5 0.75 0.9

With `-peer torch`, transformers' model (ViTMAE, or ViT as a classifier; attention sdpa) does the same in a process of
its own, in turns with ours, and the ratio of the medians is printed: below 1, ours is faster. With `-vary`, ours runs
with each value of a key, in turns, and the ratios are those to the first value; DATA.BATCH_SIZE varies the batch.
"""

import runtime

runtime.prepare()

import sys
from pathlib import Path

from arguments import Parser
from benchmarks import measure
from config import get_config, network_kind, replaced
from errors import UserError
from launch import command_line
from storage.architecture import CLASSIFIERS
from training import flops


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    """Measure, print, and return the rows."""
    parser = Parser(prog="python -m benchmarks.model", description=__doc__)
    parser.add("cfg", "YAML of the model and the mode", required=True, metavar="FILE")
    parser.add("batch_size", "images per step (default: 8)", type=int, default=8)
    parser.add("eval", "forward passes instead of training steps, of what has a classifier", action="store_true")
    parser.add("peer", "compare with it", choices=("torch",))
    parser.add("vary", "compare values of one key: KEY VALUE VALUE ...", nargs="+", metavar="WORD")
    parser.add("against", "compare with another recipe; views count as images", metavar="FILE")
    parser.add("pairs", "turns of each side (default: 5)", type=int, default=5)
    parser.add("steps", "steps per turn (default: 2)", type=int, default=2)
    parser.add("json", "append the lines to this file", metavar="FILE")
    parser.add("opts", "settings: KEY VALUE or KEY=VALUE", nargs="+", action="extend", default=[])
    args = parser.parse_args(argv)
    if min(args.batch_size, args.pairs, args.steps) < 1:
        raise UserError("-batch_size, -pairs and -steps must be at least 1")
    if args.vary and (args.peer or len(args.vary) < 2):
        raise UserError("-vary takes a key and at least one value, and goes without -peer")
    if args.against and (args.peer or args.vary):
        raise UserError("-against goes without -peer and -vary")
    variants = _variants(args)
    if not args.against:
        for config in variants.values():
            if config.EVAL and network_kind(config) == "encoder":
                raise UserError(f"-eval: MODEL.TYPE {config.MODEL.TYPE} has no classifier to time")
    first, *_ = variants
    sides = [measure.Side("ours", config, config.DATA.BATCH_SIZE, label) for label, config in variants.items()]
    if args.peer:
        variants[args.peer] = variants[first]
        sides.append(measure.Side(args.peer, variants[first], args.batch_size))
    turns = measure.take_turns(sides, args.pairs, args.steps)
    rows = []
    for side in sides:
        rows.append({"benchmark": "model", "side": side.name, "cfg": args.cfg, **_row(side, variants, turns)})
        if side.name != first:
            ratios = measure.ratio(*(turns[name] for name in ((first, side.name) if args.peer else (side.name, first))))
            rows[-1] |= {f"{'ours/' if args.peer else ''}{key}": value for key, value in ratios.items()}
        side.close()
    measure.report(rows, args.json)
    return rows


def _variants(args) -> dict[str, object]:
    """Return the configurations that our side runs, by label."""
    opts = ["DATA.BATCH_SIZE", args.batch_size, *args.opts, "EVAL", args.eval]
    if args.against:
        configs = {Path(file).stem: get_config(file, opts) for file in (args.against, args.cfg)}
        return {n: config if _has_head(config) else replaced(config, "EVAL", False) for n, config in configs.items()}
    if not args.vary:
        return {"ours": get_config(args.cfg, opts)}
    key, *values = args.vary
    return {f"{key} {value}": get_config(args.cfg, [*opts, key, value]) for value in values}


def _has_head(config) -> bool:
    return network_kind(config) in CLASSIFIERS


def _row(side: measure.Side, variants: dict[str, object], turns: dict) -> dict[str, object]:
    """Return the measurements of a side."""
    config, about = variants[side.name], dict(side.about)
    count = about.pop("flop_per_image")
    numbers = measure.summarise(turns[side.name], config.DATA.BATCH_SIZE)
    rate = numbers["images_per_sec"] * count
    row = {"step": "forward" if config.EVAL else "train", "batch": config.DATA.BATCH_SIZE, **numbers}
    row |= {"gflop_per_image": count / 1e9, "gflops": rate / 1e9, "peak_mb": side.peak_mb, **about}
    peak = flops.peak_flops(about["device"])
    return row if peak is None else row | {"mfu": rate / peak}


if __name__ == "__main__":
    command_line.run(lambda: sys.exit(0 if main() else 1))
