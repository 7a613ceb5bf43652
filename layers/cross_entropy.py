"""Cross-entropy that is exact for logits of any size.

Paddle's own on CPU takes the logarithm of a probability below exp(-64) for -64, so its losses end there; gradients do
not.
"""

import paddle
import paddle.nn.functional as F


def log_total(logits: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Return log(sum(exp(logits - highest))) and the highest logit of each row of [B, K], both [B, 1].

    Differences to the highest logit keep their digits where logits are large.
    """
    highest = logits.max(axis=-1, keepdim=True).detach()
    return (logits - highest).exp().sum(axis=-1, keepdim=True).log(), highest


def cross_entropy(logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
    """Return -log softmax of logits [B, K] at labels [B], [B]."""
    total, highest = log_total(logits)
    at_label = paddle.take_along_axis(logits, labels.unsqueeze(-1), axis=-1)  # [B, 1]
    return (total - (at_label - highest)).squeeze(-1)


def mean_cross_entropy(logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
    """Return the mean over the batch of Paddle's own cross-entropy of logits [B, K] at labels [B]."""
    if paddle.__version__.startswith("2."):  # its F.cross_entropy looks at the labels, which waits for a GPU
        return F.softmax_with_cross_entropy(logits, labels.unsqueeze(-1)).mean()
    return F.cross_entropy(logits, labels)
