"""What may end a run early: numbers that are not finite, and signals. All ranks decide alike."""

import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable

import numpy as np
import paddle

import distributed
import output_files
from errors import UserError
from loading import Loader
from program import ENDING_SIGNALS
from task import Run

_SAME_SIGNAL_SECS = 2.0  # signals that follow each other so closely are one
_SETTLE_SECS = 5.0


class StopRequest:
    """Notes SIGTERM, SIGINT and SIGHUP while it is entered; the second one ends the process at once."""

    def __init__(self, say: Callable[[str], None]):
        self.requested, self._say, self._before, self._noted_at = False, say, {}, 0.0

    def __enter__(self) -> "StopRequest":
        for number in ENDING_SIGNALS:
            if signal.getsignal(number) == signal.SIG_IGN:  # nohup, or a job in a shell's background
                continue
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread, where Python allows no handler
                break
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        now = time.monotonic()
        if self.requested and now - self._noted_at > _SAME_SIGNAL_SECS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self.requested:
            return  # schedulers signal every process of a job, and so does the one that started this
        self.requested, self._noted_at = True, now
        self._say(
            f"{signal.Signals(number).name}: the run stops and saves after this update; once more stops it at once"
        )


@dataclasses.dataclass(frozen=True)
class _Update:
    """What is known of an update when it is launched; its numbers may still be under way on the device."""

    step: int  # updates done with it
    number: int  # in the epoch
    lr: float
    num_images: int  # of this rank
    loss_sum: paddle.Tensor
    norm: paddle.Tensor


class Guard:
    """Watches loss and gradient norm of every update, and lets all ranks agree on what must happen.

    TRAIN.NONFINITE says what happens where a number is infinite or not a number: "stop" ends the run, "skip" leaves
    the update out, at most TRAIN.MAX_SKIPS in a row. With fp16 the loss scaler leaves updates out by itself when the
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
        self._loss_sum, self._num_images, self._norm = 0.0, 0, 0.0
        self._skipped = 0
        self._saved_at = self._settled_at = time.monotonic()
        self._settle_every = 1  # updates; of several ranks
        self.stops = self.wants_save = False

    def note_save(self) -> None:
        """Count SAVE_EVERY_MINUTES from now."""
        self._saved_at, self.wants_save = time.monotonic(), False

    def passes(
        self, loss_sum: paddle.Tensor, num_images: int, norm: paddle.Tensor, update: int, step: int, lr: float
    ) -> bool:
        """Tell whether an update may be made; all ranks get the same answer.

        Args:
            loss_sum: over this rank's images.
            num_images: of this rank.
            norm: of the gradient.
            update: of the epoch.
            step: updates done before.

        Raises:
            UserError: on all ranks, if the run must not go on.
        """
        self._pending.append(_Update(step + 1, update, lr, num_images, loss_sum, norm))
        if distributed.world_size() == 1:
            is_time = self._stop.requested or self._is_late()
        else:  # all ranks must settle at the same updates, so none can by its own clock
            is_time = len(self._pending) >= self._settle_every
        return True if self._defers and not is_time else self.settle()

    def _is_late(self) -> bool:
        minutes = self._config.SAVE_EVERY_MINUTES
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def settle(self) -> bool:
        """Read the numbers of the updates since the last call, and agree with the other ranks; see `passes`."""
        updates, self._pending = self._pending, []
        if not updates:
            return True
        losses, norms = (
            paddle.stack([getattr(update, name) for update in updates]).numpy() for name in ("loss_sum", "norm")
        )
        is_bad = ~np.isfinite(losses) | (~np.isfinite(norms) & (not self._has_scaler))
        first_bad = np.zeros(distributed.world_size())  # of each rank, counted from 1; 0: none
        first_bad[distributed.rank()] = is_bad.argmax() + 1 if is_bad.any() else 0
        now = time.monotonic()
        secs, self._settled_at = now - self._settled_at, now
        loss_sum, num_images = losses[~is_bad].sum(dtype=np.float64), sum(update.num_images for update in updates)
        total = distributed.sum_across_ranks(
            np.array([self._stop.requested, self._is_late(), loss_sum, num_images, secs, *first_bad], np.float64)
        )
        secs_per_update = total[4] / distributed.world_size() / len(updates)
        self._settle_every = max(1, int(_SETTLE_SECS / max(secs_per_update, 1e-3)))
        self.stops, self.wants_save = bool(total[0]), bool(total[1])
        first_bad = total[5:].astype(int)
        if not first_bad.any():
            self._loss_sum += total[2]
            self._num_images += int(total[3])
            self._norm, self._skipped = float(norms[-1]), 0
            return True
        index = first_bad[first_bad > 0].min() - 1
        bad_ranks = [int(rank) for rank in np.flatnonzero(first_bad == index + 1)]
        self._handle(updates[index], bad_ranks, losses[index], norms[index])
        return False

    def _handle(self, update: _Update, bad_ranks: list[int], loss: float, norm: float) -> None:
        """Do what TRAIN.NONFINITE says about a bad update."""
        self._skipped += 1
        file = self._describe(update, bad_ranks, loss, norm)
        what = f"loss or gradient is not finite at update {update.step} on ranks {bad_ranks}, lr {update.lr:.3g}"
        advice = "Lower TRAIN.BASE_LR, set TRAIN.GRAD_CLIP, or use bf16 or float32 instead of fp16"
        if self._config.TRAIN.NONFINITE == "stop":
            raise UserError(f"{what}; the images are listed in {file}; checkpoints up to now are intact. {advice}")
        if self._skipped > self._config.TRAIN.MAX_SKIPS:
            raise UserError(f"{what}, and at the {self._skipped - 1} updates before; see {file}. {advice}")
        self._run.log.say(f"warning: {what}; the update is left out; the images are listed in {file}")

    def pop(self) -> tuple[float, float]:
        """Return the mean loss over the images since the last call, and the last gradient norm."""
        loss = self._loss_sum / self._num_images if self._num_images else math.nan
        self._loss_sum, self._num_images = 0.0, 0
        return loss, self._norm

    def _describe(self, update: _Update, bad_ranks: list[int], loss: float, norm: float) -> str:
        """Write what is known of a bad update into the run directory; returns the file's name."""
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
            output_files.write_text(self._run.directory / name, text)
        return name
