import math

import numpy as np
import paddle
import pytest

from mae import MAEPretrain
from optim import LARS, build_optimizer, lr_at, orthogonalise, param_groups
from tests.conftest import assert_close
from tests.helpers.small_models import mae_architecture, make_vit
from training.optimizers import WeightAverage

pytestmark = pytest.mark.quick
FLOAT32_RELATIVE = 2e-5


def groups_by_name(model, groups) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(p)], (group["learning_rate"], group["weight_decay"])) for group in groups for p in group["params"]
    ]
    assert len(found) == len(dict(found)), "a parameter is in two groups"
    return dict(found)


def test_schedule():
    options = {"peak_lr": 2.0, "total_steps": 110, "warmup_steps": 10, "end_lr": 0.5}
    assert lr_at(0, **options) == 0.0
    assert lr_at(5, **options) == 1.0
    assert lr_at(10, **options) == 2.0
    assert lr_at(60, **options) == pytest.approx(1.25)
    assert lr_at(85, **options) == pytest.approx(0.5 + 1.5 * 0.5 * (1 + math.cos(0.75 * math.pi)))
    assert lr_at(109, **options) > 0.5
    assert lr_at(3, peak_lr=1.0, total_steps=10, warmup_steps=6, start_lr=0.4) == pytest.approx(0.7)


def test_layer_decay_and_weight_decay_of_every_parameter():
    model = make_vit((8, 8), num_classes=2, embed_dim=8, depth=2, num_heads=2, global_pool=True)
    top, last, first, bottom = (1.0, 0.5, 0.25, 0.125)
    expected = {
        "cls_token": (bottom, 0.0),
        "encoder_position_embedding": (bottom, 0.0),
        "patch_embedding.patch_embedding.weight": (bottom, 0.05),
        "patch_embedding.patch_embedding.bias": (bottom, 0.0),
        "encoder_norm.weight": (top, 0.0),
        "encoder_norm.bias": (top, 0.0),
        "classifier.weight": (top, 0.05),
        "classifier.bias": (top, 0.0),
    }
    for index, scale in ((0, first), (1, last)):
        for module in ("attn.qkv", "attn.out", "mlp.fc1", "mlp.fc2"):
            expected[f"encoder.layers.{index}.{module}.weight"] = (scale, 0.05)
            expected[f"encoder.layers.{index}.{module}.bias"] = (scale, 0.0)
        for module in ("attn_norm", "mlp_norm"):
            expected[f"encoder.layers.{index}.{module}.weight"] = (scale, 0.0)
            expected[f"encoder.layers.{index}.{module}.bias"] = (scale, 0.0)
    assert groups_by_name(model, param_groups(model, 0.05, layer_decay=0.5)) == expected


def test_vit_base_scales_are_the_official_ones():
    model = make_vit((8, 8), embed_dim=8, depth=12, num_heads=2)
    scales = groups_by_name(model, param_groups(model, 0.05, layer_decay=0.65))
    assert scales["cls_token"][0] == pytest.approx(0.00370, abs=5e-6)
    assert scales["encoder.layers.0.mlp.fc1.weight"][0] == pytest.approx(0.00569, abs=5e-6)
    assert scales["encoder.layers.11.mlp.fc1.weight"][0] == 0.65
    assert scales["classifier.weight"][0] == 1.0
    assert len(param_groups(model, 0.05, layer_decay=0.65)) == 28


def test_pretraining_decays_the_tokens():
    model = MAEPretrain(mae_architecture(encoder=(8, 1, 2)))
    groups = groups_by_name(model, param_groups(model, 0.05))
    assert set(groups) == {name for name, _ in model.named_parameters()}
    decayed = {name for name, (_, decay) in groups.items() if decay}
    assert {"cls_token", "mask_token", "decoder_pred.weight", "patch_embedding.patch_embedding.weight"} <= decayed
    assert not {name for name in decayed if name.endswith("bias") or "norm" in name}


