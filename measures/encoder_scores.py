"""What the features of a frozen encoder are worth, by several measures at once."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from measures import few_shots, image_sets, patch_segmentation
from measures.attentive_fit import fit_best
from measures.extraction import Sink, extract, extract_all
from measures.layer_accuracy import POOLS, Row, features_of, measure_layers
from measures.linear_probe import probe_accuracy
from pipeline.loading import with_progress
from pipeline.sources import Source

_NEIGHBOURS = [1, 3, 10, 30]  # among which CAPI chooses
KNN, LINEAR, ATTENTIVE = "k-NN", "linear", "attentive (EP)"


class Figure(NamedTuple):
    """A measure of an encoder, in percent.

    Attributes:
        measure: what was measured.
        read: which of the encoder's outputs was read.
        values: one for each seed; one alone where nothing is random.
    """

    measure: str
    read: str
    values: list[float]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None for one value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.deviation is None else f" ± {self.deviation:.2f}")


def score_classes(
    model, config, train: Source, val: Source, seeds: Sequence[int], k: int, shots: Sequence[int], say: Callable
) -> tuple[list[Figure], list[Row]]:
    """Measure an encoder on labelled images; returns the figures, and the accuracies of each layer.

    Nothing is augmented, and the val split chooses nothing but the best layer, which is said.

    Args:
        model: encoder, in evaluation mode.
        seeds: of probes and of draws of images.
        k: neighbours.
        shots: images per class.
        say: gets a line for each figure.
    """
    layers, figures = range(1, len(model.encoder.layers) + 1), []
    say("features of all layers")
    features = [
        extract_all(model, image_sets.open_loader(config, source), layers, "cls+mean", norm=True)
        for source in (train, val)
    ]
    labels = [split["labels"] for split in features]
    rows = list(measure_layers(*features, k))
    (last,) = (row for row in rows if row["layer"] == str(layers[-1]))

    def add(*figure: object) -> None:
        figures.append(Figure(*figure))
        say(f"{figures[-1].measure}, {figures[-1].read}: {figures[-1]}")

    for pool, words in POOLS.items():
        add(KNN, words, [last[f"k-NN, {words}"]])
        own = [features_of(split, [layers[-1]], pool) for split in features]
        pairs = list(zip(own, labels, strict=True))
        add(LINEAR, words, [probe_accuracy(*pairs, seed) for seed in seeds])
        named = [{"features": values, "labels": own_labels} for values, own_labels in pairs]
        for count in shots:
            draws = [few_shots.draw(labels[0], count, seed) for seed in seeds]
            add(f"{count} per class", words, [few_shots.fit_and_score(named[0], chosen, named[1]) for chosen in draws])
    names = [f"linear, {words}" for words in POOLS.values()]
    best, name = max(((row, name) for row in rows for name in names), key=lambda pair: pair[0][pair[1]])
    add("linear, best on val", f"layer {best['layer']}, {name.partition(', ')[2]}", [best[name]])
    add(ATTENTIVE, "patches, before the last norm", _attentive(model, config, train, val, seeds))
    return figures, rows


def _attentive(model, config, train: Source, val: Source, seeds: Sequence[int]) -> list[float]:
    """Return the accuracy of efficient probing for each seed; the val split's tokens are never kept."""
    depth = len(model.encoder.layers)

    def patches(images):
        return extract(model, images, [depth], "tokens")[depth][:, 1:].astype("float32")

    sink = Sink(len(train))
    for batch in with_progress(image_sets.open_loader(config, train), len(train), "tokens"):
        sink.add(labels=batch.host_labels, tokens=patches(batch.images).numpy())
    kept = sink.finish()
    probes = [fit_best(kept["tokens"], kept["labels"], seed) for seed in seeds]
    right, total = np.zeros(len(seeds), np.int64), 0
    for batch in with_progress(image_sets.open_loader(config, val), len(val), "attentive probes"):
        tokens, total = patches(batch.images), total + len(batch.host_labels)
        right += [heads.count_right(tokens, batch.host_labels)[best] for heads, best in probes]
    return (100.0 * right / total).tolist()


def score_masks(
    model, config, train: Source, val: Source, seeds: Sequence[int], most: int, say: Callable
) -> list[Figure]:
    """Measure an encoder on images with masks: mIoU of patch k-NN after CAPI, and of a linear classifier of patches.

    Args:
        train, val: see `segmentation.open_splits`.
        seeds: of the images that choose the settings.
        most: training images.
        say: gets a line for each figure.
    """
    num_classes = train.count_classes()
    order = np.random.default_rng(0).permutation(len(train))[:most]
    say(f"patches of {len(order):,} images with masks of {num_classes} classes")
    patches = [
        patch_segmentation.read_patches(model, config, source, indices)
        for source, indices in ((train, order), (val, np.arange(len(val))))
    ]
    votes = [patch_segmentation.by_capi(*patches, _NEIGHBOURS, num_classes, seed) for seed in seeds]
    linear = [patch_segmentation.by_linear_classifier(*patches, num_classes, seed) for seed in seeds]
    figures = [
        Figure(measure, "patches", [scores["miou"] for scores in each])
        for measure, each in (("patch k-NN, mIoU", votes), ("linear segmentation, mIoU", linear))
    ]
    for figure in figures:
        say(f"{figure.measure}: {figure}")
    return figures
