"""The types in which each method computes under bf16 on a GPU, played on CPU with kernels of equal meaning."""

import paddle
import pytest

from config import replaced
from layers import cpu_kernels, kernels
from layers.cross_decoder import CrossDecoder
from measures.doctor import reference
from tests.helpers import mixed_precision
from training import device
from transformer import Transformer

pytestmark = pytest.mark.quick
LOW, HIGH = "low", "float32"
# By method: of q, k and v; of what attention gives; of the residual stream; of the loss. Level O1; with O2, the
# residual stream is in low precision, too.
TYPES = {
    "pretraining": ({LOW}, {LOW}, {HIGH}, HIGH),
    "pretraining, cross decoder": ({LOW}, {LOW}, {HIGH}, HIGH),
    "finetuning": ({LOW}, {LOW}, {HIGH}, HIGH),
    "linear probe": ({LOW}, {LOW}, {HIGH}, HIGH),
    "attentive probe": ({LOW}, {LOW}, {HIGH}, HIGH),
    "segmentation": ({LOW}, {LOW}, {HIGH}, HIGH),
    "MoCo v3": ({LOW}, {LOW}, {HIGH}, HIGH),
    "MAE-CT, head": ({LOW}, {LOW}, {HIGH}, HIGH),
    "MAE-CT, tuning": ({LOW}, {LOW}, {HIGH}, HIGH),
    "distillation": ({LOW}, {LOW}, {HIGH}, HIGH),
    "weak labels": ({LOW}, {LOW}, {HIGH}, HIGH),
    "LiT": ({LOW}, {LOW}, {HIGH}, HIGH),
}


def name_of(dtype) -> str:
    return {mixed_precision.LOW: LOW, paddle.float32: HIGH}.get(dtype, str(dtype))


@pytest.fixture
def seen(monkeypatch):
    """Play an A100 under bf16; returns the types that are seen, and the calls of flash attention."""
    seen = {"qkv": set(), "mixed": set(), "residual": set(), "loss": None, "flash": 0}
    mixed_precision.install(monkeypatch)
    monkeypatch.setattr(cpu_kernels, "are_usable", lambda tensor: False)
    monkeypatch.setattr(kernels, "_why_plain", lambda dtype, width, trains: "" if dtype == "float64" else "float32")
    monkeypatch.setattr(device, "is_on_gpu", lambda: True)
    monkeypatch.setattr(device, "is_on_cpu", lambda: False)

    def flash(query, key, value, mask=None, dropout_p=0.0, training=True):
        seen["flash"] += 1
        assert {tensor.dtype for tensor in (query, key, value)} == {mixed_precision.LOW}
        with mixed_precision.auto_cast(enable=False):
            query, key, value = (tensor.transpose([0, 2, 1, 3]) for tensor in (query, key, value))
            scores = paddle.matmul(query, key, transpose_y=True) * query.shape[-1] ** -0.5
            scores = scores if mask is None else scores + mask
            return paddle.matmul(paddle.nn.functional.softmax(scores), value).transpose([0, 2, 1, 3])

    attention = kernels.attention

    def seen_attention(qkv, *args, **options):
        mixed, logits = attention(qkv, *args, **options)
        seen["qkv"].add(name_of(qkv.dtype))
        seen["mixed"].add(name_of(mixed.dtype))
        return mixed, logits

    def seen_stack(stack):
        def forward(self, tokens, *args, **options):
            outputs = stack(self, tokens, *args, **options)
            seen["residual"].add(name_of((outputs[0] if isinstance(outputs, (list, tuple)) else outputs).dtype))
            return outputs

        return forward

    backward = paddle.Tensor.backward

    def seen_backward(loss, *args, **options):
        seen["loss"] = name_of(loss.dtype)
        return backward(loss, *args, **options)

    monkeypatch.setattr(paddle.Tensor, "backward", seen_backward)
    if kernels._packed_flash is not None:
        packed = lambda qkv, rate, training: (flash(*qkv.unbind(axis=2)), None)
        monkeypatch.setattr(kernels, "_packed_flash", packed)
    monkeypatch.setattr(paddle.nn.functional, "scaled_dot_product_attention", flash)
    monkeypatch.setattr(kernels, "attention", seen_attention)
    for kind in (Transformer, CrossDecoder):
        monkeypatch.setattr(kind, "forward", seen_stack(kind.forward))
    return seen


@pytest.mark.parametrize("level", ["O1", "O2"])
@pytest.mark.parametrize("method", reference.RECIPES)
def test_types_under_bf16(seen, tmp_path, monkeypatch, method, level):
    monkeypatch.setattr(device, "low_residual", lambda dtype: kernels.low_residual(dtype and "float64"))
    config = replaced(reference.configuration(method, tmp_path, amp="bf16"), "TRAIN.AMP_LEVEL", level)
    outcome, _ = reference.step(config)
    assert seen["flash"] > 0
    qkv, mixed, residual, loss = TYPES[method]
    assert (seen["qkv"], seen["mixed"], seen["loss"]) == (qkv, mixed, loss)
    assert seen["residual"] == (residual if level == "O1" else {LOW})
    assert outcome.gradients
    assert {str(value.dtype) for value in outcome.gradients.values()} == {"float32"}


def test_a_linear_layer_as_in_paddle_2_would_be_seen(seen, tmp_path, monkeypatch):
    """Its bias in float32 would make q, k and v float32, and so leave flash attention out."""
    monkeypatch.setattr(kernels, "_HAS_FUSED_LINEAR", True)
    monkeypatch.setattr(paddle._C_ops, "linear", mixed_precision.product_and_sum)
    reference.step(reference.configuration("pretraining", tmp_path, amp="bf16"))
    assert (seen["qkv"], seen["flash"]) == ({HIGH}, 0)