def quadratic_steps(parameters, optimizer, gradients, lrs):
    for gradient, lr in zip(gradients, lrs, strict=True):
        for parameter, value in zip(parameters, gradient, strict=True):
            (parameter * paddle.to_tensor(value)).sum().backward()
        optimizer.set_lr(lr)
        optimizer.step()
        optimizer.clear_grad()


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    shapes = [(5, 4), (4,), (3, 2, 2)]
    values = [rng.normal(0, 1, shape).astype(np.float32) for shape in shapes]
    gradients = [[rng.normal(0, 1, shape).astype(np.float32) for shape in shapes] for _ in range(3)]
    parameters = []
    for value in values:
        parameter = paddle.create_parameter(list(value.shape), "float32")
        parameter.set_value(paddle.to_tensor(value))
        parameters.append(parameter)
    return values, gradients, parameters


def test_three_adamw_steps_by_hand(problem):
    values, gradients, parameters = problem
    settings = [(1.0, 0.1), (0.5, 0.0), (0.25, 0.1)]  # learning rate multiplier, weight decay
    groups = [
        {"params": [p], "learning_rate": scale, "weight_decay": decay}
        for p, (scale, decay) in zip(parameters, settings, strict=True)
    ]
    optimizer = build_optimizer("AdamW", groups, betas=(0.9, 0.95), eps=1e-8)
    lrs = [0.0, 0.02, 0.01]
    quadratic_steps(parameters, optimizer, gradients, lrs)
    for index, (scale, decay) in enumerate(settings):
        p = values[index].astype(np.float64)
        m = v = np.zeros_like(p)
        for step, lr in enumerate(lrs, start=1):
            g = gradients[step - 1][index].astype(np.float64)
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
            p = p - lr * scale * decay * p
            p = p - lr * scale * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
        assert_close(parameters[index].numpy(), p, FLOAT32_RELATIVE)


@pytest.mark.parametrize("grouped", [False, True])
def test_three_lars_steps_by_hand(problem, grouped):
    values, gradients, parameters = problem
    given = [{"params": parameters, "learning_rate": 1.0, "weight_decay": 0.0}] if grouped else parameters
    optimizer = LARS(0.0, given, weight_decay=0.01, momentum=0.9, trust_coefficient=0.001)
    lrs = [3.0, 6.4, 2.0]
    quadratic_steps(parameters, optimizer, gradients, lrs)
    for index, value in enumerate(values):
        p, velocity = value.astype(np.float64), 0.0
        for step, lr in enumerate(lrs):
            g = gradients[step][index].astype(np.float64)
            if p.ndim > 1:
                g = g + 0.01 * p
                g = g * 0.001 * np.linalg.norm(p) / np.linalg.norm(g)
            velocity = 0.9 * velocity + g
            p = p - lr * velocity
        assert_close(parameters[index].numpy(), p, FLOAT32_RELATIVE)


def test_lars_survives_zero_weights():
    parameter = paddle.create_parameter([2, 2], "float32", default_initializer=paddle.nn.initializer.Constant(0.0))
    quadratic_steps([parameter], LARS(0.0, [parameter]), [[np.ones((2, 2), np.float32)]], [0.5])
    assert parameter.tolist() == [[-0.5, -0.5], [-0.5, -0.5]]


def test_weight_average():
    model = paddle.nn.Linear(2, 1)
    model.weight.set_value(paddle.to_tensor([[1.0], [2.0]]))
    average = WeightAverage(model, decay=0.75)
    model.weight.set_value(paddle.to_tensor([[5.0], [2.0]]))
    average.update(model)
    assert average.state_dict()["weight"].tolist() == [[2.0], [2.0]]
    with average.swapped(model):
        assert model.weight.tolist() == [[2.0], [2.0]]
    assert model.weight.tolist() == [[5.0], [2.0]]


def test_networks_have_groups_with_rates_and_decays_of_their_own():
    """Two networks in one optimizer: AdamW's first step is lr * (sign of the gradient + decay * weight)."""
    networks = [paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 2)]
    groups = [*param_groups(networks[0], 0.1), *param_groups(networks[1], 0.5, lr_scale=3.0)]
    assert sorted((g["learning_rate"], g["weight_decay"]) for g in groups) == [(1, 0), (1, 0.1), (3, 0), (3, 0.5)]
    before = [network.weight.numpy() for network in networks]
    optimizer = build_optimizer("AdamW", groups)
    optimizer.set_lr(0.01)
    sum(network.weight.sum() + network.bias.sum() for network in networks).backward()
    optimizer.step()
    for network, old, rate, decay in zip(networks, before, (0.01, 0.03), (0.1, 0.5), strict=True):
        assert_close(network.weight.numpy(), old - rate * (1.0 + decay * old), FLOAT32_RELATIVE)


