"""Cross-entropy that is exact for logits of any size.

Paddle's own on CPU takes the logarithm of a probability below exp(-64) for -64, so its losses end there; gradients do
not. And its softmax over an axis that is not the last one, or is longer than 256, takes 10 to 30 times as long.
"""

import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer


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


class _PixelCrossEntropy(PyLayer):
    """Keeps the logits alone for the backward pass, where the softmax is computed again."""

    @staticmethod
    def forward(ctx, logits, labels):
        highest = logits.max(axis=1, keepdim=True)
        total = (logits - highest).exp_().sum(axis=1, keepdim=True).log_().add_(highest)
        ctx.save_for_backward(logits, labels, total)
        return (total - paddle.take_along_axis(logits, labels.unsqueeze(1), axis=1)).squeeze(1)

    @staticmethod
    def backward(ctx, grad):
        logits, labels, total = ctx.saved_tensor()
        place, grad = labels.unsqueeze(1), grad.unsqueeze(1)
        to_logits = (logits - total).exp_().multiply_(grad.expand(logits.shape))
        at_label = paddle.take_along_axis(to_logits, place, axis=1) - grad
        return paddle.put_along_axis(to_logits, place, at_label, 1), None


def pixel_cross_entropy(logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
    """Return -log softmax of logits [B, K, H, W] at labels [B, H, W], in float32."""
    return _PixelCrossEntropy.apply(logits, labels)


def mean_cross_entropy(logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
    """Return the mean over the batch of Paddle's own cross-entropy of logits [B, K] at labels [B]."""
    if paddle.__version__.startswith("2."):  # its F.cross_entropy looks at the labels, which waits for a GPU
        return F.softmax_with_cross_entropy(logits, labels.unsqueeze(-1)).mean()
    return F.cross_entropy(logits, labels)
