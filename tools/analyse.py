"""Analyse encoders: reach and entropy of attention, similarity of layers (CKA), and the spectrum of the features.

    python -m tools.analyse RUN -out DIRECTORY [-with OTHER] [-num 1024] [-seed 0] [-data_path DIR] [-split val]

Writes analysis.json and report.html with box plots over the heads of each layer, heat maps of linear CKA among the
layers of RUN, and against those of OTHER (another run or file, on the same images), and the spectra of features. Images
are drawn at random, as many of each class. Distances are in pixels between patch centres, entropies in nats; attention
to and from the class token is left out, as in Wang et al. (arXiv 2205.14443). CKA compares all patch tokens that each
block is given, after its norm, and those of the last one's output.
"""

import runtime

runtime.prepare()

import argparse
import json
from pathlib import Path

import numpy as np
import paddle

from arguments import Parser
from errors import UserError
from methods import networks
from pipeline import sources
from storage import atomic
from tools import inputs, pages, plots
from tools.attention import attention_logits
from tools.layer_measures import (
    MinibatchCKA,
    Spectrum,
    attention_distance,
    attention_entropy,
    effective_rank,
    patch_attention,
)
from training import cli, device

_SMALLEST_BATCH = 4  # of the unbiased estimate


@paddle.no_grad()
def layer_features(model, images: paddle.Tensor) -> list[np.ndarray]:
    """Return the patch tokens [B, N, D] that each block reads after its norm, and the normalised ones of the end."""
    encoder = model.encoder
    steps = list(encoder.walk(model.embed(images)))
    read = [layer.attn_norm(tokens) for layer, (tokens, _, _) in zip(encoder.layers, steps, strict=True)]
    norm = encoder.norm if encoder.norm is not None else model.encoder_norm
    return [tokens[:, 1:].astype("float32").numpy() for tokens in (*read, norm(steps[-1][1]))]


def analyse(model, other, loader) -> dict[str, np.ndarray]:
    """Compute everything in one pass over the images.

    Args:
        other: a second encoder for the same images, or None.

    Returns:
        `distance` and `entropy` [layers, heads], `cka` [layers + 1, layers + 1], `cka_other` if there is one,
        `spectrum` [D], `images`: how many were used; those that do not fill the last batch may be left out.
    """
    patch = model.patch_embedding
    depth, heads = len(model.encoder.layers), model.encoder.layers[0].attn.num_heads
    distance, entropy, num_images = np.zeros((depth, heads)), np.zeros((depth, heads)), 0
    own, spectrum = MinibatchCKA(depth + 1, depth + 1), Spectrum()
    cross = None if other is None else MinibatchCKA(depth + 1, len(other.encoder.layers) + 1)
    for images in (batch.images for batch in loader):
        if len(images) < _SMALLEST_BATCH:  # the rest of the set
            continue
        with paddle.no_grad():
            for index, logits in enumerate(attention_logits(model, images)):
                weights = patch_attention(logits.numpy())
                distance[index] += len(images) * attention_distance(weights, patch.grid_hw, patch.patch_size)
                entropy[index] += len(images) * attention_entropy(weights)
        layers = layer_features(model, images)
        own.add(layers, layers)
        if cross is not None:
            cross.add(layers, layer_features(other, images))
        with paddle.no_grad():
            spectrum.add(model.forward_features(images).astype("float32").numpy())
        num_images += len(images)
    if num_images == 0:
        raise UserError(f"{loader.source.origin}: at least {_SMALLEST_BATCH} images are needed")
    found = {"distance": distance / num_images, "entropy": entropy / num_images, "cka": own.matrix()}
    found["images"] = np.array(num_images)
    found |= {} if cross is None else {"cka_other": cross.matrix()}
    return found | {"spectrum": spectrum.values()}


def write_report(out: Path, names: tuple[str, str | None], found: dict[str, np.ndarray]) -> None:
    """Write analysis.json and report.html."""
    rank = effective_rank(found["spectrum"])
    data = {key: value.tolist() for key, value in found.items()}
    data |= {"run": names[0], "with": names[1], "effective_rank": rank}
    atomic.write_text(out / "analysis.json", json.dumps(data, indent=1))
    boxes = plots.draw_boxes(
        [
            ("How far attention reaches", "distance (pixels)", found["distance"]),
            ("How even it is", "entropy (nats)", found["entropy"]),
        ],
        "layer",
    )
    spectrum = found["spectrum"] / found["spectrum"][0]
    points = [(index, value) for index, value in enumerate(spectrum, start=1) if value > 1e-6]
    curve = plots.draw_curves([("Spectrum", "deviation / largest", {"": points})], "direction", logarithmic=True)
    sections = [
        ("Attention", pages.html_figure(boxes, "Each box: the heads of a layer.")),
        ("Layers against each other", _heat_map(found["cka"], "layer", "layer")),
        ("Spectrum of the features", pages.html_figure(curve, f"Effective rank {rank:.1f} of {len(spectrum)}.")),
    ]
    if names[1] is not None:
        picture = _heat_map(found["cka_other"], Path(names[0]).name, Path(names[1]).name)
        sections.insert(2, ("Layers against those of the other", picture))
    pages.write_page(out / "report.html", f"Analysis of {Path(names[0]).name}, {found['images']:,} images", sections)


def _heat_map(values: np.ndarray, rows: str, columns: str) -> str:
    picture = plots.draw_matrix(
        values, range(values.shape[0]), range(values.shape[1]), labels=(rows, columns), limits=(0.0, 1.0)
    )
    return pages.html_figure(picture, "Linear CKA; 0: what the first block reads, last: what the encoder puts out.")


def main(argv: list[str] | None = None) -> dict[str, np.ndarray]:
    """Write the results, and return the numbers."""
    parser = Parser(prog="python -m tools.analyse", description=__doc__)
    inputs.add_flags(parser)
    parser.add("with", "another run or weight file, to compare with", dest="other", metavar="RUN")
    parser.add("num", "images (default: 1024)", type=int, default=1024)
    parser.add("seed", "of the choice of images", type=inputs.natural, default=0)
    parser.add("out", "directory for the results", required=True, metavar="DIR")
    args = parser.parse_args(argv)
    if args.num < _SMALLEST_BATCH or args.batch_size < _SMALLEST_BATCH:
        raise UserError(f"-num and -batch_size must be at least {_SMALLEST_BATCH}")
    out = inputs.new_directory(args.out, [given for given in (args.run, args.other) if given])
    device.set_device()
    model, config = networks.load_encoder(args.run, inputs.read_config(args))
    other = None
    if args.other is not None:
        other_args = argparse.Namespace(**{**vars(args), "run": args.other})
        other, other_config = networks.load_encoder(args.other, inputs.read_config(other_args))
        if inputs.input_of(other_config) != inputs.input_of(config):
            raise UserError(f"-with {args.other}: its images have another size or normalisation than {args.run}'s")
    source = inputs.open_any_images(config, args.split)
    chosen = sources.Subset(source, inputs.choose_balanced(source.labels, args.num, args.seed))
    found = analyse(model, other, inputs.open_loader(config, chosen))
    write_report(out, (args.run, args.other), found)
    print(f"wrote {out / 'analysis.json'} and {out / 'report.html'}")
    return found


if __name__ == "__main__":
    cli.run(main)
