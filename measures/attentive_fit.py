"""Attentive probes of tokens in memory or in mapped files: efficient probing, several learning rates at once."""

import math

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from layers.basic import Linear, ProbeNorm
from layers.poolers import EfficientPooling
from measures.linear_probe import hold_out

RATES = (0.0003, 0.001, 0.003, 0.01)
EPOCHS, _BATCH, _WARMUP = 20, 256, 0.1
_BETAS = (0.9, 0.95)
_MOST_QUERIES = 32  # as in the paper
_HEAD_STD = 0.01


def num_queries(width: int) -> int:
    """Return the number of queries for tokens of a width: 32, or the largest divisor of both."""
    return math.gcd(width, _MOST_QUERIES)


class AttentiveHeads:
    """Efficient probes (arXiv 2506.10178) of frozen tokens: a pooler, a batch norm and a linear layer for each rate.

    Args:
        width: D of the tokens.
        num_classes: K.
        num_heads: R.
    """

    def __init__(self, width: int, num_classes: int, num_heads: int):
        self.queries = num_queries(width)
        self.heads = [_new_head(width, self.queries, num_classes) for _ in range(num_heads)]

    def train(self, is_training: bool = True) -> None:
        """Let the batch norms use the statistics of their batch, or those that they keep."""
        for head in self.heads:
            head.train() if is_training else head.eval()

    @paddle.no_grad()
    def count_right(self, tokens: paddle.Tensor, labels: np.ndarray) -> np.ndarray:
        """Return how many images of a batch [B, N, D] each of the R probes gets right."""
        return np.array([(head(tokens).argmax(axis=-1).numpy() == labels).sum() for head in self.heads])


def _new_head(width: int, queries: int, num_classes: int) -> nn.Sequential:
    linear = Linear(width, num_classes)
    nn.initializer.Normal(std=_HEAD_STD)(linear.weight)
    nn.initializer.Constant(0.0)(linear.bias)
    return nn.Sequential(EfficientPooling(width, queries), ProbeNorm(width), linear)


def fit_attentive(
    tokens: np.ndarray,
    labels: np.ndarray,
    images: np.ndarray,
    rates: tuple[float, ...] = RATES,
    epochs: int = EPOCHS,
    seed: int = 0,
) -> AttentiveHeads:
    """Fit efficient probes by AdamW, without augmentation or weight decay.

    Rates rise over a tenth of the updates and fall to 0 along a cosine, as in CAPI's attentive probes; all probes see
    the same batches.

    Args:
        tokens: [M, N, D], in memory or mapped.
        labels: [M], from 0.
        images: indices of those to fit to.
        rates: learning rates for batches of 256 images.
        seed: of the first weights, and of the order of the images.
    """
    paddle.seed(seed)
    fitted = AttentiveHeads(tokens.shape[-1], int(labels.max()) + 1, len(rates))
    groups = [
        {"params": head.parameters(), "learning_rate": rate} for head, rate in zip(fitted.heads, rates, strict=True)
    ]
    optimizer = paddle.optimizer.AdamW(1.0, *_BETAS, parameters=groups, weight_decay=0.0)
    rng, num_batches, step = np.random.default_rng(seed), -(-len(images) // _BATCH), 0
    warmup = max(1.0, _WARMUP * epochs * num_batches)
    for _ in range(epochs):
        for chosen in np.array_split(rng.permutation(images), num_batches):
            progress = step / (epochs * num_batches)
            optimizer.set_lr(min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * progress)))
            rows = np.sort(chosen)  # ascending, for a mapped file
            target = paddle.to_tensor(labels[rows])
            given = paddle.to_tensor(tokens[rows])
            sum(F.cross_entropy(head(given), target) for head in fitted.heads).backward()
            optimizer.step()
            optimizer.clear_grad()
            step += 1
    return fitted


def fit_best(tokens: np.ndarray, labels: np.ndarray, seed: int) -> tuple[AttentiveHeads, int]:
    """Fit probes to nine tenths of the training images, and return them and the best one on the last tenth.

    Args:
        tokens: [M, N, D].
        labels: [M].
        seed: of that tenth, of the first weights, and of the order of the images.
    """
    held, fitted = hold_out(labels, seed)
    heads = fit_attentive(tokens, labels, fitted, seed=seed)
    heads.train(False)
    parts = np.array_split(held, -(-len(held) // _BATCH))
    right = sum(heads.count_right(paddle.to_tensor(tokens[part]), labels[part]) for part in parts)
    return heads, int(np.argmax(right))
