"""Time training or evaluation steps on a synthetic batch, without any input pipeline.

    python -m benchmarks.model -cfg configs/vit_base_patch16_224_pretrain.yaml -batch_size 8 [-eval] [-peer torch]

With `-peer torch`, transformers' model (ViTMAE, or ViT as a classifier; attention sdpa) does the same in a process of
its own, in turns with ours, and the ratio of the medians is printed: below 1, ours is faster.
"""

import runtime

runtime.prepare()

import sys

import cli
import flops
from architecture import of_config
from arguments import Parser
from benchmarks import measure
from config import get_config
from errors import UserError


def main(argv: list[str] | None = None) -> list[dict[str, object]]:
    """Measure, print, and return the rows."""
    parser = Parser(prog="python -m benchmarks.model", description=__doc__)
    parser.add("cfg", "YAML of the model and the mode", required=True, metavar="FILE")
    parser.add("batch_size", "images per step (default: 8)", type=int, default=8)
    parser.add("eval", "forward passes instead of training steps", action="store_true")
    parser.add("peer", "compare with it", choices=("torch",))
    parser.add("pairs", "turns of each side (default: 5)", type=int, default=5)
    parser.add("steps", "steps per turn (default: 2)", type=int, default=2)
    parser.add("json", "append the lines to this file", metavar="FILE")
    parser.add("opts", "KEY VALUE pairs", nargs="+", action="extend", default=[])
    args = parser.parse_args(argv)
    if min(args.batch_size, args.pairs, args.steps) < 1:
        raise UserError("-batch_size, -pairs and -steps must be at least 1")
    config = get_config(args.cfg, [*args.opts, "EVAL", args.eval])
    architecture, mask_ratio = of_config(config), config.MODEL.MASK_RATIO
    forward = 2 * flops.forward_macs(architecture, mask_ratio)
    count = forward if args.eval else flops.train_flops(architecture, mask_ratio)
    names = ["ours", "torch"] if args.peer else ["ours"]
    sides = [measure.Side(name, config, args.batch_size) for name in names]
    turns = measure.take_turns(sides, args.pairs, args.steps)
    rows = []
    for side in sides:
        numbers = measure.summarise(turns[side.name], args.batch_size)
        row = {"benchmark": "model", "side": side.name, "cfg": args.cfg, "step": "forward" if args.eval else "train"}
        row |= {"batch": args.batch_size, **numbers, "gflop_per_image": count / 1e9}
        row |= {"gflops": numbers["images_per_sec"] * count / 1e9, "peak_mb": side.peak_mb}
        if side.name != "ours":
            row |= {f"ours/{key}": value for key, value in measure.ratio(turns["ours"], turns[side.name]).items()}
        rows.append(row)
        side.close()
    measure.report(rows, args.json)
    return rows


if __name__ == "__main__":
    cli.run(lambda: sys.exit(0 if main() else 1))
