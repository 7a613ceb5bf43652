"""Compute features of images: of the whole encoder, or of any of its layers.

    python -m tools.features RUN -out FILE.npz [-data_path DIR] [-split val] [-pool cls] [-layers 6 12]
    python -m tools.features RUN -out DIRECTORY ...         # memory-mapped .npy files, for sets larger than memory

From Python:

    from measures.extraction import extract
    features = extract(model, images)                                 # [B, D], what a classifier reads
    layers = extract(model, images, layers=[6, 12], pool="tokens")    # {6: [B, T, D], 12: [B, T, D]}

Layer L is what the L-th block puts out, counted from 1 (-1: the last); no norm is applied. Without layers, features are
what the classifier reads: the normalised class token, or the normalised mean of the patches where the model was
finetuned with global pooling; `-pool cls`, `mean` and `tokens` choose among the normalised tokens of the last block.
"""

import runtime

runtime.prepare()

import json
from pathlib import Path

import numpy as np

from arguments import Parser
from launch import command_line, tool_flags
from measures import image_sets
from measures.extraction import ABOUT_FILE, POOLS, extract_all
from methods import load_models
from storage import atomic, results
from training import device


def main(argv: list[str] | None = None) -> Path:
    """Write the features, and return where."""
    parser = Parser(prog="python -m tools.features", description=__doc__)
    tool_flags.add_flags(parser)
    parser.add("layers", "blocks, counted from 1; -1 is the last", type=int, nargs="+", metavar="L")
    parser.add("pool", "class token, mean of the patches, or all tokens", choices=POOLS)
    parser.add("out", "a .npz file, or a directory for memory-mapped .npy files", required=True)
    args = parser.parse_args(argv)
    out = Path(args.out)
    given = tool_flags.list_inputs(args)
    out = results.new_file(out, ".npz", inputs=given) if out.suffix else results.new_directory(out, [args.run])
    device.set_device()
    model, config = load_models.load_encoder(args.run, tool_flags.read_config(args))
    source = image_sets.open_any_images(config, args.split)
    is_file = out.suffix.lower() == ".npz"
    loader = image_sets.open_loader(config, source)
    arrays = extract_all(model, loader, args.layers, args.pool, None if is_file else out)
    about = {"run": str(args.run), "split": args.split, "pool": args.pool, "layers": args.layers}
    if is_file:
        with atomic.replacing(out) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
    else:
        atomic.write_text(out / ABOUT_FILE, json.dumps(about, indent=1))
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    print(f"wrote {out}: {shapes}")
    return out


if __name__ == "__main__":
    command_line.run(main)
