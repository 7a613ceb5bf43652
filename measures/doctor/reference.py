"""A step of each method's small model: loss, predictions and gradients, on the device or in float64 on CPU."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle
import sentencepiece
from paddle import nn

import runtime
from config import get_config
from launch.run_directory import write_config
from measures.synthetic import synthetic_arrays
from measures.training_step import build_task, split_views
from pipeline.captions import TRAINER_OPTIONS
from storage import weight_files
from storage.run_files import MODEL_FILE
from storage.stored_tensor import StoredTensor
from training.device import autocast
from training.task import Task

_IMAGES = 32
_SMALL = ["MODEL.ENCODER.DEPTH", 2, "MODEL.DROPPATH", 0.0, "DATA.DATASET", "synthetic"]
_DECODER = ["MODEL.DECODER.DEPTH", 1]
_MICRO = "vit_micro_patch4_32"
# Recipes of each method, made smaller; what depends on files of its own gets them from `configuration`.
RECIPES = {
    "pretraining": (f"{_MICRO}_pretrain", _DECODER),
    "pretraining, cross decoder": (f"cross/{_MICRO}_pretrain_cross", [*_DECODER, "MODEL.DECODER.SOURCES", [0, 1, 2]]),
    "finetuning": (f"{_MICRO}_finetune", ["MODEL.NUM_CLASSES", 10]),
    "linear probe": (f"{_MICRO}_linearprobe", ["MODEL.NUM_CLASSES", 10]),
    "attentive probe": ("attentive/vit_micro_patch4_32_attentive_probe", ["MODEL.NUM_CLASSES", 10]),
    "segmentation": ("segmentation/vit_micro_patch4_64_segmentation", ["DATA.IMAGE_SIZE", 32]),
    "MoCo v3": (f"mae_lite/{_MICRO}_moco", ["MOCO.HIDDEN_DIM", 64, "MOCO.OUT_DIM", 32]),
    "MAE-CT, head": (f"mae_ct/{_MICRO}_contrastive_head", []),
    "MAE-CT, tuning": (f"mae_ct/{_MICRO}_contrastive_tuning", []),
    "distillation": (f"{_MICRO}_pretrain", _DECODER),
    "weak labels": (f"maws/{_MICRO}_wsp", ["MODEL.NUM_CLASSES", 10]),
    "LiT": (f"maws/{_MICRO}_lit", ["LIT.CACHE_FEATURES", False, "LIT.EVAL_DATASET", None]),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The numbers of a step.

    Attributes:
        loss: of the batch.
        predictions: the network's outputs in evaluation mode, one after the other.
        gradients: by names of parameters.
    """

    loss: float
    predictions: np.ndarray
    gradients: dict[str, np.ndarray]


def configuration(name: str, folder: Path, amp: str | bool = False):
    """Return the configuration of one of RECIPES; files that it needs are made in `folder`."""
    recipe, options = RECIPES[name]
    options = [*_SMALL, *options, "AMP", amp]
    if name == "LiT":
        options += ["LIT.TOKENIZER", str(_make_tokenizer(folder))]
    if name == "distillation":
        options += ["DISTILL.TEACHER", str(_make_teacher(folder))]
    return get_config(runtime.ROOT / "configs" / f"{recipe}.yaml", options)


def _make_tokenizer(folder: Path) -> Path:
    """Train a tokenizer on a few sentences."""
    texts = (f"a generated picture, number {number}" for number in range(100))
    files = {"sentence_iterator": texts, "model_prefix": str(folder / "tokenizer")}
    sentencepiece.SentencePieceTrainer.train(**files, vocab_size=100, minloglevel=2, **TRAINER_OPTIONS)
    return folder / "tokenizer.model"


def _make_teacher(folder: Path) -> Path:
    """Write the weights of an untrained pretraining model."""
    config = configuration("pretraining", folder)
    network = build_task(config).network
    tensors = {name: StoredTensor.of(value.numpy()) for name, value in network.state_dict().items()}
    architecture = network.architecture
    weight_files.write_pdparams(folder / MODEL_FILE, tensors, {architecture.KEY: architecture.to_dict()})
    write_config(folder, config)
    return folder / MODEL_FILE


def step(config, *, weights: dict[str, np.ndarray] | None = None, as_reference: bool = False) -> tuple[Outcome, dict]:
    """Do a step on the current device.

    Args:
        config: its AMP is the precision.
        weights: of the model, by name; None: those that the seed gives.
        as_reference: compute in float64.

    Returns:
        The outcome, and the weights before it.
    """
    paddle.seed(0)
    task = build_task(config)
    state = task.model.state_dict()
    for name, value in (weights or {}).items():
        state[name].set_value(value)
    before = {name: value.numpy() for name, value in state.items()}
    with contextlib.ExitStack() as contexts:
        contexts.enter_context(_same_draws())
        if as_reference:
            contexts.enter_context(_in_float64(task))
        return _outcome(task, config), before


def _outcome(task: Task, config) -> Outcome:
    images, labels = synthetic_arrays(config, _IMAGES)
    batch = split_views(config, images.astype(paddle.get_default_dtype()), labels)
    texts = [f"a generated picture, number {number}" for number in range(len(batch))]
    masks = paddle.to_tensor(np.random.default_rng(0).integers(-1, 8, (len(batch), *batch.images.shape[2:])))
    batch = dataclasses.replace(batch, captions=texts, masks=masks)
    task.model.train()
    with autocast(config):
        loss, _ = task.loss(task.model, batch, np.random.default_rng(0))
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in task.model.named_parameters() if p.grad is not None}
    task.model.eval()
    with paddle.no_grad(), autocast(config):
        outputs = getattr(task.network, "encode_images", task.network)(batch.images)
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    numbers = [output.astype("float32").numpy().astype(np.float64).ravel() for output in outputs if output is not None]
    return Outcome(float(loss), np.concatenate(numbers), gradients)


@contextlib.contextmanager
def _same_draws() -> Iterator[None]:
    """Draw masks and neighbours with NumPy, as each device has random numbers of its own."""
    rng, before = np.random.default_rng(0), (paddle.rand, paddle.randint)

    def rand(shape, *_: object):
        return paddle.to_tensor(rng.random(shape), paddle.get_default_dtype())

    def randint(low, high, shape, dtype):
        return paddle.to_tensor(rng.integers(low, high, shape), dtype)

    paddle.rand, paddle.randint = rand, randint
    try:
        yield
    finally:
        paddle.rand, paddle.randint = before


@contextlib.contextmanager
def _in_float64(task: Task) -> Iterator[None]:
    """Compute in float64, also where the code asks for float32."""
    for model in (task.model, *getattr(task.model, "_teacher", ())):
        _to_float64(model)
    astype, dtype = paddle.Tensor.astype, paddle.get_default_dtype()
    wider = {"float32": "float64", paddle.float32: "float64"}
    paddle.Tensor.astype = lambda tensor, dtype: astype(tensor, wider.get(dtype, dtype))
    paddle.set_default_dtype("float64")
    try:
        yield
    finally:
        paddle.Tensor.astype = astype
        paddle.set_default_dtype(dtype)


def _to_float64(model: nn.Layer) -> None:
    """Convert weights and buffers, but for those that count: Layer.to converts these, too."""
    kept = [
        (layer, name, buffer.clone())
        for layer in model.sublayers(include_self=True)
        for name, buffer in layer._buffers.items()
        if buffer is not None and buffer.dtype not in (paddle.float32, paddle.float64)
    ]
    model.to(dtype="float64")
    for layer, name, buffer in kept:
        layer._buffers[name] = buffer
