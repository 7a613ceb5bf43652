"""What changes the weights: schedule, parameter groups, AdamW, LARS, and an average of the weights."""

import math
import re

import paddle
from paddle import nn
from paddle.optimizer import AdamW, Optimizer

from errors import UserError


def lr_at(
    step: int, *, peak_lr: float, total_steps: int, warmup_steps: int = 0, end_lr: float = 0.0, start_lr: float = 0.0
) -> float:
    """Return the learning rate of update `step`, counted from 0: linear warm-up, then half a cosine.

    The official code evaluates the same function of the fractional epoch at each update.

    Args:
        peak_lr: reached at `warmup_steps`.
        end_lr: approached at `total_steps`.
        start_lr: of step 0, where there is a warm-up.
    """
    if step < warmup_steps:
        return start_lr + (peak_lr - start_lr) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return end_lr + (peak_lr - end_lr) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def layer_id(name: str, depth: int) -> int:
    """Number the layers for layer-wise decay: 0 for embeddings, i + 1 for block i, depth + 1 for what follows.

    Args:
        name: a parameter's structured name in `transformer.VisionTransformer`.
        depth: blocks of the encoder.
    """
    if name in ("cls_token", "encoder_position_embedding") or name.startswith("patch_embedding."):
        return 0
    block = re.match(r"encoder\.layers\.(\d+)\.", name)
    return int(block.group(1)) + 1 if block else depth + 1


def param_groups(model: nn.Layer, weight_decay: float, layer_decay: float | None = None) -> list[dict]:
    """Sort the trainable parameters into Paddle parameter groups.

    Biases, norms (all 1-D parameters) and what `model.no_weight_decay()` names are not decayed. With
    `layer_decay`, the learning rate of layer l of L is multiplied by `layer_decay ** (L - l)` (BEiT,
    arXiv 2106.08254; see `layer_id`), so the head has 1.0 and the last block `layer_decay`.

    Returns:
        Groups with the keys `params`, `learning_rate` (a multiplier) and `weight_decay`.
    """
    undecayed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    top = len(model.encoder.layers) + 1 if layer_decay is not None else 0
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if parameter.stop_gradient:
            continue
        is_decayed = parameter.ndim > 1 and not name.endswith(".bias") and name not in undecayed
        layer = layer_id(name, top - 1) if layer_decay is not None else 0
        scale = layer_decay ** (top - layer) if layer_decay is not None else 1.0
        group = groups.setdefault(
            (layer, is_decayed),
            {"params": [], "learning_rate": scale, "weight_decay": weight_decay if is_decayed else 0.0},
        )
        group["params"].append(parameter)
    if not groups:
        raise ValueError("the model has no trainable parameters")
    return [groups[key] for key in sorted(groups)]


class LARS(Optimizer):
    """Momentum SGD with layer-wise rate scaling (arXiv 1708.03888), as the official linear probe uses it.

    Weights (more than one dimension) get weight decay and the trust ratio
    `trust_coefficient * |p| / |g|`; biases and norms get neither. Paddle's own `fleet` LARS is for
    static graphs only and is silently ignored in dynamic mode.

    Args:
        learning_rate: number or scheduler.
        parameters: list of parameters, or of parameter groups.

    Attributes:
        gradient_share: what the gradients of the next update were multiplied by. A trust ratio takes it out, so it is
            applied to the step instead.
    """

    gradient_share = 1.0
    _velocity_acc_str = "velocity"

    def __init__(
        self,
        learning_rate: float,
        parameters: list,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
    ):
        # The decay below is ours; Paddle's would not know about the one-dimensional parameters.
        if parameters and isinstance(parameters[0], dict):
            parameters = [{key: value for key, value in group.items() if key != "weight_decay"} for group in parameters]
        super().__init__(learning_rate=learning_rate, parameters=parameters, weight_decay=None)
        self.type = "lars"
        self._decay = weight_decay
        self._momentum = momentum
        self._trust_coefficient = trust_coefficient

    def _create_accumulators(self, block, parameters) -> None:
        parameters = parameters.get("params") if isinstance(parameters, dict) else parameters
        for parameter in parameters:
            if parameter.name not in self._accumulators[self._velocity_acc_str]:
                self._add_accumulator(self._velocity_acc_str, parameter)

    @paddle.no_grad()
    def _append_optimize_op(self, block, param_and_grad) -> None:
        parameter, gradient = param_and_grad["params"] if isinstance(param_and_grad, dict) else param_and_grad
        velocity = self._get_accumulator(self._velocity_acc_str, parameter)
        if parameter.ndim > 1:
            gradient = gradient / self.gradient_share + self._decay * parameter
            param_norm, grad_norm = parameter.norm(), gradient.norm()
            ratio = self._trust_coefficient * param_norm / grad_norm
            usable = (param_norm > 0).logical_and(grad_norm > 0)
            ratio = paddle.where(usable, ratio, paddle.ones_like(ratio))
            gradient = gradient * (ratio * self.gradient_share)
        velocity.set_value(velocity * self._momentum + gradient)
        multiplier = parameter.optimize_attr.get("learning_rate", 1.0)
        parameter.set_value(parameter - self.get_lr() * multiplier * velocity)


def build_optimizer(
    name: str,
    groups: list[dict],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Build AdamW or LARS over `param_groups`; the engine sets its learning rate at each update."""
    if name in ("AdamW", "AdamWDL"):
        return AdamW(
            learning_rate=0.0, parameters=groups, beta1=betas[0], beta2=betas[1], epsilon=eps, weight_decay=weight_decay
        )
    if name == "LARS":
        return LARS(learning_rate=0.0, parameters=groups, weight_decay=weight_decay)
    raise UserError(f"TRAIN.OPTIMIZER.NAME={name!r}: must be AdamW or LARS")


class WeightAverage:
    """Exponential moving average of a model's weights (EMA), kept in float32 beside it.

    Args:
        model: its state dict is averaged; whole numbers are copied.
        decay: share of the old average that stays at each update.
    """

    def __init__(self, model: nn.Layer, decay: float):
        self.decay = decay
        self._average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @paddle.no_grad()
    def update(self, model: nn.Layer, is_made: paddle.Tensor | None = None) -> None:
        """Move the average towards the model's weights.

        Args:
            is_made: truth value on the device: whether the optimizer made its update. If not, nothing moves.
        """
        decay = self.decay
        if is_made is not None:
            decay = paddle.where(is_made, paddle.full([], decay), paddle.ones([]))
        for name, value in model.state_dict().items():
            average = self._average[name]
            if value.dtype in (paddle.float32, paddle.float64):
                average.set_value(average * decay + value.detach() * (1.0 - decay))
            else:
                average.set_value(value)

    def state_dict(self) -> dict[str, paddle.Tensor]:
        """Return the averaged weights under the model's names."""
        return dict(self._average)

    def set_state_dict(self, state: dict) -> None:
        """Restore the average exactly."""
        for name, average in self._average.items():
            average.set_value(paddle.to_tensor(state[name], dtype=average.dtype))

    def swap(self, model: nn.Layer) -> None:
        """Exchange the model's weights with the average; call it twice to evaluate the average."""
        for name, value in model.state_dict().items():
            kept = value.detach().clone()
            value.set_value(self._average[name])
            self._average[name].set_value(kept)
