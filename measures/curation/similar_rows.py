"""Rows of large arrays that are alike: all pairs above a cosine, and the nearest of each row.

Up to `EXACT` rows, each is compared with all. More are dealt to about sqrt(N) lists by k-means, and each is compared
with the rows of the lists whose centroids are nearest to it: the work grows with N^1.5, and some pairs are missed;
`agreement` says how many.
"""

from collections.abc import Iterator

import numpy as np

EXACT = 40_000  # rows
_LISTS_SEARCHED, _TRAIN_ROWS = 8, 100  # lists that a row is compared with; rows per list that k-means sees
_ROWS = 1024  # compared at a time
_ASSIGN_ROWS = 16_384
_NOTHING = np.float32(-2.0)  # below every cosine
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
            lists = self._nearest_lists(unit, 1)[:, 0]
            self._order = np.argsort(lists, kind="stable")
            self._bounds = np.searchsorted(lists[self._order], np.arange(len(self._centroids) + 1))

    def __len__(self) -> int:
        return len(self.unit)

    def blocks(self, queries: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (places [Q] in the queries, places [C] in the rows, cosines [Q, C]); a query may come several times.

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
        lists = self._nearest_lists(own, _LISTS_SEARCHED).ravel()
        order = np.argsort(lists, kind="stable")
        bounds = np.searchsorted(lists[order], np.arange(len(self._centroids) + 1))
        for number in range(len(self._centroids)):
            places = order[bounds[number] : bounds[number + 1]] // _LISTS_SEARCHED
            members = self._order[self._bounds[number] : self._bounds[number + 1]]
            rows = np.asarray(self.unit[members], np.float32)
            for first in range(0, len(places) if len(members) else 0, _ROWS):
                part = places[first : first + _ROWS]
                yield part, members, np.asarray(own[part], np.float32) @ rows.T

    def _nearest_lists(self, rows: np.ndarray, count: int) -> np.ndarray:
        """Return the lists with the likest centroids, in any order, [N, count] int32."""
        found = np.empty((len(rows), count), np.int32)
        for first in range(0, len(rows), _ASSIGN_ROWS):
            likeness = np.asarray(rows[first : first + _ASSIGN_ROWS], np.float32) @ self._centroids.T
            found[first : first + _ASSIGN_ROWS] = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
        return found


def _centroids(unit: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    count = int(np.sqrt(len(unit)))
    seen = np.sort(np.random.default_rng(seed).permutation(len(unit))[: count * _TRAIN_ROWS])
    fitted = MiniBatchKMeans(count, n_init=1, random_state=seed, batch_size=4096, max_iter=20)
    centroids = fitted.fit(np.asarray(unit[seen], np.float32)).cluster_centers_
    return centroids / np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)


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
    places, values = np.full((total, count), -1, np.int64), np.full((total, count), _NOTHING, np.float32)
    for own, members, cosines in rows.blocks(queries):
        cosines[left_out[own][:, None] == members[None]] = _NOTHING
        places[own], values[own] = _merge(places[own], values[own], members, cosines)
    places[values == _NOTHING] = -1
    return places, values


def _merge(
    places: np.ndarray, values: np.ndarray, members: np.ndarray, cosines: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best of those that are known, [Q, k], and of others, [Q, C], best first, then the smaller place."""
    count = values.shape[1]
    if cosines.shape[1] > count:
        best = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        members, cosines = members[best], np.take_along_axis(cosines, best, axis=1)
    places = np.concatenate([places, np.broadcast_to(members, cosines.shape)], axis=1)
    values = np.concatenate([values, cosines], axis=1)
    order = np.lexsort((places, -values), axis=1)[:, :count]
    return np.take_along_axis(places, order, axis=1), np.take_along_axis(values, order, axis=1)


def agreement(rows: Rows, found: np.ndarray, num_tried: int = 256, seed: int = 0) -> float:
    """Return the share of the true nearest rows that `nearest` found, [N, count], for some rows at random."""
    if rows.is_exact:
        return 1.0
    tried = np.sort(np.random.default_rng(seed).permutation(len(rows))[:num_tried])
    queries, shape = np.asarray(rows.unit[tried], np.float32), (len(tried), found.shape[1])
    true, values = np.full(shape, -1, np.int64), np.full(shape, _NOTHING, np.float32)
    for first in range(0, len(rows), _ASSIGN_ROWS):
        cosines = queries @ np.asarray(rows.unit[first : first + _ASSIGN_ROWS], np.float32).T
        members = np.arange(first, first + cosines.shape[1])
        cosines[tried[:, None] == members[None]] = _NOTHING
        true, values = _merge(true, values, members, cosines)
    hits = [len(np.intersect1d(own, best)) for own, best in zip(found[tried], true, strict=True)]
    return float(np.mean(hits)) / found.shape[1]
