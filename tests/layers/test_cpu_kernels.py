"""The kernels for CPU against Paddle's own: values and every gradient; differences are roundings."""

import paddle
import paddle.nn.functional as F
import pytest

from layers import cpu_kernels
from tests.conftest import assert_close
from transformer import Attention, Linear

pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def seed():
    paddle.seed(0)


def draw(*shape, scale=1.0):
    tensor = paddle.randn(shape) * scale
    tensor.stop_gradient = False
    return tensor


def compare(ours, theirs, inputs, relative=1e-5):
    """Compare two functions and their gradients for a random gradient of the result."""
    expected = theirs(*inputs)
    grad = paddle.randn(expected.shape)
    actual = ours(*inputs)
    assert_close(actual.numpy(), expected.numpy(), relative)
    grads = [paddle.grad(result, inputs, grad) for result in (actual, expected)]
    for one, other in zip(*grads, strict=True):
        assert_close(one.numpy(), other.numpy(), relative)


@pytest.mark.parametrize("shape", [[7, 6], [2, 5, 6], [2, 3, 4, 6]])
def test_linear(shape):
    compare(cpu_kernels.linear, F.linear, [draw(*shape), draw(6, 5), draw(5)])


@pytest.mark.parametrize("frozen", [(0,), (1, 2), (0, 2)])
def test_linear_gives_no_gradient_where_none_is_wanted(frozen):
    inputs = [draw(3, 6), draw(6, 5), draw(5)]
    for index in frozen:
        inputs[index].stop_gradient = True
    cpu_kernels.linear(*inputs).sum().backward()
    assert [tensor.grad is None for tensor in inputs] == [index in frozen for index in range(3)]


def plain_attention(qkv):
    query, key, value = qkv.transpose([2, 0, 3, 1, 4]).unbind(axis=0)
    scores = paddle.matmul(query * qkv.shape[-1] ** -0.5, key, transpose_y=True)
    return paddle.matmul(F.softmax(scores, axis=-1), value).transpose([0, 2, 1, 3])


@pytest.mark.parametrize(("batch", "tokens", "heads", "width"), [(3, 7, 2, 4), (1, 1, 1, 8), (2, 50, 12, 16)])
@pytest.mark.parametrize("scale", [1.0, 30.0])  # with 30, scores reach hundreds: the exponential must not overflow
@pytest.mark.parametrize("at_once", [1, 2 * 7 * 7 * 2, 1 << 20])  # one image, two, all
def test_attention(monkeypatch, batch, tokens, heads, width, scale, at_once):
    monkeypatch.setattr(cpu_kernels, "_SCORES_AT_ONCE", at_once)
    # A score of some hundreds has a float32 spacing of 3e-5, and so has the logarithm of a weight.
    relative = 2e-5 if scale == 1.0 else 1e-4
    compare(cpu_kernels.attention, plain_attention, [draw(batch, tokens, 3, heads, width, scale=scale)], relative)


def test_layers_take_them_on_cpu_and_plain_ones_elsewhere(monkeypatch):
    paddle.seed(1)
    attention, tokens = Attention(16, 2, True, 0.0, 0.0), draw(2, 5, 16)
    linear = Linear(16, 4)
    used = []
    for name in ("linear", "attention"):
        original = getattr(cpu_kernels, name)
        monkeypatch.setattr(cpu_kernels, name, lambda *a, f=original, n=name: used.append(n) or f(*a))
    here = attention(tokens), linear(tokens)
    assert used == ["linear", "attention", "linear", "linear"]
    monkeypatch.setattr(cpu_kernels, "are_usable", lambda tensor: False)
    there = attention(tokens), linear(tokens)
    assert len(used) == 4
    for one, other in zip(here, there, strict=True):
        assert_close(one.numpy(), other.numpy(), 1e-5)


def test_low_precision_and_traced_programs_go_without():
    assert cpu_kernels.are_usable(paddle.ones([1]))
    assert not cpu_kernels.are_usable(paddle.ones([1], "float16"))
    linear = Linear(6, 5)
    inputs = paddle.randn([3, 6])
    for full_graph in (True, False):
        spec = [paddle.static.InputSpec([None, 6])]
        traced = paddle.jit.to_static(linear, input_spec=spec, full_graph=full_graph)
        assert_close(traced(inputs).numpy(), F.linear(inputs, linear.weight, linear.bias).numpy(), 1e-6)


@pytest.mark.parametrize("shape", [[7, 8], [2, 5, 64]])
@pytest.mark.parametrize("shift", [0.0, 50.0])  # far from zero, a variance as a difference of squares would be wrong
def test_layer_norm(shape, shift):
    inputs = [(draw(*shape) + shift).detach(), draw(shape[-1]), draw(shape[-1])]
    inputs[0].stop_gradient = False
    # Both compute x - mean in float32, where 50 leaves 4e-6 of the deviation.
    relative = 1e-5 if shift == 0.0 else 2e-4
    names = [shape[-1:], *inputs[1:], 1e-6]
    compare(lambda *x: cpu_kernels.layer_norm(*x, 1e-6), lambda *x: F.layer_norm(x[0], *names), inputs, relative)


def test_layer_norm_of_equal_values_is_its_bias():
    inputs = [paddle.full([3, 8], 5.0), draw(8), draw(8)]
    inputs[0].stop_gradient = False
    outputs = cpu_kernels.layer_norm(*inputs, 1e-6)
    assert_close(outputs.numpy(), inputs[2].expand([3, 8]).numpy(), 1e-6)
    outputs.sum().backward()
    assert all(bool(paddle.isfinite(tensor.grad).all()) for tensor in inputs)
