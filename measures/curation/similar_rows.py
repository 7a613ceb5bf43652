"""Rows of large arrays that are alike: all pairs above a cosine, and the nearest of each row.

Up to `EXACT` rows, each is compared with all. More are dealt to about sqrt(N) lists by k-means, and each is compared
with the rows of the nearest lists: the work grows with N^1.5, and some pairs are missed; `agreement` says how many.
"""

from collections.abc import Iterator

import numpy as np

EXACT = 40_000  # rows
_LISTS_SEARCHED, _TRAIN_ROWS = 8, 100  # lists that a row is compared with; rows per list that k-means sees
_ROWS = 1024  # compared at a time
_ASSIGN_ROWS = 16_384
MOST_PAIRS = 10_000_000


class Rows:
    """Rows of length 1 (or 0) that can be searched.

    Args:
        unit: [N, D]; float16 halves the memory.
        exact: compare each with all; None: where there are at most `EXACT`.
        seed: of k-means.
    """

    def __init__(self, unit: np.ndarray, exact: bool | None = None, seed: int = 0):
        self.unit = unit
        self.is_exact = len(unit) <= EXACT if exact is None else exact
        if not self.is_exact:
            self._centroids = _centroids(unit, seed)
            lists = self._lists_of(unit)
            self._order = np.argsort(lists, kind="stable")
            self._bounds = np.searchsorted(lists[self._order], np.arange(len(self._centroids) + 1))
            self._near = _nearest_lists(self._centroids)

    def __len__(self) -> int:
        return len(self.unit)

    def blocks(self, queries: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (places [Q] in the queries, places [C] in the rows, cosines [Q, C]).

        Args:
            queries: [M, D] of length 1; None: the rows themselves.
        """
        own = self.unit if queries is None else queries
        if self.is_exact:
            rows = np.asarray(self.unit, np.float32)
            for first in range(0, len(own), _ROWS):
                block = np.asarray(own[first : first + _ROWS], np.float32)
                yield np.arange(first, first + len(block)), np.arange(len(rows)), block @ rows.T
            return
        lists = self._lists_of(own)
        order = np.argsort(lists, kind="stable")
        bounds = np.searchsorted(lists[order], np.arange(len(self._centroids) + 1))
        for number in range(len(self._centroids)):
            places = order[bounds[number] : bounds[number + 1]]
            members = np.concatenate([self._members(other) for other in self._near[number]])
            rows = np.asarray(self.unit[members], np.float32)
            for first in range(0, len(places), _ROWS):
                part = places[first : first + _ROWS]
                yield part, members, np.asarray(own[part], np.float32) @ rows.T

    def _members(self, number: int) -> np.ndarray:
        return self._order[self._bounds[number] : self._bounds[number + 1]]

    def _lists_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the list of each row: that of the likest centroid."""
        found = [
            (np.asarray(rows[first : first + _ASSIGN_ROWS], np.float32) @ self._centroids.T).argmax(axis=1)
            for first in range(0, len(rows), _ASSIGN_ROWS)
        ]
        return np.concatenate(found)


def _centroids(unit: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    count = int(np.sqrt(len(unit)))
    seen = np.sort(np.random.default_rng(seed).permutation(len(unit))[: count * _TRAIN_ROWS])
    fitted = MiniBatchKMeans(count, n_init=1, random_state=seed, batch_size=4096, max_iter=20)
    centroids = fitted.fit(np.asarray(unit[seen], np.float32)).cluster_centers_
    return centroids / np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)


def _nearest_lists(centroids: np.ndarray) -> np.ndarray:
    """Return the lists that each list is compared with, itself first, [lists, n]."""
    likeness = centroids @ centroids.T
    np.fill_diagonal(likeness, np.inf)
    return np.argsort(-likeness, axis=1, kind="stable")[:, :_LISTS_SEARCHED]


def pairs_above(
    rows: Rows, threshold: float, queries: np.ndarray | None = None, most: int = MOST_PAIRS
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the pairs of rows whose cosine is above a threshold.

    Args:
        queries: [N, D], other descriptors of the same images (mirrored ones), which are compared with the rows.
        most: pairs; of more, the threshold goes up.

    Returns:
        pairs: [P, 2] int64, the smaller index first, sorted, each once.
        cosines: [P].
        threshold: that was used.
    """
    found, count = [], 0
    for places, members, cosines in rows.blocks(queries):
        one, two = np.nonzero(cosines > threshold)
        values, one, two = cosines[one, two], places[one], members[two]
        is_pair = one < two if queries is None and rows.is_exact else one != two
        found.append((one[is_pair], two[is_pair], values[is_pair]))
        count += int(is_pair.sum())
        if count > most:
            threshold = float(np.partition(np.concatenate([part[2] for part in found]), -most // 2)[-most // 2])
            found = [tuple(array[part[2] > threshold] for array in part) for part in found]
            count = sum(len(part[0]) for part in found)
    if not found:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32), threshold
    one, two, values = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return (*unique_pairs(np.stack([one, two], axis=1), values), threshold)


def unique_pairs(pairs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs [P, 2] with the smaller index first, sorted, each once with the largest of its values [P]."""
    pairs = np.sort(pairs, axis=1)
    order = np.lexsort((-values, pairs[:, 1], pairs[:, 0]))
    pairs, values = pairs[order], values[order]
    is_new = np.ones(len(pairs), bool)
    is_new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[is_new], values[is_new]


def nearest(
    rows: Rows, count: int, queries: np.ndarray | None = None, left_out: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest rows of each query: places [M, count], -1 where there are too few, and cosines, best first.

    Args:
        queries: [M, D]; None: the rows themselves.
        left_out: [M], a row that is not taken for each query; None: the one of its own number.
    """
    total = len(rows) if queries is None else len(queries)
    left_out = np.arange(total) if left_out is None else left_out
    places, values = np.full((total, count), -1, np.int64), np.full((total, count), -2.0, np.float32)
    for own, members, cosines in rows.blocks(queries):
        cosines = np.where(left_out[own][:, None] == members[None], -2.0, cosines)
        kept = min(count, cosines.shape[1])
        best = np.argpartition(-cosines, kept - 1, axis=1)[:, :kept]
        likeness = np.take_along_axis(cosines, best, axis=1)
        order = np.lexsort((members[best], -likeness), axis=1)
        values[own, :kept] = np.take_along_axis(likeness, order, axis=1)
        places[own, :kept] = members[np.take_along_axis(best, order, axis=1)]
    places[values < -1.5] = -1
    return places, values


def agreement(rows: Rows, found: np.ndarray, num_tried: int = 256, seed: int = 0) -> float:
    """Return the share of the true nearest rows that `nearest` found, [N, count], for some rows at random."""
    if rows.is_exact:
        return 1.0
    tried = np.sort(np.random.default_rng(seed).permutation(len(rows))[:num_tried])
    queries, count = np.asarray(rows.unit[tried], np.float32), found.shape[1]
    cosines = np.concatenate(
        [
            queries @ np.asarray(rows.unit[first : first + _ASSIGN_ROWS], np.float32).T
            for first in range(0, len(rows), _ASSIGN_ROWS)
        ],
        axis=1,
    )
    cosines[np.arange(len(tried)), tried] = -2.0
    true = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
    hits = [len(np.intersect1d(own, best)) for own, best in zip(found[tried], true, strict=True)]
    return float(np.mean(hits)) / count
