"""Learning rate schedule, parameter groups, AdamW, LARS and Muon."""

import functools
import math
import re

import paddle
from paddle import nn
from paddle.optimizer import AdamW, Momentum, Optimizer

from errors import UserError

_BLOCK_MATRIX = re.compile(r"(^|\.)layers\.\d+\.((cross_)?attn\.(qkv|q|kv|out)|mlp\.(fc1|fc2))\.weight$")
# Of the degrees 1, 3 and 5, for each step; more steps repeat the last one.
_COEFFICIENTS = {
    "original": [(3.4445, -4.7750, 2.0315)],  # Keller Jordan's
    "quintic": [  # timm's, which end closer to 1
        (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ],
}  # fmt: skip
_NORM_EPS = 1e-7
_RMS_OF_ADAMW = 0.2  # typical root mean square of AdamW's step at learning rate 1
# Of a step of a matrix [in, out].
_SCALES = {
    "match_rms_adamw": lambda inputs, outputs: _RMS_OF_ADAMW * math.sqrt(max(inputs, outputs)),
    "original": lambda inputs, outputs: math.sqrt(max(1.0, outputs / inputs)),
}


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


def param_groups(
    network: nn.Layer, weight_decay: float, layer_decay: float | None = None, lr_scale: float = 1.0
) -> list[dict]:
    """Sort the trainable parameters of a network into Paddle parameter groups.

    Biases, norms (all 1-D parameters) and what `network.no_weight_decay()` names are not decayed. With `layer_decay`,
    the learning rate of layer l of L is multiplied by `layer_decay ** (L - l)` (BEiT, arXiv 2106.08254), where
    `network.layer_index(name)` gives l: the head has 1.0 and the last block `layer_decay`. A method with several
    networks calls this once for each, and joins the lists.

    Args:
        lr_scale: multiplies the learning rate of the whole network.

    Returns:
        Groups with the keys `params`, `learning_rate` (a multiplier), `weight_decay`, and `matrices`: the automatic
        names of the matrices of transformer blocks, which are Muon's.
    """
    undecayed = network.no_weight_decay() if hasattr(network, "no_weight_decay") else set()
    layers = {name: 0 if layer_decay is None else network.layer_index(name) for name, _ in network.named_parameters()}
    top = max(layers.values(), default=0)
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in network.named_parameters():
        if parameter.stop_gradient:
            continue
        is_decayed = parameter.ndim > 1 and not name.endswith(".bias") and name not in undecayed
        scale = lr_scale if layer_decay is None else lr_scale * layer_decay ** (top - layers[name])
        group = groups.setdefault(
            (layers[name], is_decayed),
            {
                "params": [],
                "learning_rate": scale,
                "weight_decay": weight_decay if is_decayed else 0.0,
                "matrices": set(),
            },
        )
        group["params"].append(parameter)
        if _BLOCK_MATRIX.search(name):
            group["matrices"].add(parameter.name)
    if not groups:
        raise ValueError("the network has no trainable parameters")
    return [groups[key] for key in sorted(groups)]


class LARS(Optimizer):
    """Momentum SGD with layer-wise rate scaling (arXiv 1708.03888), as the official linear probe uses it.

    Weights (more than one dimension) get weight decay and the trust ratio
    `trust_coefficient * |p| / |g|`; biases and norms get neither. Paddle's own `fleet` LARS is for
    static graphs only and is silently ignored in dynamic mode.

    Args:
        learning_rate: number or scheduler.
        parameters: list of parameters, or of parameter groups, whose own `weight_decay` goes first if it is not 0.
        weight_decay: of all other weights.

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
        self._decay_of: dict[str, float] = {}
        if parameters and isinstance(parameters[0], dict):
            for group in parameters:
                decay = group.get("weight_decay") or weight_decay
                self._decay_of |= {parameter.name: decay for parameter in group["params"]}
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
            decay = self._decay_of.get(parameter.name, self._decay)
            gradient = gradient / self.gradient_share + decay * parameter
            param_norm, grad_norm = parameter.norm(), gradient.norm()
            ratio = self._trust_coefficient * param_norm / grad_norm
            usable = (param_norm > 0).logical_and(grad_norm > 0)
            ratio = paddle.where(usable, ratio, paddle.ones_like(ratio))
            gradient = gradient * (ratio * self.gradient_share)
        paddle.assign(velocity * self._momentum + gradient, velocity)
        multiplier = parameter.optimize_attr.get("learning_rate", 1.0)
        paddle.assign(parameter - self.get_lr() * multiplier * velocity, parameter)


@paddle.no_grad()
def orthogonalise(
    matrix: paddle.Tensor, dtype: str = "float32", steps: int = 5, coefficients: str = "original"
) -> paddle.Tensor:
    """Bring the singular values of a matrix to about 1 (0.7 to 1.2), by Newton-Schulz steps of the fifth degree.

    Args:
        dtype: of the products; bfloat16 is faster on GPUs, and off by up to some percent.
        coefficients: "original" or "quintic".
    """
    rows = _COEFFICIENTS[coefficients]
    is_tall = matrix.shape[0] > matrix.shape[1]
    scaled = (matrix / (matrix.norm() + _NORM_EPS)).astype(dtype)
    scaled = scaled.t() if is_tall else scaled
    for step in range(steps):
        first, third, fifth = rows[min(step, len(rows) - 1)]
        gram = paddle.matmul(scaled, scaled, transpose_y=True)
        scaled = first * scaled + paddle.matmul(third * gram + fifth * paddle.matmul(gram, gram), scaled)
    return (scaled.t() if is_tall else scaled).astype(matrix.dtype)


class Muon(Optimizer):
    """Momentum whose step is orthogonalised, for matrices (Keller Jordan, 2024).

    Args:
        learning_rate: number.
        parameters: matrices [in, out], or groups of them, see `param_groups`.
        weight_decay: of parameters whose group has none of its own.
        momentum: share of the old average of the gradients that stays.
        nesterov: the step looks one gradient ahead.
        ns_steps, coefficients, dtype: see `orthogonalise`.
        scale: "match_rms_adamw": 0.2 sqrt(larger side), so that a step's root mean square is that of AdamW's, whose
            learning rate and weight decay it therefore takes (Moonlight, arXiv 2502.16982). "original": the square
            root of out / in, or 1 if that is larger; its learning rates are about 0.02.

    Raises:
        UserError: for a choice that is not known, or a parameter of other than two axes.
    """

    _velocity_acc_str = "velocity"

    def __init__(
        self,
        learning_rate: float,
        parameters: list,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        coefficients: str = "quintic",
        scale: str = "match_rms_adamw",
        dtype: str = "float32",
    ):
        parameters, weight_decay = list(parameters), weight_decay or 0.0
        if not parameters:
            raise UserError("Muon(parameters=[]): has nothing to train")
        groups = parameters if isinstance(parameters[0], dict) else [{"params": parameters}]
        if coefficients not in _COEFFICIENTS or scale not in _SCALES:
            names = ", ".join((*_COEFFICIENTS, *_SCALES))
            raise UserError(f"Muon(coefficients={coefficients!r}, scale={scale!r}): known are {names}")
        others = [p.name for group in groups for p in group["params"] if len(p.shape) != 2]
        if others:
            raise UserError(f"Muon is for matrices, and {others[0]} is not one; give such parameters to AdamW")
        self._decay_of = {p.name: group.get("weight_decay", weight_decay) for group in groups for p in group["params"]}
        plain = [{key: group[key] for key in ("params", "learning_rate") if key in group} for group in groups]
        super().__init__(learning_rate=learning_rate, parameters=plain, weight_decay=None)
        self.type, self._momentum, self._nesterov, self._scale = "muon", momentum, nesterov, _SCALES[scale]
        self._orthogonalise = functools.partial(orthogonalise, dtype=dtype, steps=ns_steps, coefficients=coefficients)

    _create_accumulators = LARS._create_accumulators

    @paddle.no_grad()
    def _append_optimize_op(self, block, param_and_grad) -> None:
        parameter, gradient = param_and_grad["params"] if isinstance(param_and_grad, dict) else param_and_grad
        velocity = self._get_accumulator(self._velocity_acc_str, parameter)
        fresh = gradient * (1.0 - self._momentum)
        paddle.assign(velocity * self._momentum + fresh, velocity)
        ahead = velocity * self._momentum + fresh if self._nesterov else velocity
        rate = self.get_lr() * parameter.optimize_attr.get("learning_rate", 1.0)
        kept = parameter * (1.0 - rate * self._decay_of[parameter.name])
        paddle.assign(kept - rate * self._scale(*parameter.shape) * self._orthogonalise(ahead), parameter)


class JoinedOptimizer:
    """Several optimizers, each of other parameters, as one; a subclass sets `_parts`."""

    _parts: list[Optimizer]

    def set_lr(self, value: float) -> None:
        """Set the learning rate of the next update."""
        for part in self._parts:
            part.set_lr(value)

    def step(self) -> None:
        """Update all parameters."""
        for part in self._parts:
            part.step()

    def clear_grad(self, set_to_zero: bool = True) -> None:
        """Forget the gradients of all parameters."""
        for part in self._parts:
            part.clear_grad(set_to_zero)

    def state_dict(self) -> dict[str, paddle.Tensor]:
        """Return the state of all parts, as one optimizer has it."""
        return {key: value for part in self._parts for key, value in part.state_dict().items()}

    def set_state_dict(self, state: dict[str, paddle.Tensor]) -> None:
        """Restore the state of all parts."""
        for part in self._parts:
            part.set_state_dict(state)


class MuonWithAdamW(JoinedOptimizer):
    """Muon for the matrices of transformer blocks, and AdamW for all other parameters.

    Args:
        groups: see `param_groups`.
        betas, eps: of AdamW.
        options: of `Muon`.
    """

    _param_groups = None  # paddle.amp.GradScaler reads it, and `_parameter_list`

    def __init__(self, groups: list[dict], betas: tuple[float, float], eps: float, **options: object):
        self._parameter_list = [parameter for group in groups for parameter in group["params"]]
        matrices, others = (_part_of(groups, of_muon=of_muon) for of_muon in (True, False))
        self._parts = [Muon(0.0, matrices, coefficients="original", **options)] if matrices else []
        self._parts += [build_optimizer("AdamW", others, betas=betas, eps=eps)] if others else []


def _part_of(groups: list[dict], of_muon: bool) -> list[dict]:
    """Return the groups with the parameters that are Muon's, or with the others."""
    own = [
        {
            **group,
            "params": [parameter for parameter in group["params"] if (parameter.name in group["matrices"]) == of_muon],
        }
        for group in groups
    ]
    return [group for group in own if group["params"]]


def build_optimizer(
    name: str,
    groups: list[dict],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    nesterov: bool = False,
    muon: dict | None = None,
):
    """Build an optimizer over `param_groups`; the engine sets the learning rate.

    Args:
        name: AdamW, LARS, SGD (momentum 0.9, or Nesterov's) or Muon.
        betas, eps: of AdamW, also beside Muon.
        muon: further options of `Muon`.
    """
    if name == "Muon":
        return MuonWithAdamW(groups, betas, eps, **(muon or {}))
    groups = [{key: value for key, value in group.items() if key != "matrices"} for group in groups]
    if name in ("AdamW", "AdamWDL"):
        return AdamW(
            learning_rate=0.0, parameters=groups, beta1=betas[0], beta2=betas[1], epsilon=eps, weight_decay=0.0
        )
    if name == "LARS":
        return LARS(learning_rate=0.0, parameters=groups)
    if name == "SGD":
        return Momentum(learning_rate=0.0, parameters=groups, momentum=0.9, use_nesterov=nesterov)
    raise UserError(f"TRAIN.OPTIMIZER.NAME={name!r}: must be AdamW, LARS, SGD or Muon")
