"""The head of NNCLR (arXiv 2104.14548), as MAE-CT has it (arXiv 2304.10520, Sec. 3)."""

import dataclasses
from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import nn

from errors import UserError
from layers.across_ranks import gather
from layers.heads import feature_std, mlp_head
from layers.momentum import copy_weights, follow
from methods.info_nce import info_nce


@dataclasses.dataclass(frozen=True)
class HeadOutput:
    """What the head makes of a batch; scalars, float32.

    Attributes:
        loss: mean of the two parts.
        loss_parts: of the prediction of view 0 for the neighbour of view 1, and the other way round.
        nn_accuracy: share of the images whose neighbour has their label; None without labels.
        queue_fill: share of the queue that holds projections of images.
        projection_std: `heads.feature_std` of the projections of view 0.
    """

    loss: paddle.Tensor
    loss_parts: tuple[paddle.Tensor, paddle.Tensor]
    nn_accuracy: paddle.Tensor | None
    queue_fill: paddle.Tensor
    projection_std: paddle.Tensor


class NNCLRHead(nn.Layer):
    """Projector, predictor, and the queue of projections in which neighbours are looked up.

    Args:
        in_dim: width of the features.
        projector_dims: widths of the projector's layers; the last one is that of the projections, d.
        predictor_dim: hidden width of the predictor.
        queue_size: Q, images whose projections are kept, first in, first out.
        temperature: of the softmax over similarities.
        topk: a neighbour is drawn evenly among the `topk` most similar ones; 0 takes the most similar one.
        momentum: of an averaged copy of the projector, which then makes the projections that are looked up and kept;
            None: the projector makes them itself.
    """

    def __init__(
        self,
        in_dim: int,
        projector_dims: Sequence[int] = (2048, 2048, 256),
        predictor_dim: int = 4096,
        queue_size: int = 65536,
        temperature: float = 0.15,
        topk: int = 0,
        momentum: float | None = None,
    ):
        super().__init__()
        if topk > queue_size:
            raise UserError(f"CONTRAST.TOPK={topk}: exceeds CONTRAST.QUEUE_SIZE={queue_size}")
        self.temperature, self.topk, self.momentum = temperature, topk, momentum
        dims, width = (in_dim, *projector_dims), projector_dims[-1]
        self.projector = mlp_head(dims, norm_at_end=True)
        self.predictor = mlp_head((width, predictor_dim, width), norm_at_end=False)
        if momentum is not None:
            self.target_projector = mlp_head(dims, norm_at_end=True)
            for parameter in self.target_projector.parameters():
                parameter.stop_gradient = True
            self.copy_target()
        self.register_buffer("queue", F.normalize(paddle.randn([queue_size, width])))
        self.register_buffer("queue_y", paddle.full([queue_size], -1, "int64"))
        self.register_buffer("queue_id", paddle.full([queue_size], -1, "int64"))
        self.register_buffer("queue_ptr", paddle.zeros([1], "int64"))

    def forward(
        self,
        view0: paddle.Tensor,
        view1: paddle.Tensor,
        ids: paddle.Tensor,
        labels: paddle.Tensor | None = None,
        draws: paddle.Tensor | None = None,
    ) -> HeadOutput:
        """Compute the loss of a batch; while training, then put the projections of view 0 into the queue.

        Args:
            view0: features [B, in_dim].
            view1: features [B, in_dim] of the same images.
            ids: [B] int64, which image each is; an image is not its own neighbour.
            labels: [B] int64, for `nn_accuracy` only; -1: unknown.
            draws: [2, B] int64, which of the `topk` neighbours to take for each view; drawn if None.
        """
        projections, predictions, neighbours, places = [], [], [], []
        for number, features in enumerate((view0, view1)):
            own, projected = self._project(features)
            with paddle.amp.auto_cast(enable=False):
                projections.append(F.normalize(projected.astype("float32")))
            predicted = self.predictor(own)
            with paddle.amp.auto_cast(enable=False):
                predictions.append(F.normalize(predicted.astype("float32")))
            places.append(self._find(projections[number], ids, None if draws is None else draws[number]))
            neighbours.append(paddle.gather(self.queue, places[number]))
        parts = (
            info_nce(neighbours[1], predictions[0], self.temperature),
            info_nce(neighbours[0], predictions[1], self.temperature),
        )
        loss = (parts[0] + parts[1]) / 2
        with paddle.no_grad():
            accuracy = None
            if labels is not None:
                accuracy = (paddle.gather(self.queue_y, places[0]) == labels).astype("float32").mean()
            fill = (self.queue_id >= 0).astype("float32").mean()
            if self.training:
                self._enqueue(projections[0], ids, labels)
        return HeadOutput(loss, parts, accuracy, fill, feature_std(projections[0]))

    def _project(self, features: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Return the projector's output, and the projections [B, d] that are looked up and kept, without gradient."""
        own = self.projector(features)
        if self.momentum is None:
            return own, own.detach()
        with paddle.no_grad():
            return own, self.target_projector(features)

    @paddle.no_grad()
    def _find(self, projections: paddle.Tensor, ids: paddle.Tensor, draws: paddle.Tensor | None) -> paddle.Tensor:
        """Return the places [B] in the queue of a neighbour of each projection [B, d]."""
        with paddle.amp.auto_cast(enable=False):
            similarity = paddle.matmul(projections, self.queue, transpose_y=True)  # [B, Q]
            is_own = ids.unsqueeze(1) == self.queue_id.unsqueeze(0)
            similarity = paddle.where(is_own, paddle.full([1], -1.0), similarity)
        if self.topk == 0:
            return similarity.argmax(axis=1)
        if draws is None:
            draws = paddle.randint(0, self.topk, [len(ids)], "int64")
        best = paddle.topk(similarity, self.topk, axis=1)[1]  # [B, K]
        return paddle.take_along_axis(best, draws.unsqueeze(1), 1).squeeze(1)

    @paddle.no_grad()
    def _enqueue(self, projections: paddle.Tensor, ids: paddle.Tensor, labels: paddle.Tensor | None) -> None:
        """Put the projections of all ranks into the queue, in the order of ranks; the oldest ones go."""
        labels = paddle.full_like(ids, -1) if labels is None else labels
        projections, ids, labels = gather(projections), gather(ids), gather(labels)
        size, count = len(self.queue), len(ids)
        if count > size:  # only the last ones would stay
            projections, ids, labels = projections[count - size :], ids[count - size :], labels[count - size :]
        skipped = max(0, count - size)
        places = (paddle.arange(len(ids), dtype="int64") + self.queue_ptr + skipped) % size
        is_good = projections.isfinite().all()  # over all ranks, so they agree
        for buffer, rows in ((self.queue, projections), (self.queue_id, ids), (self.queue_y, labels)):
            rows = paddle.where(is_good, rows, paddle.gather(buffer, places))
            paddle.assign(paddle.scatter(buffer, places, rows), buffer)
        paddle.assign(paddle.where(is_good, (self.queue_ptr + count) % size, self.queue_ptr), self.queue_ptr)

    def copy_target(self) -> None:
        """Make the averaged projector equal to the projector."""
        if self.momentum is not None:
            copy_weights(self.target_projector, self.projector)

    @paddle.no_grad()
    def update_target(self) -> None:
        """Move the averaged projector towards the projector; running statistics of batch norms are copied."""
        if self.momentum is None:
            return
        follow(self.target_projector, self.projector, self.momentum)
        statistics = dict(self.projector.named_buffers())
        for name, value in self.target_projector.named_buffers():
            paddle.assign(statistics[name], value)
