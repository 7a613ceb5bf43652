"""What may end a run early: numbers that are not finite, and signals. All ranks decide alike."""

import json
import math
import signal
import time
from collections.abc import Callable

import numpy as np
import paddle

import distributed
from errors import UserError
from loading import Loader
from task import Run

_SAME_SIGNAL_SECS = 2.0  # signals that follow each other so closely are one
EXIT_STOPPED = 75  # of a run that was asked to stop, saved, and can be resumed (EX_TEMPFAIL of sysexits.h)


class Stopped(SystemExit):
    """The run was asked to stop, and has saved its state; as an uncaught exception it exits with EXIT_STOPPED."""

    def __init__(self, message: str):
        super().__init__(EXIT_STOPPED)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopRequest:
    """Notes SIGTERM and SIGINT while it is entered; the second one ends the process at once."""

    def __init__(self, say: Callable[[str], None]):
        self.requested, self._say, self._before, self._noted_at = False, say, {}, 0.0

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
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


class Guard:
    """Watches loss and gradient norm of every update, and adds up what reports show.

    TRAIN.NONFINITE says what happens where a number is infinite or not a number: "stop" ends the run, "skip" leaves
    the update out, at most TRAIN.MAX_SKIPS in a row. With fp16 the loss scaler leaves updates out by itself when the
    scale is too large for the gradients; those are no errors.
    """

    def __init__(self, run: Run, loader: Loader, has_scaler: bool, stop: StopRequest):
        self._run, self._config, self._loader, self._stop = run, run.config, loader, stop
        self._has_scaler = has_scaler
        self._loss_sum, self._num_images, self._norm = 0.0, 0, 0.0
        self._skipped = 0
        self.stops = False

    def agree(self, mine: bool) -> bool:
        """Tell whether any rank says so."""
        if self._config.SAVE_EVERY_MINUTES is None:
            return mine
        return bool(distributed.sum_across_ranks(np.array([float(mine)]))[0])

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
        loss, norm = loss_sum.item(), norm.item()
        is_bad = not math.isfinite(loss) or (not math.isfinite(norm) and not self._has_scaler)
        ranks = np.zeros(distributed.world_size())
        ranks[distributed.rank()] = is_bad
        total = distributed.sum_across_ranks(
            np.array([self._stop.requested, 0.0 if is_bad else loss, num_images, *ranks], np.float64)
        )
        self.stops = bool(total[0])
        bad_ranks = [int(rank) for rank in np.flatnonzero(total[3:])]
        if not bad_ranks:
            self._loss_sum += total[1]
            self._num_images += int(total[2])
            self._norm, self._skipped = norm, 0
            return True
        self._skipped += 1
        file = self._describe(bad_ranks, update, step + 1, lr, loss, norm)
        what = f"loss or gradient is not finite at update {step + 1} on ranks {bad_ranks}, lr {lr:.3g}"
        advice = "Lower TRAIN.BASE_LR, set TRAIN.GRAD_CLIP, or use bf16 or float32 instead of fp16"
        if self._config.TRAIN.NONFINITE == "stop":
            raise UserError(f"{what}; the images are listed in {file}; checkpoints up to now are intact. {advice}")
        if self._skipped > self._config.TRAIN.MAX_SKIPS:
            raise UserError(f"{what}, and at the {self._skipped - 1} updates before; see {file}. {advice}")
        self._run.log.say(f"warning: {what}; the update is left out; the images are listed in {file}")
        return False

    def pop(self) -> tuple[float, float]:
        """Return the mean loss over the images since the last call, and the last gradient norm."""
        loss = self._loss_sum / self._num_images if self._num_images else math.nan
        self._loss_sum, self._num_images = 0.0, 0
        return loss, self._norm

    def _describe(self, bad_ranks: list[int], update: int, step: int, lr, loss, norm) -> str:
        """Write what is known of a bad update into the run directory; returns the file's name."""
        name = f"nonfinite-{step:08d}.json"
        if self._run.directory is not None:
            images = {
                rank: [self._loader.source.describe(i) for i in self._loader.sampler.indices(update, rank)]
                for rank in bad_ranks
            }
            values = {"step": step, "lr": lr, "ranks": bad_ranks, "loss": str(loss), "grad_norm": str(norm)}
            text = json.dumps({**values, "images": images}, indent=1)
            (self._run.directory / name).write_text(text, encoding="utf-8")
        return name
