"""Linear CKA of layers, distance and entropy of attention, and the spectrum of features, in NumPy."""

import numpy as np


class MinibatchCKA:
    """Linear CKA between two sets of layers, from batches (Nguyen et al., arXiv 2010.15327).

    Sums the unbiased estimate of HSIC (Song et al., 2012) over batches of the same images; only the sums are kept, so
    any number of images will do. A batch needs at least 4 images.

    Args:
        num_first, num_second: layers of the two sets.
    """

    def __init__(self, num_first: int, num_second: int):
        self._cross = np.zeros((num_first, num_second))
        self._first, self._second = np.zeros(num_first), np.zeros(num_second)

    def add(self, first: list[np.ndarray], second: list[np.ndarray]) -> None:
        """Add a batch: features [B, ...] of each layer."""
        firsts, seconds = ([_gram(features) for features in layers] for layers in (first, second))
        for i, one in enumerate(firsts):
            self._first[i] += unbiased_hsic(one, one)
            for j, other in enumerate(seconds):
                self._cross[i, j] += unbiased_hsic(one, other)
        for j, other in enumerate(seconds):
            self._second[j] += unbiased_hsic(other, other)

    def matrix(self) -> np.ndarray:
        """Return CKA [first, second]; 1 for features that are equal up to rotation and scale, about 0 for unrelated."""
        return self._cross / np.sqrt(np.maximum(np.outer(self._first, self._second), 1e-300))


def _gram(features: np.ndarray) -> np.ndarray:
    """Return the inner products of images, [B, B] in float64, with zeros on the diagonal."""
    flat = np.asarray(features, np.float64).reshape(len(features), -1)
    gram = flat @ flat.T
    np.fill_diagonal(gram, 0.0)
    return gram


def unbiased_hsic(first: np.ndarray, second: np.ndarray) -> float:
    """Estimate the Hilbert-Schmidt independence criterion of Gram matrices [B, B] with zero diagonals, B >= 4."""
    count = len(first)
    if count < 4:
        raise ValueError(f"a batch of {count} images: the unbiased estimate needs at least 4")
    sums = first.sum(axis=0), second.sum(axis=0)
    value = (first * second).sum() + sums[0].sum() * sums[1].sum() / ((count - 1) * (count - 2))
    return (value - 2.0 / (count - 2) * sums[0] @ sums[1]) / (count * (count - 3))


def patch_attention(logits: np.ndarray) -> np.ndarray:
    """Return the attention among patches, [B, A, N, N] in float64: a softmax without the class token."""
    scores = np.asarray(logits, np.float64)[:, :, 1:, 1:]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention_entropy(weights: np.ndarray) -> np.ndarray:
    """Return the mean entropy of attention [B, A, N, N] per head, in nats; log N where it is even."""
    logs = np.log(np.maximum(weights, 1e-300))
    return -(weights * logs).sum(axis=-1).mean(axis=(0, 2))


def attention_distance(weights: np.ndarray, grid_hw: tuple[int, int], patch_px: int) -> np.ndarray:
    """Return the mean distance that attention [B, A, N, N] reaches per head, in pixels between patch centres."""
    rows, columns = np.mgrid[: grid_hw[0], : grid_hw[1]].reshape(2, -1) * float(patch_px)
    groups = weights.shape[-1] // len(rows)  # each group of channels has patches of its own
    rows, columns = np.tile(rows, groups), np.tile(columns, groups)
    distance = np.hypot(rows[:, None] - rows, columns[:, None] - columns)  # [N, N]
    return (weights * distance).sum(axis=-1).mean(axis=(0, 2))


class Spectrum:
    """Singular values of the centred features of many images, from sums over batches."""

    def __init__(self):
        self._count, self._sum, self._products = 0, 0.0, 0.0

    def add(self, features: np.ndarray) -> None:
        """Add a batch [B, D]."""
        features = np.asarray(features, np.float64)
        self._count += len(features)
        self._sum = self._sum + features.sum(axis=0)
        self._products = self._products + features.T @ features

    def values(self) -> np.ndarray:
        """Return the standard deviations along the principal axes, [D], the largest first."""
        mean = self._sum / self._count
        covariance = self._products / self._count - np.outer(mean, mean)
        return np.sqrt(np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0.0))


def effective_rank(deviations: np.ndarray) -> float:
    """Return the exponential of the entropy of a spectrum (Roy and Vetterli, 2007): how many directions are used."""
    shares = deviations / max(deviations.sum(), 1e-300)
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
