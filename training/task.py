"""The two arguments of the training loop: a `Task`, ready to run, and a `Run`: where and with which settings."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from paddle import Tensor, nn
from paddle.optimizer import Optimizer

from errors import escape_controls
from pipeline.sources import Source
from storage import atomic
from storage.architecture import Architecture
from storage.clip_architecture import ClipArchitecture
from storage.run_files import BAD_IMAGES_FILE
from training import distributed
from training.log import RunLog
from training.optimizers import WeightAverage


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a training step does for one image, where that is not one pass forward and back through all of `Task.saved`.

    Attributes:
        views: of an image that are encoded.
        trained_blocks: upper blocks of the encoder through which gradients go; None: all, and a decoder's; a probe, 0.
        other_macs: multiply-accumulates of the forward passes of other networks.
    """

    views: int = 1
    trained_blocks: int | None = None
    other_macs: float = 0.0


ONE_PASS = Cost()


@dataclasses.dataclass(frozen=True)
class Task:
    """Networks, optimizer, loss and evaluation of a method, ready to run.

    Attributes:
        name: of the method, for files and logs.
        model: all networks that are trained or saved, unwrapped; its forward pass is what data parallelism wraps.
        optimizer: its groups carry decay and learning rate multipliers.
        loss: `(model, batch, rng) -> (scalar, {name: scalar})`: the mean over the images of a `loading.Batch`, and
            means to log beside it. It gets the wrapped model, and must call it; `rng` is a NumPy generator for this
            micro-step.
        saved: the part of `model` that model.pdparams holds, and that tools and other methods read; None: all of it.
            The other tensors of the model's state dict, of any type, go to extra.pdparams.
        after_update: called with the updates done and the updates of the whole run, after each that changed the
            weights; moves momentum networks.
        before_evaluation: called before the first batch, with the weights that are evaluated.
        evaluate: `(model, batch) -> one sum over the batch's images per name in `metrics``, or None.
        metrics: names of what `evaluate` returns.
        after_evaluation: gets the scores by name, and returns those to log, which may be more.
        best: a metric, and "max" or "min", that choose the best checkpoint; None: there is none.
        ema: averaged weights of `saved`, which are evaluated and read instead of its own.
        smallest_batch: images that a micro-step needs; 2 where a batch norm trains.
        accumulates: TRAIN.ACCUM_ITER may be above 1.
        cost: of a training step for one image.
        lr_scales: multipliers of the learning rate of parts of the model, by name, to log beside it.
        teacher: what is needed to train besides the data, and is no part of the checkpoints: another network, or a
            tokenizer; a run goes on with an equal text only.
        notes: returns lines for the log before the first update, given the number of training images.
        can_be_traced: the forward pass takes images alone and runs once per micro-step, so TRAIN.TO_STATIC may apply.
    """

    name: str
    model: nn.Layer
    optimizer: Optimizer | None
    loss: Callable | None
    saved: nn.Layer | None = None
    after_update: Callable[[int, int], None] = lambda step, total_steps: None
    before_evaluation: Callable[[], None] = lambda: None
    evaluate: Callable | None = None
    metrics: tuple[str, ...] = ()
    after_evaluation: Callable[[dict[str, float]], dict[str, float]] = lambda scores: scores
    best: tuple[str, str] | None = None
    ema: WeightAverage | None = None
    smallest_batch: int = 1
    accumulates: bool = True
    cost: Cost = ONE_PASS
    lr_scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: Callable[[int], list[str]] = lambda num_images: []
    can_be_traced: bool = False
    teacher: str | None = None

    @property
    def network(self) -> nn.Layer:
        """The part of the model that model.pdparams holds."""
        return self.model if self.saved is None else self.saved

    @property
    def architecture(self) -> Architecture | ClipArchitecture | None:
        """What the network says of itself; None for a network that this project's files do not describe."""
        return getattr(self.network, "architecture", None)

    def extra_state(self) -> dict[str, Tensor]:
        """Return the tensors of the model that are not in `network`, under their names in the model."""
        own = {id(value) for value in self.network.state_dict().values()}
        return {name: value for name, value in self.model.state_dict().items() if id(value) not in own}


@dataclasses.dataclass
class Run:
    """Directory, log and settings of a run.

    Attributes:
        config: frozen configuration.
        directory: of the run; None on all ranks but the first.
        log: silent on all ranks but the first.
        resume_from: checkpoint directory to continue.
        dry_run: print the plan, and stop.
        gpu_gib: memory of a GPU, of which the plan says whether it is enough; None: this was not asked.
        bad_images: notes on images that could not be read and were skipped by this rank, since the last report.
        num_bad_images: of all ranks, up to the last report.
        sources: splits that have been opened, see `loaders.open_once`.
    """

    config: object
    directory: Path | None
    log: RunLog
    resume_from: Path | None = None
    dry_run: bool = False
    gpu_gib: float | None = None
    bad_images: list[str] = dataclasses.field(default_factory=list)
    num_bad_images: int = 0
    sources: dict[tuple, Source] = dataclasses.field(default_factory=dict)

    def report_bad_images(self) -> None:
        """Count skipped images in the log, and list them in the run directory; all ranks must call it."""
        notes = distributed.gather_texts(self.bad_images)
        self.bad_images.clear()
        if not notes or self.directory is None:
            return
        path = self.directory / BAD_IMAGES_FILE
        known = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        # Ranks, resumed runs and evaluations meet the same images.
        listed = list(dict.fromkeys([*known, *map(escape_controls, notes)]))
        if len(listed) > self.num_bad_images:
            self.log.say(f"warning: {len(listed)} images skipped so far, the last one {listed[-1]}; all are in {path}")
            self.num_bad_images = len(listed)
            atomic.write_text(path, "".join(f"{note}\n" for note in listed))
