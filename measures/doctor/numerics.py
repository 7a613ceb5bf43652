"""Section 2: does the device compute what float64 on CPU gives? Every method, every precision that the device has."""

import numpy as np
import paddle

from config import replaced
from layers import kernels
from measures.doctor import reference
from measures.doctor.check import Case, Check, assess, not_applicable
from measures.doctor.reference import Outcome
from measures.synthetic import synthetic_arrays
from measures.training_step import OneBatchTraining, split_views
from training import device

# Largest differences from float64 of the loss, the predictions and all gradients together, as shares of their size:
# three times or more what CPUs gave in float32, and in float32 with the inputs and outputs of all linear layers and
# attentions, and (O2) of norms and residual connections, rounded to float16 or bfloat16. Not measured on a GPU.
_LIMITS = {
    False: {"loss": 1e-5, "predictions": 1e-5, "gradients": 5e-5},
    "fp16": {"loss": 4e-2, "predictions": 3e-3, "gradients": 2e-2},
    "bf16": {"loss": 4e-2, "predictions": 3e-2, "gradients": 1e-1},
}
_PRECISIONS = [(False, "O1"), *((precision, level) for precision in ("fp16", "bf16") for level in ("O1", "O2"))]
# Their batch norms over few images magnify rounding: gradients in low precision say nothing.
_MAGNIFYING = ("MoCo v3", "MAE-CT, head", "MAE-CT, tuning")
_ATTENTION_LIMITS = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 3e-2}
_HUGE_SCALE = 2.0**127
# Heads as wide as in the micro model, ViT-B and ViT-H; tokens with 75 % of the patches hidden, of 224 and of
# 512 pixels.
_HEADS, _TOKENS = (32, 64, 80), (50, 197, 1025)


def examine(case: Case) -> list[Check]:
    """Return the checks of this section; the device is chosen."""
    name = paddle.device.get_device()
    checks = []
    for method in reference.RECIPES:
        config = reference.configuration(method, case.folder)
        paddle.set_device("cpu")
        expected, weights = reference.step(config, as_reference=True)
        paddle.set_device(name)
        for precision, level in _PRECISIONS:
            at_level = replaced(config, "TRAIN.AMP_LEVEL", level)
            checks.append(check_method(method, at_level, precision, expected, weights))
    return [*checks, *(check_attention(dtype) for dtype in _ATTENTION_LIMITS), check_skipped_update()]


def check_method(method: str, config, precision: str | bool, expected: Outcome, weights: dict) -> Check:
    """Compare a method's step in a precision with the reference."""
    name = f"{method}, {precision} {config.TRAIN.AMP_LEVEL}" if precision else f"{method}, float32"
    if why := _why_not(precision):
        return not_applicable(name, why)
    found, _ = reference.step(replaced(config, "AMP", precision), weights=weights)
    errors = {
        "loss": abs(found.loss - expected.loss) / abs(expected.loss),
        "predictions": _difference(found.predictions, expected.predictions),
        "gradients": _difference(_flat(found, expected), _flat(expected, expected)),
    }
    limits = dict(_LIMITS[precision])
    if precision and method in _MAGNIFYING:
        del limits["gradients"]
    found, limit = (" ".join(f"{name} {numbers[name]:.0e}," for name in limits)[:-1] for numbers in (errors, limits))
    advice = "the device computes wrongly in this precision: try another driver, Paddle or -amp, and report doctor.json"
    holds = all(errors[name] <= limits[name] for name in limits)  # False for NaN, too
    return assess(name, holds, found, limit, advice, **errors)


def _why_not(precision: str | bool) -> str:
    if not precision:
        return ""
    if device.is_on_cpu():
        return "Paddle computes in float32 on CPU"
    capability = paddle.device.cuda.get_device_capability() if device.is_on_gpu() else (99, 0)
    first = device.FIRST_CAPABILITY[precision]
    return "" if capability >= first else "the GPU's compute capability is below {}.{}".format(*first)


