"""Training on a static graph is the same training."""

import numpy as np
import paddle
import pytest

from config import get_config
from errors import UserError
from layers.kernels import linear
from methods import dispatch
from training import static_graph

pytestmark = pytest.mark.quick


def train(tiny_run, mode, *options):
    """Return the weights after training, and what was said."""
    run = tiny_run(mode, *options)
    said = []
    run.log.say = said.append
    dispatch.train_or_evaluate(run)
    weights = paddle.load(str(run.directory / "latest" / "model.pdparams"))
    return {name: np.asarray(value) for name, value in weights.items()}, "\n".join(said)


GROUPS = ["MODEL.CHANNEL_GROUPS", [[1], [0, 2]]]
CROSS = ["MODEL.DECODER.KIND", "cross", "MODEL.DECODER.SOURCES", [0, 2], "MODEL.PREDICT_RATIO", 0.25]


@pytest.mark.parametrize(
    ("mode", "batch", "accum", "others"),
    [
        ("pretrain", 256, 1, []),
        ("pretrain", 256, 1, CROSS),
        ("pretrain", 256, 1, GROUPS),
        ("finetune", 100, 3, []),
        ("finetune", 100, 3, GROUPS),
        ("linearprobe", 256, 1, []),
    ],
)
def test_a_static_graph_trains_alike(tiny_run, mode, batch, accum, others):
    """To 1e-4 of each tensor's largest value: other kernels on CPU (see cpu_kernels.py), and some steps of Adam.

    1,024 images of 100 a time make updates of 300, 300, 300 and 124, and the last one adds up gradients of 100 and 24.
    """
    options = [
        *others,
        "TRAIN.NUM_EPOCHS",
        1,
        "DATA.BATCH_SIZE",
        batch,
        "TRAIN.ACCUM_ITER",
        accum,
        "MODEL.DROPPATH",
        0.0,
    ]
    eager, _ = train(tiny_run, mode, *options)
    static, said = train(tiny_run, mode, *options, "TRAIN.TO_STATIC", True)
    assert "the model runs as a static graph" in said
    for name, expected in eager.items():
        if name.endswith(("attn.qkv.bias", "attn.kv.bias")):  # a key's bias has no gradient but rounding errors
            continue
        np.testing.assert_allclose(
            static[name], expected, rtol=0, atol=1e-4 * np.abs(expected).max() + 1e-7, err_msg=name
        )


@pytest.mark.skipif(paddle.__version__.startswith("2."), reason="its programs are of another kind")
def test_mixed_precision_reaches_attention():
    """Else it would not be fused on a GPU: with a float32 bias, a traced F.linear puts float32 out."""
    with paddle.pir_utils.IrGuard():
        program = paddle.static.Program()
        with paddle.static.program_guard(program):
            inputs, weight = (paddle.static.data(name, [4, 4], "bfloat16") for name in ("inputs", "weight"))
            outputs = linear(inputs, weight, paddle.static.data("bias", [4], "float32"))
            assert "BFLOAT16" in str(outputs.dtype).upper()


def test_where_tracing_fails_the_run_goes_on_and_says_so(tiny_run, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no such\noperator")

    options = ["TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 256]
    eager, _ = train(tiny_run, "linearprobe", *options)
    monkeypatch.setattr(static_graph.paddle.jit, "to_static", fail)
    other, said = train(tiny_run, "linearprobe", *options, "TRAIN.TO_STATIC", "cinn")
    assert "without CINN" in said
    assert "cannot trace the model (RuntimeError: no such operator); it runs eagerly" in said
    for name, expected in eager.items():
        np.testing.assert_array_equal(other[name], expected, err_msg=name)


def test_static_graphs_and_recomputation_exclude_each_other():
    with pytest.raises(UserError, match=r"TRAIN\.RECOMPUTE"):
        get_config(None, ["TRAIN.TO_STATIC", True, "TRAIN.RECOMPUTE", True])
    with pytest.raises(UserError, match=r"TRAIN\.TO_STATIC"):
        get_config(None, ["TRAIN.TO_STATIC", "xla"])