def test_lars_takes_the_decay_of_a_group():
    weight = paddle.create_parameter([2, 2], "float32", default_initializer=paddle.nn.initializer.Constant(1.0))
    optimizer = LARS(1.0, [{"params": [weight], "weight_decay": 1.0}], trust_coefficient=0.1)
    (weight.sum() * 0.0).backward()
    optimizer.step()  # g = 0 + 1 * w, scaled by 0.1 |w| / |g| = 0.1
    assert_close(weight.numpy(), np.full((2, 2), 0.9), FLOAT32_RELATIVE)


def orthogonalise_by_hand(matrix):
    """Newton-Schulz in float64, on the side that is not transposed."""
    x = matrix / (np.linalg.norm(matrix) + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


@pytest.mark.parametrize("shape", [(12, 48), (48, 12), (16, 16), (16, 48)])
def test_three_muon_steps_by_hand(shape):
    """Tall, wide, square, and a fused projection; the other layout gives the transposed result."""
    rng = np.random.default_rng(0)
    value, gradients = rng.normal(0, 1, shape), rng.normal(0, 1, (3, *shape)).astype(np.float32)
    results = []
    for transpose in (False, True):
        parameter = paddle.create_parameter(list(shape[::-1] if transpose else shape), "float32")
        parameter.set_value(paddle.to_tensor((value.T if transpose else value).astype(np.float32)))
        group = {"params": [parameter], "learning_rate": 0.5, "weight_decay": 0.1, "matrices": {parameter.name}}
        given = [[gradient.T if transpose else gradient] for gradient in gradients]
        quadratic_steps([parameter], build_optimizer("Muon", [group]), given, [0.0, 0.02, 0.01])
        results.append(parameter.numpy().T if transpose else parameter.numpy())
    p, m = value.astype(np.float32).astype(np.float64), np.zeros(shape)
    for gradient, lr in zip(gradients.astype(np.float64), [0.0, 0.02, 0.01], strict=True):
        m = 0.95 * m + 0.05 * gradient
        step = orthogonalise_by_hand(0.95 * m + 0.05 * gradient)
        p = p - 0.5 * lr * 0.1 * p - 0.5 * lr * 0.2 * math.sqrt(max(shape)) * step
    for result in results:
        np.testing.assert_allclose(result, p, atol=1e-5)
    singular = np.linalg.svd(orthogonalise(paddle.to_tensor(gradients[0])).numpy(), compute_uv=False)
    assert (singular < 1.3).all()
    assert np.median(singular) > 0.6


def test_muon_has_the_matrices_of_blocks_and_adamw_the_rest():
    paddle.seed(0)
    model = MAEPretrain(mae_architecture(encoder=(8, 2, 2)))
    groups, parameters = param_groups(model, 0.05), dict(model.named_parameters())
    names = {parameter.name: name for name, parameter in parameters.items()}
    matrices = {names[own] for group in groups for own in group["matrices"]}
    depths = {"encoder": len(model.encoder.layers), "decoder": len(model.decoder.layers)}
    assert matrices == {
        f"{tower}.layers.{index}.{part}.weight"
        for tower, depth in depths.items()
        for index in range(depth)
        for part in ("attn.qkv", "attn.out", "mlp.fc1", "mlp.fc2")
    }
    optimizer = build_optimizer("Muon", groups)
    size = model.architecture.image_hw
    model(paddle.rand([64, model.architecture.channels, *size]))[0].backward()  # gradients of full rank
    before = {name: parameter.numpy().copy() for name, parameter in parameters.items()}
    optimizer.set_lr(0.01)
    optimizer.step()
    steps = {name: parameter.numpy() - before[name] * (1 - 0.01 * 0.05) for name, parameter in parameters.items()}
    rms = [float(np.sqrt(np.mean(steps[name] ** 2))) for name in matrices]
    assert 0.2 * 0.01 * 0.5 < min(rms) <= max(rms) < 0.2 * 0.01 * 1.3, "as large as AdamW's steps"
    keys = optimizer.state_dict().keys()
    assert sum("velocity" in key for key in keys) == len(matrices)
    assert sum("moment1" in key for key in keys) == len(parameters) - len(matrices)