def _flat(outcome: Outcome, names: Outcome) -> np.ndarray:
    gradients = [outcome.gradients.get(name, np.nan) for name in names.gradients]
    return np.concatenate([np.ravel(np.asarray(gradient, np.float64)) for gradient in gradients])


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    if found.shape != expected.shape:
        return float("nan")
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def check_attention(dtype: str) -> Check:
    """Compare the attention that the device computes with a plain one in float64, forward and backward."""
    name = f"attention, {dtype}"
    precision = {"float16": "fp16", "bfloat16": "bf16"}.get(dtype, False)
    if why := _why_not(precision):
        return not_applicable(name, why)
    kind = kernels.describe_attention(None if dtype == "float32" else dtype, list(_HEADS))
    errors = {f"{width} wide, {t} tokens": _attention_error(dtype, width, t) for width in _HEADS for t in _TOKENS}
    worst, limit = max(errors, key=errors.get), _ATTENTION_LIMITS[dtype]
    holds = all(error <= limit for error in errors.values())
    advice = "the attention kernel computes wrongly: try another Paddle, and report doctor.json"
    return assess(name, holds, f"{errors[worst]:.1e}, {worst}; {kind}", f"{limit:.0e}", advice, **errors)


def _attention_error(dtype: str, width: int, tokens: int) -> float:
    """Return the largest difference of the mixture and of its gradient, as a share of their largest number."""
    values = np.random.default_rng(0).standard_normal((2, tokens, 3, 2, width))  # [B, T, 3, A, D/A]
    qkv = paddle.to_tensor(values, dtype, stop_gradient=False)
    rounded = qkv.astype("float32").numpy().astype(np.float64)
    upstream = np.random.default_rng(1).standard_normal((2, tokens, 2, width))
    mixed, _ = kernels.attention(qkv)
    (mixed.astype("float32") * paddle.to_tensor(upstream, "float32")).sum().backward()
    found = mixed.astype("float32").numpy(), qkv.grad.astype("float32").numpy()
    return max(
        float(abs(own - other).max() / abs(other).max())
        for own, other in zip(found, _plain_attention(rounded, upstream), strict=True)
    )


def _plain_attention(qkv: np.ndarray, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mixture [B, T, A, D/A], and the gradient of its product with `upstream`, by NumPy."""
    query, key, value = qkv.transpose(2, 0, 3, 1, 4)  # [B, A, T, D/A]
    upstream, scale = upstream.transpose(0, 2, 1, 3), qkv.shape[-1] ** -0.5
    scores = query @ key.swapaxes(-1, -2) * scale
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    to_weights = upstream @ value.swapaxes(-1, -2)
    to_scores = weights * (to_weights - (to_weights * weights).sum(-1, keepdims=True)) * scale
    gradients = (to_scores @ key, to_scores.swapaxes(-1, -2) @ query, weights.swapaxes(-1, -2) @ upstream)
    return (weights @ value).transpose(0, 2, 1, 3), np.stack(gradients).transpose(1, 3, 0, 2, 4)


def check_skipped_update() -> Check:
    """Check that fp16's loss scaler leaves out an update whose gradients are infinite, and halves its scale."""
    name = "skipped fp16 update"
    if why := _why_not("fp16"):
        return not_applicable(name, why)
    config = replaced(reference.configuration("finetuning", None), "AMP", "fp16")
    step = OneBatchTraining(config, split_views(config, *synthetic_arrays(config, 8)))
    step.training.scaler = paddle.amp.GradScaler(init_loss_scaling=_HUGE_SCALE, decr_every_n_nan_or_inf=1)
    return assess_skipped_update(step)


def assess_skipped_update(step: OneBatchTraining) -> Check:
    """Do an update at a scale of the loss, _HUGE_SCALE, that makes gradients infinite."""
    parameters = step.training.task.model.parameters()
    before = [parameter.numpy().copy() for parameter in parameters]
    step.update()
    changed = sum(bool((parameter.numpy() != old).any()) for parameter, old in zip(parameters, before, strict=True))
    scale, after = _HUGE_SCALE, float(np.asarray(step.training.scaler.state_dict()["scale"]).ravel()[0])
    advice = "the loss scaler does not work on this device: use -amp bf16 or none"
    found = f"{changed} tensors changed, scale times {after / scale:g}"
    return assess("skipped fp16 update", not changed and after == scale / 2, found, "0, and 0.5", advice)
