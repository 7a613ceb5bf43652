"""Attentive poolers against an own implementation in torch: outputs, gradients and three steps."""

import math

import numpy as np
import paddle
import pytest

from layers import poolers
from tests.conftest import assert_close

pytestmark = pytest.mark.quick
B, N, D, Q, A = 3, 7, 24, 4, 3
UNSEEN = {"key.bias", "key_norm.bias"}  # they add one number to all scores of a query: no gradient in theory


def make(kind):
    paddle.seed(0)
    pooler = {
        "ep": lambda: poolers.EfficientPooling(D, Q, 2),
        "aim": lambda: poolers.AttentionPooling(D, A, 2),
        "capi": lambda: poolers.AttentionPooling(D, A, norm=False),
        "vjepa": lambda: poolers.CrossAttentionPooling(D, A),
        "cae": lambda: poolers.CrossAttentionPooling(D, A, block=False),
    }[kind]()
    rng = np.random.default_rng(0)
    for parameter in trained(pooler).values():
        parameter.set_value((0.3 * rng.standard_normal(parameter.shape)).astype(np.float32))
    return pooler


def trained(pooler):
    return {name: value for name, value in pooler.named_parameters() if not value.stop_gradient}


def tokens(step=0):
    return np.random.default_rng([1, step]).standard_normal((B, N, D)).astype(np.float32)


def reference(kind, weights, x):
    """Compute a pooler in torch, head by head, from {name: tensor} in Paddle's layout."""
    import torch

    def linear(name, values):
        values = values @ weights[f"{name}.weight"]
        return values + weights[f"{name}.bias"] if f"{name}.bias" in weights else values

    def layer_norm(name, values):
        return torch.nn.functional.layer_norm(values, (D,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    queries = weights["queries"]
    if kind == "ep":
        values, width = linear("value", x), D // 2 // Q
        slices = []
        for number in range(Q):
            attention = torch.softmax(x @ queries[number] / math.sqrt(D), dim=1)  # [B, N]
            slices.append((attention.unsqueeze(-1) * values[:, :, number * width : (number + 1) * width]).sum(dim=1))
        return torch.cat(slices, dim=1)
    if kind == "aim":
        mean, variance = x.mean(dim=(0, 1)), x.var(dim=(0, 1), unbiased=False)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
    if kind in ("aim", "capi"):
        query, key, value = queries, linear("key", x), linear("value", x)
    elif kind == "vjepa":
        normed = layer_norm("norm", x)
        query, key, value = linear("query", queries), linear("key", normed), linear("value", normed)
    else:
        query = linear("query", layer_norm("query_norm", queries))
        key, value = linear("key", layer_norm("key_norm", x)), linear("value", layer_norm("value_norm", x))
    d, outputs = D // A, []
    for head in range(A):
        part = slice(head * d, (head + 1) * d)
        attention = torch.softmax(query[:, part] @ key[..., part].transpose(1, 2) / math.sqrt(d), dim=-1)  # [B, Q, N]
        outputs.append((attention @ value[..., part]).mean(dim=1))
    pooled = torch.cat(outputs, dim=1)
    if kind == "vjepa":
        pooled = queries + pooled
        hidden = torch.nn.functional.gelu(linear("mlp.fc1", layer_norm("mlp_norm", pooled)))
        return pooled + linear("mlp.fc2", hidden)
    return linear("out", pooled) if kind == "cae" else pooled


@pytest.mark.parametrize("kind", ["ep", "aim", "capi", "vjepa", "cae"])
def test_three_steps_are_those_of_torch(kind):
    torch = pytest.importorskip("torch")
    pooler = make(kind)
    pooler.train()
    ours = trained(pooler)
    theirs = {name: torch.tensor(value.numpy(), requires_grad=True) for name, value in ours.items()}
    sgd = paddle.optimizer.Momentum(1e-4, 0.9, parameters=pooler.parameters())
    other = torch.optim.SGD(theirs.values(), lr=1e-4, momentum=0.9)
    target = np.random.default_rng(2).standard_normal((B, pooler.out_width)).astype(np.float32)
    for step in range(3):
        found = pooler(paddle.to_tensor(tokens(step)))
        wanted = reference(kind, theirs, torch.tensor(tokens(step)))
        assert_close(found.numpy(), wanted.detach().numpy(), 1e-5)
        loss = (found - paddle.to_tensor(target)).square().sum()
        expected = (wanted - torch.tensor(target)).square().sum()
        assert float(loss) == pytest.approx(float(expected), rel=1e-5)
        loss.backward()
        expected.backward()
        for name, parameter in ours.items():
            own, gradient = parameter.grad.numpy(), theirs[name].grad.numpy()
            if name in UNSEEN:
                assert max(np.abs(own).max(), np.abs(gradient).max()) < 1e-3  # beside gradients of 1 to 100
            else:
                assert_close(own, gradient, 2e-5)  # sums of 21 rows in float32, in another order
        for optimizer in (sgd, other):
            optimizer.step()
        sgd.clear_grad()
        other.zero_grad()
    for name in ours.keys() - UNSEEN:
        assert_close(ours[name].numpy(), theirs[name].detach().numpy(), 2e-5)


@pytest.mark.parametrize("kind", ["ep", "aim", "capi", "vjepa", "cae"])
def test_attention_is_a_mean_over_the_tokens(kind):
    pooler = make(kind)
    pooler.eval()
    weights = pooler.attention(paddle.to_tensor(tokens()))
    assert weights.shape == [B, Q if kind == "ep" else A, N]
    assert_close(weights.sum(axis=-1).numpy(), np.ones(weights.shape[:2]), 1e-6)
    one = pooler(paddle.to_tensor(tokens()[:1]))
    assert one.shape == [1, pooler.out_width], "a batch of one keeps its axis"
    assert_close(one.numpy(), pooler(paddle.to_tensor(tokens())).numpy()[:1], 1e-5)


def test_first_weights_are_those_of_the_papers():
    paddle.seed(0)
    ep = poolers.EfficientPooling(512, 32)
    assert sum(p.size for p in ep.parameters()) == 32 * 512 + 512 * 512
    assert float(ep.queries.std()) == pytest.approx(0.02, rel=0.05)
    assert float(ep.value.weight.abs().max()) <= 512**-0.5
    assert float(ep.value.weight.std()) == pytest.approx((3 * 512) ** -0.5, rel=0.02)
    assert sum(p.size for p in poolers.EfficientPooling(768, 32).parameters()) + (768 + 1) * 1000 == 1_383_400
    block = poolers.CrossAttentionPooling(512, 8)
    assert float(block.mlp.fc2.weight.std()) == pytest.approx(0.02 / math.sqrt(2), rel=0.02)
    assert not any(float(p.abs().max()) for name, p in block.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(("kind", "arguments"), [("EfficientPooling", (24, 5)), ("AttentionPooling", (24, 5))])
def test_numbers_that_do_not_divide_are_named(kind, arguments):
    with pytest.raises(ValueError, match=r"do not divide the width 24"):
        getattr(poolers, kind)(*arguments)


def test_a_probes_norm_with_a_gradient_is_the_same_as_without():
    from layers.basic import ProbeNorm

    own, frozen = ProbeNorm(D), ProbeNorm(D)
    for step in range(3):
        features = paddle.to_tensor(tokens(step).reshape(-1, D))
        other = features.clone()
        features.stop_gradient = False
        assert_close(own(features).numpy(), frozen(other).numpy(), 1e-5)
    assert_close(own._mean.numpy(), frozen._mean.numpy(), 1e-6)
    assert_close(own._variance.numpy(), frozen._variance.numpy(), 1e-5)
