"""A map of a set: two coordinates for each image, and clusters to colour it by."""

import numpy as np

from measures.curation import similar_rows

MAPS = ("tsne", "pca")
_PCA_WIDTH, _MOST_TSNE, _NEIGHBOURS, _PERPLEXITY = 50, 5000, 5, 30
_CLUSTERS = 20


def coordinates(vectors: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """Return a place for each image, [N, 2], from 0 to 1.

    By t-SNE of the first 50 principal components, of at most 5,000 images at random; the others are put at the mean of
    the 5 nearest of these. By "pca", the first two components.

    Args:
        vectors: [N, D] of length 1.
    """
    reduced = _principal(vectors)
    if kind == "tsne" and len(reduced) > _NEIGHBOURS:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(reduced))[:_MOST_TSNE])
        placed = _tsne(reduced[chosen], seed)
        found = np.empty((len(reduced), 2))
        found[chosen] = placed
        others = np.setdiff1d(np.arange(len(reduced)), chosen)
        if len(others):
            nothing = np.full(len(others), -1)
            near, _ = similar_rows.nearest(similar_rows.Rows(vectors[chosen]), _NEIGHBOURS, vectors[others], nothing)
            found[others] = placed[near].mean(axis=1)
    else:
        found = reduced[:, :2] if reduced.shape[1] > 1 else np.zeros((len(reduced), 2))
    low, span = found.min(axis=0), np.ptp(found, axis=0)
    return (found - low) / np.where(span > 0, span, 1.0)


def _principal(vectors: np.ndarray) -> np.ndarray:
    """Return the first principal components of each row, whose signs are those of their largest weights."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((vectors.shape[1],) * 2)
    for first in range(0, len(vectors), similar_rows.EXACT):
        part = vectors[first : first + similar_rows.EXACT] - mean
        covariance += part.T @ part
    _, axes = np.linalg.eigh(covariance)
    axes = axes[:, ::-1][:, :_PCA_WIDTH]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    return ((vectors - mean) @ axes).astype(np.float32)


def _tsne(points: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, max(1, (len(points) - 1) // 3))
    is_spread = points.std(axis=0)[:2].min() > 0
    tsne = TSNE(perplexity=perplexity, init="pca" if is_spread else "random", random_state=seed)
    return tsne.fit_transform(points)


def clusters(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Return the cluster of each image, by k-means with at most 20 clusters, the largest first."""
    from sklearn.cluster import MiniBatchKMeans

    count = min(_CLUSTERS, len(np.unique(vectors, axis=0)))
    found = MiniBatchKMeans(count, n_init=1, random_state=seed).fit_predict(vectors)
    order = np.argsort(-np.bincount(found, minlength=count), kind="stable")
    return np.argsort(order)[found]
