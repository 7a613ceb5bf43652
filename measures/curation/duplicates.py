"""Copies of images: candidates that look alike, verified by alignment, and grouped.

Images are numbered over all splits together.
"""

from typing import NamedTuple

import numpy as np

from measures.curation import alignment, thumbnails
from measures.curation.similar_rows import Rows, nearest, pairs_above, unique_pairs
from pipeline.workers import WorkerPool

NEAR, CANDIDATES = 0.9, 5  # cosine of thumbnails; likest images that are looked at whatever their cosine
_PARTNERS = 10  # likest images above NEAR that are looked at, so that sets of one kind of image take no hours
MOST_WITH_WINDOWS = 20_000  # images; more windows than 14 times that take hours to compare
KINDS = ("file", "pixels", "near", "crop")
_WHOLE = 0.97  # share of the area from which on a match is of the whole image
_SMOOTH, _OTHER_COLOUR = 8.0, 12.0  # grey levels: deviation of a thumbnail; difference of the mean colours
_JOB = 64  # pairs
_LEAST_PX = 20  # least side of what two images share, in the pixels of either
_VERIFIED = np.dtype([("correlation", np.float32), ("scale", np.float32), ("is_second_smaller", np.bool_)])


class Pairs(NamedTuple):
    """Pairs of images that look alike.

    Attributes:
        images: [P, 2], the smaller number first.
        is_mirrored: [P] bool, the second one is the mirror image.
        cosine: [P] float32, of the descriptors that found the pair.
        correlation: [P] float32, of the aligned images; 1 for equal pixels.
        scale: [P] float32, share of the larger image that both show.
        kind: [P] int, a place in `KINDS`; -1: only similar.
    """

    images: np.ndarray
    is_mirrored: np.ndarray
    cosine: np.ndarray
    correlation: np.ndarray
    scale: np.ndarray
    kind: np.ndarray

    def take(self, chosen: np.ndarray) -> "Pairs":
        """Return some of the pairs."""
        return Pairs(*(array[chosen] for array in self))


def find(
    facts: np.ndarray, features: np.ndarray | None, near: float, same: float, num_workers: int
) -> tuple[Pairs, list[str]]:
    """Return the pairs of images that are copies or similar, and notes on what was not looked at.

    Equal images are paired with the first of them only.

    Args:
        facts: [N] of `image_facts.FACTS`, of images that can be read.
        features: [N, D] of length 1, of an encoder; None: candidates are found by thumbnails alone.
        near: cosine of thumbnails from which on a pair is looked at.
        same: correlation from which on it shows the same pixels.
    """
    equal = [_equal(facts[name], kind) for kind, name in enumerate(("file", "pixels"))]
    firsts, own = _first_of(facts["pixels"])
    chosen = np.flatnonzero(firsts == own)
    greys = facts["grey"][chosen]
    images, is_mirrored, cosine, notes = _candidates(greys, None if features is None else features[chosen], near)
    shapes = facts["width"][chosen] / facts["height"][chosen].astype(np.float64)
    found = verify(greys, shapes, images, is_mirrored, num_workers)
    is_whole = found["scale"] >= _WHOLE
    contrast = np.array([grey.std() for grey in greys])
    is_smooth = contrast[images].min(axis=1) < _SMOOTH
    colours = np.abs(np.diff(facts["colour"][chosen][images], axis=1)).max(axis=(1, 2))
    sides = np.minimum(facts["width"], facts["height"])[chosen][images].astype(np.float64)
    small, large = np.where(found["is_second_smaller"], sides[:, ::-1].T, sides.T)
    is_large = is_whole | (np.minimum(small, np.sqrt(found["scale"]) * large) >= _LEAST_PX)
    is_copy = (found["correlation"] >= same) & is_large & ~(is_smooth & (colours > _OTHER_COLOUR))
    kind = np.where(is_copy, np.where(is_whole, KINDS.index("near"), KINDS.index("crop")), -1)
    alike = Pairs(chosen[images], is_mirrored, cosine, found["correlation"], found["scale"], kind)
    alike = alike.take((kind >= 0) | (cosine >= near))
    joined = Pairs(*(np.concatenate(arrays) for arrays in zip(*equal, alike, strict=True)))
    looseness = np.where(joined.kind < 0, len(KINDS), joined.kind)
    joined = joined.take(np.lexsort((looseness, joined.images[:, 1], joined.images[:, 0])))
    is_first = np.ones(len(joined.kind), bool)  # two images of one file have equal pixels, too
    is_first[1:] = (np.diff(joined.images, axis=0) != 0).any(axis=1)
    return joined.take(is_first), notes


