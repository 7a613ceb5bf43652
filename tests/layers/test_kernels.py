"""Which kernels are chosen on a GPU, with CPU kernels of equal meaning in their place."""

import numpy as np
import paddle
import pytest

from layers import kernels

pytestmark = pytest.mark.quick


@pytest.fixture
def on_gpu(monkeypatch):
    """Let a GPU of compute capability 8.0 be the device, as far as the choice of kernels goes."""
    monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(kernels, "_compute_capability", lambda: (8, 0))


def test_a_linear_layer_stays_in_the_precision_of_its_product(monkeypatch):
    """Mixed precision casts the operands of a product only; a float32 bias must not undo it, as in 2.6's F.linear.

    Float64 stands for the other precision, as Paddle adds no float16 on CPU.
    """
    product = paddle.matmul
    monkeypatch.setattr(paddle, "matmul", lambda x, y, **options: product(x, y, **options).astype("float64"))
    monkeypatch.setattr(kernels.cpu_kernels, "are_usable", lambda tensor: False)
    monkeypatch.setattr(kernels, "_HAS_FUSED_LINEAR", False)
    inputs, weight, bias = paddle.randn([2, 3, 4]), paddle.randn([4, 5]), paddle.randn([5])
    outputs = kernels.linear(inputs, weight, bias)
    assert outputs.dtype == paddle.float64
    expected = (product(inputs, weight) + bias).numpy()
    assert abs(outputs.numpy() - expected).max() < 1e-5  # float32


@pytest.mark.parametrize(
    ("head_dim", "trains", "capability", "fits"),
    [
        (64, True, (8, 0), True),
        (32, True, (8, 6), True),
        (80, True, (9, 0), True),
        (12, True, (8, 0), False),
        (264, False, (8, 0), False),
        (256, True, (8, 0), True),
        (200, True, (8, 6), False),
        (200, False, (8, 6), True),
        (64, True, (7, 5), False),
    ],
)
def test_flash_attention_is_chosen_where_its_kernel_takes_the_heads(
    on_gpu, monkeypatch, head_dim, trains, capability, fits
):
    monkeypatch.setattr(kernels, "_compute_capability", lambda: capability)
    chosen = []

    def flash(qkv, dropout, training):
        chosen.append(qkv.dtype)
        return qkv[:, :, 2], None

    monkeypatch.setattr(kernels, "_packed_flash", flash)
    monkeypatch.setattr(kernels.F, "softmax", lambda scores, axis: scores)
    qkv = paddle.zeros([1, 3, 3, 1, head_dim], "float16")
    qkv.stop_gradient = not trains
    monkeypatch.setattr(paddle, "matmul", lambda x, y, **options: x if options.get("transpose_y") else y)
    kernels.attention(qkv)
    assert bool(chosen) is fits
    told = kernels.describe_attention("float16", [head_dim], trains=trains)
    assert told.startswith("flash") is fits, told


@pytest.mark.parametrize("has_mask", [False, True])
def test_what_goes_to_the_flash_kernel_gives_what_the_plain_one_gives(on_gpu, monkeypatch, has_mask):
    """Paddle computes both functions plainly on CPU, so their order of axes is the same; in float32, to 1e-6."""
    if has_mask and kernels._packed_flash is None:
        pytest.skip("Paddle 2.6 has no plain kernel for a mask")
    bias = paddle.to_tensor([[0.0, 0.0, -1e4], [0.0, -1e4, 0.0]]).reshape([2, 1, 1, 3]) if has_mask else None
    results = []
    for is_flash in (True, False):
        monkeypatch.setattr(kernels, "_why_plain", lambda *arguments, is_flash=is_flash: "" if is_flash else "no")
        monkeypatch.setattr(kernels.cpu_kernels, "are_usable", lambda tensor: False)
        qkv = paddle.to_tensor(
            np.random.default_rng(0).standard_normal((2, 3, 3, 2, 8)), "float32", stop_gradient=False
        )
        mixed, _ = kernels.attention(qkv, bias)
        assert mixed.shape == [2, 3, 2, 8]
        (mixed * paddle.arange(96, dtype="float32").reshape([2, 3, 2, 8])).sum().backward()
        results.append((mixed.numpy(), qkv.grad.numpy()))
    for flash, plain in zip(*results, strict=True):
        assert abs(flash - plain).max() < 1e-6 * abs(plain).max()
