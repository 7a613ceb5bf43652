"""Eager mixed precision (O1) on CPU, where Paddle has none: the casts that its C++ makes on GPUs, by its own lists.

Float64 stands for bfloat16, as Paddle's CPU kernels take no bfloat16: only the types matter here, not the rounding. An
operation of the white list casts float32 to it, one of the black list casts back, and any other casts back if one of
its operands is float32 (paddle/fluid/eager/amp_utils.h).
"""

import contextlib

import paddle

LOW = paddle.float64
_FLUID_NAMES = {  # in the lists, by names in paddle._C_ops
    "sum": "reduce_sum",
    "mean": "reduce_mean",
    "cross_entropy_with_softmax": "softmax_with_cross_entropy",
    "embedding": "lookup_table_v2",
    "matmul": "matmul_v2",
}
_WITHOUT_CASTS = ("cast", "full", "full_like", "empty_like", "share_data", "assign", "assign_out_")
_BINARY = ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv")
_state = {"active": False}


@contextlib.contextmanager
def auto_cast(enable=True, level="O1", **options):
    """Take the place of paddle.amp.auto_cast."""
    before, _state["active"] = _state["active"], enable and level == "O1"
    try:
        yield
    finally:
        _state["active"] = before


def install(monkeypatch) -> None:
    """Put the casts into Paddle's operations; `paddle.amp.auto_cast` switches them on."""
    white, black = (lists["bfloat16"]["O1"] for lists in (paddle.amp.white_list(), paddle.amp.black_list()))
    operations, linear = vars(paddle._C_ops), paddle._C_ops.linear
    for name, operation in list(operations.items()):
        if callable(operation) and not name.startswith("_") and not name.endswith("_") and name not in _WITHOUT_CASTS:
            listed = {name, _FLUID_NAMES.get(name, name)}
            wanted = LOW if listed & white else paddle.float32 if listed & black else None
            monkeypatch.setattr(paddle._C_ops, name, _with_casts(operation, wanted))
    for name in (f"__{word}__" for word in _BINARY):
        monkeypatch.setattr(paddle.Tensor, name, _with_casts(getattr(paddle.Tensor, name), None))
    layer_norm = paddle._C_ops.layer_norm
    monkeypatch.setattr(paddle._C_ops, "layer_norm", lambda *args: layer_norm(*_like_first(args)))
    # In builds for CUDA, F.linear of Paddle 3 calls linear_v2, which has the same meaning.
    linear = _with_casts(linear, LOW) if "linear_v2" in white else product_and_sum
    monkeypatch.setattr(paddle._C_ops, "linear", linear)
    monkeypatch.setattr(paddle.amp, "auto_cast", auto_cast)


def _like_first(args: tuple) -> list:
    """Give weights the inputs' type: kernels of GPUs take low inputs and float32 weights, those of CPUs do not."""
    return [_cast(value, args[0].dtype) for value in args]


def product_and_sum(inputs, weight, bias=None):
    """Be the linear layer of Paddle 2.6, which casts as its two operations do."""
    product = paddle.matmul(inputs, weight)
    return product if bias is None else product + bias


def _with_casts(operation, wanted):
    def call(*args, **options):
        if not _state["active"]:
            return operation(*args, **options)
        given = {value.dtype for value in _tensors(args)}
        target = wanted or (paddle.float32 if paddle.float32 in given else None)
        args = [_cast(value, target) for value in args] if target is not None else args
        return operation(*args, **options)

    return call


def _tensors(values) -> list:
    found = []
    for value in values:
        found += _tensors(value) if isinstance(value, (list, tuple)) else [value]
    return [value for value in found if isinstance(value, paddle.Tensor)]


def _cast(value, target):
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(one, target) for one in value)
    is_float = isinstance(value, paddle.Tensor) and value.dtype in (paddle.float32, LOW)
    return paddle._C_ops.cast(value, target) if is_float and value.dtype != target else value
