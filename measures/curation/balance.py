"""A choice of images that covers a set evenly: hierarchical k-means and sampling from the top (arXiv 2405.15613)."""

import numpy as np

_RESAMPLED, _MANY = 10, 100_000
_FEW, _STARTS = 500, 10  # points of which k-means has several starts: one often ends far from the best
_LEVELS = (3.3, 33.0, 333.0)  # images per cluster of each level: 30,000, 3,000 and 300 clusters of 100,000 in the paper


def balanced(features: np.ndarray, target: int, seed: int = 0) -> np.ndarray:
    """Choose images so that every region of feature space gives the same number, as far as it has them.

    Args:
        features: [N, D] of length 1.
        target: number of images.

    Returns:
        [target] indices, ascending; all N if there are no more.
    """
    if target >= len(features):
        return np.arange(len(features))
    rng = np.random.default_rng(seed)
    levels = hierarchy(features, [max(2, round(len(features) / size)) for size in _LEVELS], seed)
    return np.sort(_draw(np.arange(len(levels[-1][1])), levels, len(levels) - 1, target, rng))


def hierarchy(features: np.ndarray, counts: list[int], seed: int) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Cluster the images, then the centroids of the clusters, and so on.

    Args:
        counts: clusters of each level.

    Returns:
        for each level: the centroids, and the members of each: images at level 0, else clusters of the level below.
    """
    levels, points = [], np.asarray(features, np.float32)
    for level, count in enumerate(counts):
        count = min(count, len(points))
        centroids, owners = _cluster(points, count, seed)
        for number in range(_RESAMPLED if level else 0):
            chosen = _nearest_members(points, centroids, owners, max(1, len(points) // (2 * count)))
            centroids, _ = _cluster(points[chosen], min(count, len(chosen)), seed + 1 + number)
            owners = _owners(points, centroids)
        members = [np.flatnonzero(owners == cluster) for cluster in range(len(centroids))]
        levels.append((centroids, members))
        points = centroids
    return levels


def _cluster(points: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.cluster import KMeans, MiniBatchKMeans

    kind = KMeans if len(points) * count <= _MANY * 300 else MiniBatchKMeans
    fitted = kind(count, n_init=_STARTS if len(points) <= _FEW else 1, random_state=seed).fit(points)
    return fitted.cluster_centers_, fitted.labels_


def _owners(points: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return the nearest centroid of each point."""
    lengths = 0.5 * (centroids**2).sum(axis=1)
    parts = [points[first : first + 4096] @ centroids.T - lengths for first in range(0, len(points), 4096)]
    return np.concatenate([part.argmax(axis=1) for part in parts])


def _nearest_members(points: np.ndarray, centroids: np.ndarray, owners: np.ndarray, count: int) -> np.ndarray:
    """Return the points that are nearest to the centroids that own them, `count` of each."""
    distance = ((points - centroids[owners]) ** 2).sum(axis=1)
    order = np.lexsort((distance, owners))
    firsts = np.searchsorted(owners[order], np.arange(len(centroids)))
    rank = np.arange(len(order)) - firsts[owners[order]]
    return order[rank < count]


def _draw(
    clusters: np.ndarray, levels: list[tuple[np.ndarray, list[np.ndarray]]], level: int, target: int, rng
) -> np.ndarray:
    """Draw images from clusters of a level, the same number from each as far as it has them."""
    sizes = np.array([_size(levels, level, cluster) for cluster in clusters])
    found = []
    for cluster, share in zip(clusters.tolist(), shares(sizes, target, rng).tolist(), strict=True):
        members = levels[level][1][cluster]
        if share and level:
            found.append(_draw(members, levels, level - 1, share, rng))
        elif share:
            found.append(rng.permutation(members)[:share])
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _size(levels: list, level: int, cluster: int) -> int:
    members = levels[level][1][cluster]
    return sum(_size(levels, level - 1, member) for member in members) if level else len(members)


def shares(sizes: np.ndarray, target: int, rng) -> np.ndarray:
    """Return how many of `target` each group gives: the same number, or all it has; the rest is drawn.

    Args:
        sizes: [G] of the groups.
    """
    low, high = 0, int(sizes.max(initial=0))
    while low < high:  # the largest cap whose sum is not above the target
        cap = (low + high + 1) // 2
        low, high = (cap, high) if np.minimum(sizes, cap).sum() <= target else (low, cap - 1)
    given = np.minimum(sizes, low)
    rest = min(target - int(given.sum()), int((sizes > low).sum()))
    given[rng.permutation(np.flatnonzero(sizes > low))[:rest]] += 1
    return given
