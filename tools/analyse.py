"""Analyse encoders: reach and entropy of attention, similarity of layers (CKA), and the spectrum of the features.

    python -m tools.analyse RUN [RUN ...] -out DIRECTORY [-num 1024] [-seed 0] [-data_path DIR] [-split val]

Writes analysis.json and report.html. For each RUN, a run or a weight file: box plots over the heads of each layer, a
heat map of linear CKA among its layers, and the spectrum of its features; for each two, CKA of their layers on equal
images. Images are drawn at random, as many of each class. Distances are in pixels between patch centres, entropies in
nats; attention to and from the class token is left out, as in Wang et al. (arXiv 2205.14443). CKA compares all patch
tokens that each block is given, after its norm, and those of the last one's output.
"""

import runtime

runtime.prepare()

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import paddle

from arguments import Parser
from errors import UserError
from launch import command_line, tool_flags
from measures import image_sets
from measures.attention import attention_logits
from measures.layer_measures import (
    MinibatchCKA,
    Spectrum,
    attention_distance,
    attention_entropy,
    effective_rank,
    patch_attention,
)
from methods import load_models
from pages import html, plots
from pages.curves import html_charts
from pipeline.wrapped_sources import Subset
from storage import atomic, results
from training import device

_FILES = ("analysis.json", "report.html")
_SMALLEST_BATCH = 4  # images that the unbiased estimate needs


@paddle.no_grad()
def layer_features(model, images: paddle.Tensor) -> list[np.ndarray]:
    """Return the patch tokens [B, N, D] that each block reads after its norm, and the normalised ones of the end."""
    encoder = model.encoder
    steps = list(encoder.walk(model.embed(images)))
    read = [layer.attn_norm(tokens) for layer, (tokens, _, _) in zip(encoder.layers, steps, strict=True)]
    norm = encoder.norm if encoder.norm is not None else model.encoder_norm
    return [tokens[:, 1:].astype("float32").numpy() for tokens in (*read, norm(steps[-1][1]))]


class _Measures:
    """Sums over batches for one encoder."""

    def __init__(self, model):
        self.model, self.patch = model, model.patch_embedding
        depth, heads = len(model.encoder.layers), model.encoder.layers[0].attn.num_heads
        self.distance, self.entropy, self.num_images = np.zeros((depth, heads)), np.zeros((depth, heads)), 0
        self.spectrum = Spectrum()

    @paddle.no_grad()
    def add(self, images: paddle.Tensor) -> list[np.ndarray]:
        """Add a batch, and return its `layer_features`."""
        for index, logits in enumerate(attention_logits(self.model, images)):
            weights = patch_attention(logits.numpy())
            reach = attention_distance(weights, self.patch.grid_hw, self.patch.patch_size)
            self.distance[index] += len(images) * reach
            self.entropy[index] += len(images) * attention_entropy(weights)
        self.spectrum.add(self.model.forward_features(images).astype("float32").numpy())
        self.num_images += len(images)
        return layer_features(self.model, images)

    def result(self) -> dict[str, np.ndarray]:
        """Return the means, and the spectrum."""
        means = {"distance": self.distance / self.num_images, "entropy": self.entropy / self.num_images}
        return means | {"spectrum": self.spectrum.values(), "images": np.array(self.num_images)}


def analyse(models: list, loader) -> tuple[list[dict[str, np.ndarray]], dict[tuple[int, int], np.ndarray]]:
    """Compute everything in one pass over the images.

    Args:
        models: encoders for the same images.

    Returns:
        For each, `distance` and `entropy` [layers, heads], `spectrum` [D], `images`: how many were used; those that do
        not fill the last batch may be left out. And CKA by the numbers of two encoders, [layers + 1, layers + 1].
    """
    measures = [_Measures(model) for model in models]
    pairs = list(itertools.combinations_with_replacement(range(len(models)), 2))
    layers = [len(model.encoder.layers) + 1 for model in models]
    similarity = {(own, other): MinibatchCKA(layers[own], layers[other]) for own, other in pairs}
    for images in (batch.images for batch in loader):
        if len(images) < _SMALLEST_BATCH:  # the rest of the set
            continue
        features = [measure.add(images) for measure in measures]
        for own, other in pairs:
            similarity[own, other].add(features[own], features[other])
    if measures[0].num_images == 0:
        raise UserError(f"{loader.source.origin}: at least {_SMALLEST_BATCH} images are needed")
    return [measure.result() for measure in measures], {pair: cka.matrix() for pair, cka in similarity.items()}


