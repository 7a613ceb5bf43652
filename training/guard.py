"""Numbers that are not finite, and requests to stop or save: all ranks act on them at the same update."""

import dataclasses
import json
import math
import time

import numpy as np
import paddle

from errors import UserError
from pipeline.loading import Loader
from storage import atomic
from training import distributed
from training.stop import StopRequest
from training.task import Run

_SETTLE_SECS = 5.0


@dataclasses.dataclass(frozen=True)
class _Update:
    """One update, noted when it is launched; its numbers may not have been computed yet on the device."""

    step: int  # updates done with it
    number: int  # in the epoch
    lr: float
    num_images: int  # of this rank
    loss_sum: paddle.Tensor
    part_sums: dict[str, paddle.Tensor]
    norm: paddle.Tensor


class Guard:
    """Watches loss and gradient norm of every update; all ranks take the same decision.

    If a number is infinite or not a number, TRAIN.NONFINITE "stop" ends the run, and "skip" leaves the update out, at
    most TRAIN.MAX_SKIPS in a row. With fp16 the loss scaler leaves updates out by itself when the
    scale is too large for the gradients; those are no errors.

    Reading a number makes the host wait for a GPU. So with "stop" on a GPU numbers are read at `settle` only: before
    every report and every checkpoint, when a single process is asked to stop, and every five seconds or so where ranks
    must agree on it. A run with bad numbers ends some updates late, and its checkpoints are good.

    Attributes:
        stops: a rank was asked to stop.
        wants_save: SAVE_EVERY_MINUTES have passed on a rank.
    """

    def __init__(self, run: Run, loader: Loader, has_scaler: bool, stop: StopRequest, defers: bool):
        self._run, self._config, self._loader, self._stop = run, run.config, loader, stop
        self._has_scaler = has_scaler
        self._defers = defers and run.config.TRAIN.NONFINITE == "stop"
        self._pending: list[_Update] = []
        self._sums, self._num_images, self._norm = {}, 0, 0.0
        self._skipped = 0
        self._saved_at = self._settled_at = time.monotonic()
        self._settle_every = 1  # updates; of several ranks
        self.stops = self.wants_save = False

    def note_save(self) -> None:
        """Count SAVE_EVERY_MINUTES from now."""
        self._saved_at, self.wants_save = time.monotonic(), False

    def admits(
        self,
        loss_sum: paddle.Tensor,
        num_images: int,
        norm: paddle.Tensor,
        update: int,
        step: int,
        lr: float,
        part_sums: dict[str, paddle.Tensor],
    ) -> bool:
        """Return True if an update may be made; all ranks get the same answer.

        Args:
            loss_sum: over this rank's images.
            num_images: of this rank.
            norm: of the gradient.
            update: of the epoch.
            step: updates done before.
            part_sums: over this rank's images, of what the task logs beside the loss.

        Raises:
            UserError: on all ranks, if the run must not go on.
        """
        self._pending.append(_Update(step + 1, update, lr, num_images, loss_sum, part_sums, norm))
        if distributed.world_size() == 1:
            is_time = self._stop.requested or self._is_time_to_save()
        else:  # all ranks must settle at the same updates, so none can by its own clock
            is_time = len(self._pending) >= self._settle_every
        return True if self._defers and not is_time else self.settle()

    def _is_time_to_save(self) -> bool:
        minutes = self._config.SAVE_EVERY_MINUTES
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def settle(self) -> bool:
        """Read the numbers of the updates since the last call, and decide with the other ranks; see `admits`."""
        updates, self._pending = self._pending, []
        if not updates:
            return True
        losses, norms = (
            paddle.stack([getattr(update, name) for update in updates]).numpy() for name in ("loss_sum", "norm")
        )
        names = list(updates[0].part_sums)
        parts = np.zeros((0, len(updates)), np.float32)  # [parts, updates]
        if names:
            rows = [paddle.stack([update.part_sums[name] for update in updates]) for name in names]
            parts = paddle.stack(rows).numpy()
        is_bad = ~np.isfinite(losses) | (~np.isfinite(norms) & (not self._has_scaler))
        first_bad = np.zeros(distributed.world_size())  # of each rank, counted from 1; 0: none
        first_bad[distributed.rank()] = is_bad.argmax() + 1 if is_bad.any() else 0
        now = time.monotonic()
        secs, self._settled_at = now - self._settled_at, now
        num_images = sum(update.num_images for update in updates)
        sums = [losses[~is_bad].sum(dtype=np.float64), *parts[:, ~is_bad].sum(axis=1, dtype=np.float64)]
        asked = (self._stop.requested, self._is_time_to_save())
        own = np.array([*asked, sums[0], num_images, secs, *first_bad, *sums[1:]], np.float64)
        total = distributed.sum_across_ranks(own)
        secs_per_update = total[4] / distributed.world_size() / len(updates)
        self._settle_every = max(1, int(_SETTLE_SECS / max(secs_per_update, 1e-3)))
        self.stops, self.wants_save = bool(total[0]), bool(total[1])
        first_bad = total[5 : 5 + distributed.world_size()].astype(int)
        if not first_bad.any():
            for name, value in zip(("loss", *names), (total[2], *total[5 + distributed.world_size() :]), strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + value
            self._num_images += int(total[3])
            self._norm, self._skipped = float(norms[-1]), 0
            return True
        index = first_bad[first_bad > 0].min() - 1
        bad_ranks = [int(rank) for rank in np.flatnonzero(first_bad == index + 1)]
        self._handle(updates[index], bad_ranks, losses[index], norms[index])
        return False

    def _handle(self, update: _Update, bad_ranks: list[int], loss: float, norm: float) -> None:
        """Stop the run or leave a bad update out, by TRAIN.NONFINITE."""
        self._skipped += 1
        file = self._describe(update, bad_ranks, loss, norm)
        what = f"loss or gradient is not finite at update {update.step} on ranks {bad_ranks}, lr {update.lr:.3g}"
        advice = "Lower TRAIN.BASE_LR, set TRAIN.GRAD_CLIP, or use bf16 or float32 instead of fp16"
        if self._config.TRAIN.NONFINITE == "stop":
            raise UserError(f"{what}; the images are listed in {file}; checkpoints up to now are intact. {advice}")
        if self._skipped > self._config.TRAIN.MAX_SKIPS:
            raise UserError(f"{what}, and at the {self._skipped - 1} updates before; see {file}. {advice}")
        self._run.log.say(f"warning: {what}; the update is left out; the images are listed in {file}")

    def pop(self) -> tuple[dict[str, float], float]:
        """Return means over the images since the last call, of loss and parts by name, and the last gradient norm."""
        means = {name: value / self._num_images for name, value in self._sums.items()} if self._num_images else {}
        self._sums, self._num_images = {}, 0
        return {"loss": math.nan} | means, self._norm

    def _describe(self, update: _Update, bad_ranks: list[int], loss: float, norm: float) -> str:
        """Write step, numbers and images of a bad update into the run directory; returns the file's name."""
        name = f"nonfinite-{update.step:08d}.json"
        if self._run.directory is not None:
            source, sampler = self._loader.source, self._loader.sampler
            images = {
                rank: [source.describe(index) for index in sampler.indices(update.number, rank)] for rank in bad_ranks
            }
            values = {
                "step": update.step,
                "lr": update.lr,
                "ranks": bad_ranks,
                "loss": str(loss),
                "grad_norm": str(norm),
            }
            text = json.dumps({**values, "images": images}, indent=1)
            atomic.write_text(self._run.directory / name, text)
        return name
