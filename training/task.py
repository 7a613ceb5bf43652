"""What the training loop knows of a method: a `Task`, ready to run."""

import dataclasses
from collections.abc import Callable, Mapping

from paddle import Tensor, nn
from paddle.optimizer import Optimizer

from storage.architecture import Architecture
from storage.clip_architecture import ClipArchitecture
from training.optimizers import WeightAverage


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a training step does for one image, where that is not one pass forward and back through all of `Task.saved`.

    Attributes:
        views: of an image that are encoded.
        trained_blocks: upper blocks of the encoder through which gradients go; None: all, and the decoder; probes: 0.
        other_macs: multiply-accumulates of the forward passes of other networks.
    """

    views: int = 1
    trained_blocks: int | None = None
    other_macs: float = 0.0


ONE_PASS = Cost()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a method evaluates its networks: sums over batches, and which score is best.

    Attributes:
        metrics: names of the sums that `measure` returns.
        measure: `(model, batch) -> one sum over the batch's images per name in `metrics``.
        best: a metric, and "max" or "min", that choose the best checkpoint.
        prepare: called before the first batch, with the weights that are evaluated.
        summarise: gets the means over all images by name, and returns the scores to log, which may be more.
    """

    metrics: tuple[str, ...]
    measure: Callable
    best: tuple[str, str]
    prepare: Callable[[], None] = lambda: None
    summarise: Callable[[dict[str, float]], dict[str, float]] = lambda scores: scores


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
        begin_epoch: called with the number of an epoch, from 0, before its first update after a start or a resume.
        after_update: called with the updates done and the updates of the whole run, after each that changed the
            weights; moves momentum networks.
        merged: returns the tensors that model.pdparams holds instead of the network's own, by name; the own ones go to
            extra.pdparams.
        evaluation: on the val split; None: the run is not evaluated.
        ema: averaged weights of `saved`, which are evaluated and read instead of its own.
        smallest_batch: images that a micro-step needs; 2 where a batch norm trains.
        accumulates: TRAIN.ACCUM_ITER may be above 1; the dispatcher sets it from `Method.whole_batch`.
        cost: of a training step for one image.
        lr_scales: multipliers of the learning rate of parts of the model, by name, to log beside it.
        external_id: names what is needed to train besides the data and is not in the checkpoints: another network, or
            a tokenizer. A run resumes with an equal one only.
        notes: returns lines for the log before the first update, given the number of training images.
        can_be_traced: the forward pass takes images alone and runs once per micro-step, so TRAIN.TO_STATIC may apply.
    """

    name: str
    model: nn.Layer
    optimizer: Optimizer
    loss: Callable
    saved: nn.Layer | None = None
    begin_epoch: Callable[[int], None] = lambda epoch: None
    after_update: Callable[[int, int], None] = lambda step, total_steps: None
    merged: Callable[[], dict[str, Tensor]] = dict
    evaluation: Evaluation | None = None
    ema: WeightAverage | None = None
    smallest_batch: int = 1
    accumulates: bool = True
    cost: Cost = ONE_PASS
    lr_scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    notes: Callable[[int], list[str]] = lambda num_images: []
    can_be_traced: bool = False
    external_id: str | None = None

    @property
    def network(self) -> nn.Layer:
        """The part of the model that model.pdparams holds."""
        return self.model if self.saved is None else self.saved

    @property
    def architecture(self) -> Architecture | ClipArchitecture | None:
        """What the network says of itself; None for a network that this project's files do not describe."""
        return getattr(self.network, "architecture", None)

    def saved_state(self) -> dict[str, Tensor]:
        """Return the tensors that model.pdparams holds."""
        return self.network.state_dict() | self.merged()

    def extra_state(self) -> dict[str, Tensor]:
        """Return the tensors of the model that model.pdparams does not hold, under their names in the model."""
        network = self.network.state_dict()
        own = {id(value) for value in network.values()}
        others = {name: value for name, value in self.model.state_dict().items() if id(value) not in own}
        return others | {f"unmerged.{name}": network[name] for name in self.merged()}