def write_report(
    out: Path, runs: list[str], analyses: list[dict], similarity: dict[tuple[int, int], np.ndarray]
) -> None:
    """Write analysis.json and report.html."""
    names, entries, sections = _short_names(runs), [], []
    for number, (run, found) in enumerate(zip(runs, analyses, strict=True)):
        rank, cka = effective_rank(found["spectrum"]), similarity[number, number]
        values = {key: value.tolist() for key, value in found.items()}
        entries.append({"run": run, **values, "cka": cka.tolist(), "effective_rank": rank})
        boxes = plots.draw_boxes(
            [
                ("How far attention reaches", "distance (pixels)", found["distance"]),
                ("How even it is", "entropy (nats)", found["entropy"]),
            ],
            "layer",
        )
        about = (
            f"Each box: the heads of a layer. Effective rank of the features: {rank:.1f} of {len(found['spectrum'])}."
        )
        sections.append((names[number], html.html_figure(boxes, about) + _heat_map(cka, "layer", "layer")))
    for (own, other), cka in similarity.items():
        if own != other:
            sections.append((f"{names[own]} and {names[other]}", _heat_map(cka, names[own], names[other])))
    curves = {}
    for name, found in zip(names, analyses, strict=True):
        spectrum = found["spectrum"] / found["spectrum"][0]
        curves[name] = [(index, value) for index, value in enumerate(spectrum, start=1) if value > 1e-6]
    chart = html_charts(
        [("Deviation / the largest, of what a classifier reads", curves)], "direction", logarithmic=True
    )
    sections.append(("Spectrum of the features", chart))
    pairs = [{"runs": list(pair), "cka": cka.tolist()} for pair, cka in similarity.items() if pair[0] != pair[1]]
    results.claim(out, _FILES)
    atomic.write_text(out / "analysis.json", json.dumps({"runs": entries, "pairs": pairs}, indent=1))
    title = f"Analysis of {', '.join(names)}, {analyses[0]['images']:,} images"
    html.write_page(out / "report.html", title, sections)


def _short_names(runs: list[str]) -> list[str]:
    """Return the last part of each path, and its number where two are equal."""
    names = [Path(run).name for run in runs]
    return [f"{name} ({place})" if names.count(name) > 1 else name for place, name in enumerate(names, start=1)]


def _heat_map(values: np.ndarray, rows: str, columns: str) -> str:
    picture = plots.draw_matrix(
        values, range(values.shape[0]), range(values.shape[1]), labels=(rows, columns), limits=(0.0, 1.0)
    )
    return html.html_figure(picture, "Linear CKA; 0: what the first block reads, last: what the encoder puts out.")


def main(argv: list[str] | None = None) -> tuple[list[dict[str, np.ndarray]], dict[tuple[int, int], np.ndarray]]:
    """Write the results, and return the numbers; see `analyse`."""
    parser = Parser(prog="python -m tools.analyse", description=__doc__)
    parser.add_argument(
        "run", nargs="+", help="runs, checkpoint directories, or weight files with their YAML beside them"
    )
    tool_flags.add_data_flags(parser)
    parser.add("with", "one more RUN", dest="other", metavar="RUN")
    parser.add("num", "images (default: 1024)", type=int, default=1024)
    parser.add("seed", "of the choice of images", type=tool_flags.natural, default=0)
    parser.add("out", "directory for the results", required=True, metavar="DIR")
    args = parser.parse_args(argv)
    if args.num < _SMALLEST_BATCH or args.batch_size < _SMALLEST_BATCH:
        raise UserError(f"-num and -batch_size must be at least {_SMALLEST_BATCH}")
    runs = [*args.run, *([args.other] if args.other else [])]
    out = results.new_directory(args.out, runs, writes=_FILES)
    device.set_device()
    loaded = []
    for run in runs:
        own = argparse.Namespace(**{**vars(args), "run": run})
        loaded.append(load_models.load_encoder(run, tool_flags.read_config(own)))
        if image_sets.image_format(loaded[-1][1]) != image_sets.image_format(loaded[0][1]):
            raise UserError(f"{run}: its images have another size or normalisation than {runs[0]}'s")
    config = loaded[0][1]
    source = image_sets.open_any_images(config, args.split)
    chosen = Subset(source, image_sets.choose_balanced(source.labels, args.num, args.seed))
    found, similarity = analyse([model for model, _ in loaded], image_sets.open_loader(config, chosen))
    write_report(out, runs, found, similarity)
    print(f"wrote {out / 'analysis.json'} and {out / 'report.html'}")
    return found, similarity


if __name__ == "__main__":
    command_line.run(main)
