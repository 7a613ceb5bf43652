"""What the training loop is given: a recipe that is ready to run, and where and how to run it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from paddle import nn
from paddle.optimizer import Optimizer

import distributed
import output_files
from errors import escape_controls
from metrics import RunLog
from optim import WeightAverage


@dataclasses.dataclass(frozen=True)
class Task:
    """One recipe, ready to run.

    Attributes:
        name: of the mode, for files and logs.
        model: unwrapped; its state dict is what gets saved.
        optimizer: its groups carry decay and learning rate multipliers.
        loss: `(model, batch, rng) -> scalar`, the mean over the batch's images. It gets the data-parallel
            model, and must call it; `rng` is a NumPy generator for this micro-step.
        evaluate: `(model, batch) -> one sum over the batch's images per name in `metrics``, or None.
        metrics: names of what `evaluate` returns.
        best_metric: the metric whose highest value marks the best checkpoint.
        ema: averaged weights, which are evaluated instead of the model's own.
    """

    name: str
    model: nn.Layer
    optimizer: Optimizer | None
    loss: Callable | None
    evaluate: Callable | None = None
    metrics: tuple[str, ...] = ()
    best_metric: str = "acc1"
    ema: WeightAverage | None = None


@dataclasses.dataclass
class Run:
    """Where a run lives and how it was asked for.

    Attributes:
        config: frozen configuration.
        directory: of the run; None on all ranks but the first.
        log: silent on all ranks but the first.
        resume_from: checkpoint directory to continue.
        dry_run: print the plan, and stop.
        bad_images: notes on images that could not be read and were skipped by this rank, since the last report.
        num_bad_images: of all ranks, up to the last report.
    """

    config: object
    directory: Path | None
    log: RunLog
    resume_from: Path | None = None
    dry_run: bool = False
    bad_images: list[str] = dataclasses.field(default_factory=list)
    num_bad_images: int = 0

    def report_bad_images(self) -> None:
        """Count skipped images in the log, and list them in the run directory; all ranks must call it."""
        notes = distributed.gather_texts(self.bad_images)
        self.bad_images.clear()
        if not notes or self.directory is None:
            return
        path = self.directory / "bad_images.txt"
        known = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        # Ranks, resumed runs and evaluations meet the same images.
        listed = list(dict.fromkeys([*known, *map(escape_controls, notes)]))
        if len(listed) > self.num_bad_images:
            self.log.say(f"warning: {len(listed)} images skipped so far, the last one {listed[-1]}; all are in {path}")
            self.num_bad_images = len(listed)
            output_files.write_text(path, "".join(f"{note}\n" for note in listed))
