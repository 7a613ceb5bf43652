"""Numbers that are not finite, and requests to stop or save: all ranks act on them at the same update."""

import dataclasses
import json
import time

import numpy as np
import paddle

import runtime
from errors import UserError
from launch.stop import StopRequest
from layers import across_ranks
from pipeline.loading import Loader
from storage import atomic
from training.checkpoints import SaveTimer
from training.log import Means
from training.run import Run

_SYNCHRONISE_SECS = 5.0


@dataclasses.dataclass(frozen=True)
class _Update:
    """One update, noted when it is launched; its numbers may not have been computed yet on the device."""

    step: int  # updates done with it
    number: int  # in the epoch
    lr: float
    num_images: int  # on this rank
    loss_sum: paddle.Tensor
    part_sums: dict[str, paddle.Tensor]
    norm: paddle.Tensor

    def tensor(self, name: str) -> paddle.Tensor:
        """Return `loss_sum`, `norm`, or a part by its name."""
        return self.part_sums[name] if name in self.part_sums else getattr(self, name)


class Guard:
    """Watches loss and gradient norm of every update; all ranks take the same decision.

    If a number is infinite or not a number, TRAIN.NONFINITE "stop" ends the run, and "skip" leaves the update out, at
    most TRAIN.MAX_SKIPS in a row. With fp16 the loss scaler leaves updates out by itself when the
    scale is too large for the gradients; those are not errors.

    Reading a number makes the host wait for a GPU. So with "stop" on a GPU only `synchronise` reads numbers: before
    every report and every checkpoint, when a single process is asked to stop, and every five seconds or so where ranks
    must agree on it. A run with bad numbers ends some updates late, and its checkpoints are good.

    Attributes:
        stop_requested: a rank was asked to stop.
        wants_save: the save timer of a rank is due.
    """

    def __init__(
        self,
        run: Run,
        loader: Loader,
        has_scaler: bool,
        stop: StopRequest,
        save_timer: SaveTimer,
        means: Means,
        defers: bool,
    ):
        self._run, self._config, self._loader = run, run.config, loader
        self._stop, self._save_timer, self._means = stop, save_timer, means
        self._has_scaler = has_scaler
        self._defers = defers and run.config.TRAIN.NONFINITE == "stop"
        self._pending: list[_Update] = []
        self._skipped = 0
        self._synchronised_at = time.monotonic()
        self._synchronise_every = 1  # updates; of several ranks
        self.stop_requested = self.wants_save = False

    def check(
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
            UserError: on all ranks, if the run must stop.
        """
        self._pending.append(_Update(step + 1, update, lr, num_images, loss_sum, part_sums, norm))
        if runtime.world_size() == 1:
            is_time = self._stop.requested or self._save_timer.is_due()
        else:  # all ranks must synchronise at the same updates, so none can use its own clock
            is_time = len(self._pending) >= self._synchronise_every
        return True if self._defers and not is_time else self.synchronise()

    def synchronise(self) -> bool:
        """Read the numbers of the updates since the last call, and decide with the other ranks; see `check`."""
        updates, self._pending = self._pending, []
        if not updates:
            return True
        names = ["loss_sum", "norm", *updates[0].part_sums]
        numbers = {name: _read([update.tensor(name) for update in updates]) for name in names}
        losses, norms = numbers.pop("loss_sum"), numbers.pop("norm")
        is_bad = ~np.isfinite(losses) | (~np.isfinite(norms) & (not self._has_scaler))
        sums = {"loss": losses[~is_bad].sum(dtype=np.float64)}
        sums |= {name: values[~is_bad].sum(dtype=np.float64) for name, values in numbers.items()}
        first_bad, sums, num_images = self._agree(updates, is_bad, sums)
        if not first_bad.any():
            self._means.add(sums, num_images, float(norms[-1]))
            self._skipped = 0
            return True
        index = first_bad[first_bad > 0].min() - 1
        bad_ranks = [int(rank) for rank in np.flatnonzero(first_bad == index + 1)]
        odd = [name for name, values in numbers.items() if not np.isfinite(values[index])]
        self._handle(updates[index], bad_ranks, losses[index], norms[index], odd)
        return False

    def _agree(
        self, updates: list[_Update], is_bad: np.ndarray, sums: dict[str, float]
    ) -> tuple[np.ndarray, dict[str, float], int]:
        """Exchange everything with the other ranks in one transfer.

        Returns:
            the first bad update of each rank, counted from 1 (0: none); the sums over all ranks; the number of images.
        """
        num_ranks = runtime.world_size()
        first_bad = np.zeros(num_ranks)
        first_bad[runtime.rank()] = is_bad.argmax() + 1 if is_bad.any() else 0
        now = time.monotonic()
        secs, self._synchronised_at = now - self._synchronised_at, now
        num_images = sum(update.num_images for update in updates)
        own = [self._stop.requested, self._save_timer.is_due(), num_images, secs, *first_bad, *sums.values()]
        total = across_ranks.sum_across_ranks(np.array(own, np.float64))
        self.stop_requested, self.wants_save = bool(total[0]), bool(total[1])
        secs_per_update = total[3] / num_ranks / len(updates)
        self._synchronise_every = max(1, int(_SYNCHRONISE_SECS / max(secs_per_update, 1e-3)))
        first_bad, totals = total[4 : 4 + num_ranks].astype(int), total[4 + num_ranks :]
        return first_bad, dict(zip(sums, totals, strict=True)), int(total[2])

    def _handle(self, update: _Update, bad_ranks: list[int], loss: float, norm: float, odd: list[str]) -> None:
        """Stop the run or leave a bad update out, by TRAIN.NONFINITE; `odd` are the parts of the loss to name."""
        self._skipped += 1
        file = self._describe(update, bad_ranks, loss, norm)
        what = f"loss or gradient is not finite at update {update.step} on ranks {bad_ranks}, lr {update.lr:.3g}"
        what += f" ({', '.join(odd)})" if odd else ""
        advice = "Lower TRAIN.BASE_LR, set TRAIN.GRAD_CLIP, or use bf16 or float32 instead of fp16"
        if self._config.TRAIN.NONFINITE == "stop":
            raise UserError(f"{what}; the images are listed in {file}; checkpoints up to now are intact. {advice}")
        if self._skipped > self._config.TRAIN.MAX_SKIPS:
            raise UserError(f"{what}, and at the {self._skipped - 1} updates before; see {file}. {advice}")
        self._run.log.say(f"warning: {what}; the update is left out; the images are listed in {file}")

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


def _read(numbers: list[paddle.Tensor]) -> np.ndarray:
    """Copy scalars from the device to the host at once."""
    return paddle.stack(numbers).numpy()