def _first_of(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first image with the same key as each, and each itself, both [N]."""
    rows = np.ascontiguousarray(keys).view(f"V{keys.shape[1]}").ravel()
    _, firsts, places = np.unique(rows, return_index=True, return_inverse=True)
    return firsts[places.ravel()], np.arange(len(keys))


def _equal(keys: np.ndarray, kind: int) -> Pairs:
    """Pair images of equal keys [N, bytes] with the first of them; zeros do not count."""
    firsts, own = _first_of(keys)
    again = np.flatnonzero((firsts != own) & keys.any(axis=1))
    ones = np.ones(len(again), np.float32)
    images = np.stack([firsts[again], again], axis=1)
    return Pairs(images, np.zeros(len(again), bool), ones, ones, ones, np.full(len(again), kind))


def _candidates(
    greys: np.ndarray, features: np.ndarray | None, near: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Return pairs [P, 2] that may be copies, which of them are mirrored, their cosines, and notes."""
    upright = Rows(thumbnails.whole(greys))
    mirrored = thumbnails.whole(greys, mirrored=True)
    found, notes, looked_from = {}, [], near
    for is_mirrored, queries in ((False, None), (True, mirrored)):
        *alike, lowest = pairs_above(upright, near, queries)
        found[is_mirrored], looked_from = [_likest(*alike)], max(looked_from, lowest)
    if looked_from > near:
        notes.append(f"more pairs are alike than can be looked at: those from a cosine of {looked_from:.4f} on were")
    if len(greys) <= MOST_WITH_WINDOWS:
        bank = thumbnails.windows(greys)
        for is_mirrored, queries in ((False, upright.unit), (True, mirrored)):
            found[is_mirrored].append(_by_windows(bank, queries))
    else:
        limit = f"which takes hours for more than {MOST_WITH_WINDOWS:,} images"
        notes.append(f"crops were not looked for by windows, {limit}")
    if features is not None:
        places, cosines = nearest(Rows(features), CANDIDATES)
        for pairs in found.values():
            pairs.append(_as_pairs(places, cosines))
    images, flags, cosine = [], [], []
    for is_mirrored, parts in found.items():
        own, values = unique_pairs(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        images, flags, cosine = [*images, own], [*flags, np.full(len(own), is_mirrored)], [*cosine, values]
    return np.concatenate(images), np.concatenate(flags), np.concatenate(cosine), notes


def _likest(pairs: np.ndarray, cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs [P, 2] that are among the `_PARTNERS` likest of either image."""
    numbers, rows = pairs.T.ravel(), np.tile(np.arange(len(pairs)), 2)
    order = np.lexsort((rows, -cosines[rows], numbers))
    firsts = np.searchsorted(numbers[order], numbers[order])
    chosen = np.unique(rows[order[np.arange(len(order)) - firsts < _PARTNERS]])
    return pairs[chosen], cosines[chosen]


def _by_windows(bank: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair each image, a row of the queries, with those of which a window [N, 14, D] is most like the whole of it."""
    count = min(CANDIDATES, len(bank) - 1)
    places, values = np.empty((len(bank), count), np.int64), np.empty((len(bank), count), np.float32)
    for first in range(0, len(bank), _JOB):
        block = queries[first : first + _JOB]
        cosines = (block @ bank.reshape(-1, bank.shape[2]).T).reshape(len(block), *bank.shape[:2]).max(axis=2)
        cosines[np.arange(len(block)), first + np.arange(len(block))] = -2.0
        best = np.argpartition(-cosines, max(0, count - 1), axis=1)[:, :count]
        places[first : first + _JOB] = best
        values[first : first + _JOB] = np.take_along_axis(cosines, best, axis=1)
    return _as_pairs(places, values)


def _as_pairs(places: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return neighbours [N, k] as pairs [P, 2] with their cosines."""
    pairs = np.stack([np.repeat(np.arange(len(places)), places.shape[1]), places.ravel()], axis=1)
    is_there = places.ravel() >= 0
    return pairs[is_there], values.ravel()[is_there]


def verify(
    greys: np.ndarray, shapes: np.ndarray, images: np.ndarray, is_mirrored: np.ndarray, num_workers: int
) -> np.ndarray:
    """Align the images of each pair, in worker processes.

    Args:
        greys: [N, GREY_PX, GREY_PX].
        shapes: [N] width by height.
        images, is_mirrored: of P pairs.

    Returns:
        the `alignment.Match` of each pair, [P].
    """

    def fill(job: range, out: np.ndarray) -> None:
        for row, number in enumerate(job):
            one, two = images[number]
            other = greys[two][:, ::-1] if is_mirrored[number] else greys[two]
            match = alignment.align(greys[one], other, (shapes[one], shapes[two]))
            out[row] = match

    found = np.zeros(len(images), _VERIFIED)
    pool = WorkerPool(fill, num_workers, (_JOB,), _VERIFIED)
    jobs = [range(first, min(first + _JOB, len(images))) for first in range(0, len(images), _JOB)]
    try:
        for job, (values, _) in zip(jobs, pool.run(jobs), strict=True):
            found[job.start : job.stop] = values[: len(job)]
    finally:
        pool.close()
    return found


def groups(pairs: Pairs, num_images: int) -> np.ndarray:
    """Return the group of each image, [N]: the smallest number of an image that copies connect it with."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, two = pairs.images[pairs.kind >= 0].T
    graph = coo_array((np.ones(len(one), np.int8), (one, two)), shape=(num_images, num_images))
    _, component = connected_components(graph, directed=False)
    firsts = np.full(component.max(initial=0) + 1, num_images)
    np.minimum.at(firsts, component, np.arange(num_images))
    return firsts[component]
