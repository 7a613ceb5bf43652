"""Contrastive cross-entropy among the images of all ranks."""

import paddle

from layers.across_ranks import gather
from layers.cross_entropy import cross_entropy
from runtime import rank


def info_nce(anchors: paddle.Tensor, candidates: paddle.Tensor, temperature: float = 1.0) -> paddle.Tensor:
    """Return the mean over the anchors of -log softmax of the similarity with their own candidate, in float32.

    Args:
        anchors: [B, D] unit vectors of this rank.
        candidates: [B, D] unit vectors of this rank; those of all ranks are gathered, with gradients. Candidate i
            belongs to anchor i.
        temperature: divides the similarities.
    """
    with paddle.amp.auto_cast(enable=False):
        others = gather(candidates.astype("float32"))  # [R * B, D]
        logits = paddle.matmul(anchors.astype("float32"), others, transpose_y=True) / temperature
        labels = rank() * anchors.shape[0] + paddle.arange(anchors.shape[0], dtype="int64")
        return cross_entropy(logits, labels).mean()
