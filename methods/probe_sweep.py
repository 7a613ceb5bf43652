"""Linear or attentive probes with several learning rates at once, on one pass of the frozen encoder, as in MAE-CT."""

import dataclasses

import numpy as np
import paddle
from paddle import nn

from errors import UserError, printable
from layers.basic import Linear, ProbeNorm
from layers.poolers import build_pooler
from methods import classifier
from methods.class_balance import label_loss
from optim import param_groups
from pipeline.loading import Batch
from training.optimizers import configured_optimizer
from training.run import Run
from training.task import Evaluation, Task
from transformer import VisionTransformer

_MOST_HEADS = 200
_LARGEST_RATE = 1e6


def _is_rate(rate: object) -> bool:
    return isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate <= _LARGEST_RATE


class ProbeSweep(nn.Layer):
    """Several heads over a frozen encoder.

    The heads of a linear probe are linear layers behind one batch norm; each head of an attentive probe is a pooler, a
    batch norm and a linear layer.

    Args:
        probe: its encoder and a linear probe's batch norm are used; its own head does not train, and is a copy of the
            best one.
        num_heads: how many.
        std: of the linear layers' first weights.
    """

    def __init__(self, probe: VisionTransformer, num_heads: int, std: float):
        super().__init__()
        self.probe = probe
        self.heads = nn.LayerList([_new_head(probe) for _ in range(num_heads)])
        for head in self.heads:
            linear = head if probe.pooler is None else head[2]
            nn.initializer.Normal(std=std)(linear.weight)
            nn.initializer.Constant(0.0)(linear.bias)

    def forward(self, images: paddle.Tensor) -> list[paddle.Tensor]:
        """Return the logits [B, K] of every head, in float32."""
        probe = self.probe
        with paddle.no_grad():
            if probe.pooler is None:
                features = probe.forward_features(images)
            else:
                features = probe.pooled_tokens(probe.forward_tokens(images))
        if probe.pooler is None:
            features = probe.classifier[0](features)
        return [head(features).astype("float32") for head in self.heads]

    @paddle.no_grad()
    def choose(self, number: int) -> None:
        """Copy a head into the probe."""
        probe = self.probe
        own = probe.head if probe.pooler is None else nn.Sequential(probe.pooler, *probe.classifier)
        chosen = self.heads[number].state_dict()
        for name, value in own.state_dict().items():
            paddle.assign(chosen[name], value)


def _new_head(probe: VisionTransformer) -> nn.Layer:
    """Return a new head of the kind that a probe has."""
    width, classes = probe.head.weight.shape
    linear = Linear(width, classes)
    return linear if probe.pooler is None else nn.Sequential(build_pooler(probe.architecture), ProbeNorm(width), linear)


def variant(config) -> str:
    """Return which of the two kinds of run a configuration is, see `Method`."""
    return "sweep" if config.TRAIN.LR_SWEEP else ""


def build_sweep(run: Run, task: Task, std: float, weights: paddle.Tensor | None) -> Task:
    """Turn the task of a probe into one with a head for each base learning rate of TRAIN.LR_SWEEP.

    The best head of each evaluation, by top-1 accuracy on the val split, is copied into the probe, which is what the
    checkpoint's model.pdparams holds.

    Args:
        std: standard deviation of new heads.
        weights: of the classes' losses, see `class_balance.class_weights`.
    """
    config, rates = run.config, run.config.TRAIN.LR_SWEEP
    names = [f"lr{rate:g}" for rate in rates if _is_rate(rate)]
    if len(names) < len(rates) or len(set(names)) < len(names) or len(names) > _MOST_HEADS:
        what = f"must be a list of different numbers above 0, at most {_MOST_HEADS}, with six digits that count"
        raise UserError(f"TRAIN.LR_SWEEP={printable(str(rates[:8]), 100)}: {what}")
    if config.TRAIN.BASE_LR <= 0:
        raise UserError(f"TRAIN.BASE_LR={config.TRAIN.BASE_LR}: must be above 0; the sweep's rates are multiples of it")
    if config.TRAIN.BEST not in (None, "acc1") or config.TRAIN.MULTI_LABEL:
        key = "MULTI_LABEL" if config.TRAIN.MULTI_LABEL else "BEST"
        raise UserError(
            f"TRAIN.{key}={config.TRAIN[key]}: TRAIN.LR_SWEEP chooses among its heads by acc1; set one of both to None"
        )
    model = ProbeSweep(task.model, len(rates), std)
    for parameter in task.model.parameters():
        parameter.stop_gradient = True
    groups = []
    for head, rate in zip(model.heads, rates, strict=True):
        groups += param_groups(head, config.TRAIN.WEIGHT_DECAY, lr_scale=rate / config.TRAIN.BASE_LR)

    def loss(model: nn.Layer, batch: Batch, rng: np.random.Generator):
        losses = [label_loss(logits, batch.labels, weights) for logits in model(batch.images)]
        return sum(losses), {f"loss_{name}": value for name, value in zip(names, losses, strict=True)}

    def summarise(scores: dict[str, float]) -> dict[str, float]:
        best = max(range(len(names)), key=lambda number: scores[f"acc1_{names[number]}"])
        model.choose(best)
        run.log.say(f"best head on val: base learning rate {rates[best]:g}; selected on val, so optimistic")
        return {name: scores[f"{name}_{names[best]}"] for name in classifier.METRICS} | scores

    metrics = tuple(f"{metric}_{name}" for name in names for metric in classifier.METRICS)
    return dataclasses.replace(
        task,
        name=f"{task.name}_sweep",
        model=model,
        saved=task.model,
        optimizer=configured_optimizer(config, groups),
        loss=loss,
        evaluation=Evaluation(metrics, _measure, ("acc1", "max"), summarise=summarise),
        can_be_traced=False,
    )


def _measure(model: nn.Layer, batch: Batch) -> list[paddle.Tensor]:
    """Return the sums over a batch of top-1, top-5 and loss of every head."""
    return [value for logits in model(batch.images) for value in classifier.score(logits, batch.labels)]
