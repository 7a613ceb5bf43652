"""Estimates of the memory that a process needs to train or evaluate, without building the model. No Paddle here.

The peak of a training step is at the end of the forward pass (weights, moments, all activations) or at the end of the
backward pass (weights, moments, gradients, one layer's activations and their gradients), whichever is larger.

The constants were fitted to runs on CPU, which `tests/training/test_memory.py` lists: ViT-Base and -Large, pretraining
and finetuning, with and without recomputation. On GPUs nothing could be measured.
"""

import dataclasses
import math
from collections.abc import Iterator

from config import amp_dtype, image_size_hw, replaced
from layers.patch_counts import num_predicted, num_visible
from storage.architecture import SELF, Architecture, Tower
from storage.clip_architecture import ClipArchitecture, TextArchitecture
from training import resolution
from training.flops import TEXT_TOKENS, ratios, trained_depth
from training.shares import BUCKET_BYTES, largest_share
from training.task import ONE_PASS, Cost

GIB = 1 << 30
# Numbers per token and unit of width that a layer keeps for the backward pass: inputs of the norms and of the linear
# layers, queries, keys, values, their mixture, and twice the hidden layer of the MLP, which is four times as wide.
_KEPT, _KEPT_BY_DROP_PATH = 11.0, 2.5
_KEPT_PER_HIDDEN = 2.0
_KEPT_PER_PIXEL = 3.1  # copies of a segmenter's enlarged logits, by a measurement on CPU
_KEPT_IN_FLOAT32 = 2.0  # activations per block that are float32 under mixed precision, level O1: the residual stream
_TRANSIENT = 48.0  # gradients of a layer's activations while its backward pass runs
_MANY_RANKS = 8
_OVERHEAD = 1.06  # what the allocator cannot use
_FRAMEWORK_BYTES = {"cpu": 0.45 * GIB, "gpu": 1.0 * GIB}  # Paddle itself; a CUDA context and its libraries


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a process, by what they hold.

    Attributes:
        weights: in float32, and their copies in low precision.
        gradients: in float32.
        moments: the optimizer's, and averaged weights.
        activations: of all layers, kept for the backward pass.
        layer: what one layer needs while it is computed.
        framework: of Paddle itself.
    """

    weights: float
    gradients: float
    moments: float
    activations: float
    layer: float
    framework: float

    @property
    def peak(self) -> float:
        """The largest sum of a step."""
        forward = self.activations + self.layer / 2
        backward = self.gradients + self.layer
        return _OVERHEAD * (self.weights + self.moments + max(forward, backward)) + self.framework


@dataclasses.dataclass(frozen=True)
class Count:
    """Numbers of parameters: all, and those that train."""

    all: int
    trained: int


def count_parameters(architecture: Architecture | ClipArchitecture | TextArchitecture) -> Count:
    """Count the parameters of a network, and those that its method trains."""
    sizes = {name: math.prod(shape) for name, shape in architecture.shapes().items()}
    total = sum(sizes.values())
    if isinstance(architecture, ClipArchitecture):
        return Count(total, total - sum(math.prod(shape) for shape in architecture.image.shapes().values()))
    if isinstance(architecture, TextArchitecture):
        return Count(total, total)
    if architecture.probe:
        return Count(total, sum(size for name, size in sizes.items() if name.startswith("classifier.1")))
    fixed = 0
    if architecture.decoder is not None:
        fixed = sizes["encoder_position_embedding"] + sizes["decoder_position_embedding"]
    return Count(total, total - fixed)


def estimate(
    architecture: Architecture | ClipArchitecture,
    config,
    count: Count | None = None,
    cost: Cost = ONE_PASS,
    *,
    device: str = "cpu",
    ranks: int = 1,
) -> Memory:
    """Estimate the memory of a training process, or of an evaluating one (EVAL).

    Args:
        count: parameters; None: those of the architecture.
        cost: of a step of the method.
        device: "cpu", which has no low precision, or "gpu".
        ranks: over which TRAIN.SHARDING distributes moments and gradients.
    """
    count = count or count_parameters(architecture)
    stages = resolution.stages(config)
    if len(stages) > 1:
        options = {"device": device, "ranks": ranks}
        each = [(resolution.of_stage(architecture, s), replaced(s.config, "TRAIN.RESOLUTION", None)) for s in stages]
        return max((estimate(*one, count, cost, **options) for one in each), key=lambda memory: memory.peak)
    is_low = device == "gpu" and (config.AMP == "auto" or amp_dtype(config) is not None)
    layers = list(_layers(architecture, config, cost))
    kept = sum(layer.kept(config, is_low) for layer in layers if layer.trains)
    largest = max(layer.whole(config, is_low) for layer in layers)
    inputs = _inputs(architecture, config, cost)
    framework = _FRAMEWORK_BYTES[device]
    weights = (4 + 2 * is_low) * count.all
    if config.EVAL:
        weights = (2 if config.MODEL.DTYPE == "bfloat16" else 4) * count.all
        return Memory(weights, 0.0, 0.0, 0.0, largest + inputs, framework)
    sharding = config.TRAIN.SHARDING if ranks > 1 else "none"
    sizes = [math.prod(shape) for shape in architecture.shapes().values()]
    share = 1.0 if sharding == "none" else largest_share(sizes, ranks)
    gradients = 4.0 * count.trained
    if sharding == "gradients":
        gradients = min(gradients, gradients * share + 2 * max(BUCKET_BYTES, 4 * max(sizes)))  # one fills, one is sent
    moments = _moment_bytes(config, count) * share
    moments += 4 * count.all if config.TRAIN.EMA_DECAY else 0
    return Memory(weights, gradients, moments, kept + inputs, largest, framework)


def _moment_bytes(config, count: Count) -> float:
    return {"LARS": 4, "SGD": 4, "Muon": 4}.get(config.TRAIN.OPTIMIZER.NAME, 8) * count.trained


def fitting_batch(
    architecture: Architecture | ClipArchitecture,
    config,
    images: int,
    num_bytes: float,
    cost: Cost = ONE_PASS,
    *,
    device: str,
    ranks: int = 1,
) -> int:
    """Return the images of the largest micro-step, of equal ones, that memory is enough for by estimate; at least 1.

    Args:
        images: of a rank in an update, which the micro-steps divide.
        num_bytes: of memory that the rank may use.
        cost, device, ranks: as of `estimate`.
    """
    for batch in (images // steps for steps in range(1, images) if images % steps == 0):
        tried = replaced(config, "DATA.BATCH_SIZE", batch)
        if estimate(architecture, tried, cost=cost, device=device, ranks=ranks).peak <= num_bytes:
            return batch
    return 1


@dataclasses.dataclass(frozen=True)
class _Stack:
    """A stack of layers that a batch goes through.

    Attributes:
        elements: of one activation tensor: tokens of the batch times width.
        hidden: of the MLPs, as a multiple of the width.
        depth: layers whose activations are kept.
        scores: elements of the attention scores of a layer, and of what it reads besides.
        trains: gradients go through it.
    """

    elements: float
    hidden: float
    depth: int
    scores: float
    trains: bool

    def _of_layer(self, config, is_low: bool) -> float:
        """Return the bytes that a layer keeps without recomputation."""
        units = _KEPT + _KEPT_PER_HIDDEN * self.hidden + (_KEPT_BY_DROP_PATH if config.MODEL.DROPPATH else 0.0)
        high = _KEPT_IN_FLOAT32 if config.TRAIN.AMP_LEVEL == "O1" else 0.0
        bytes_per_unit = 4 * high + (2 if is_low else 4) * (units - high)
        return self.elements * bytes_per_unit + self.scores * (2 if is_low else 4)

    def kept(self, config, is_low: bool) -> float:
        """Return the bytes that all layers keep for the backward pass."""
        if config.TRAIN.RECOMPUTE:
            return self.depth * self.elements * (2 if is_low and config.TRAIN.AMP_LEVEL == "O2" else 4)
        return self.depth * self._of_layer(config, is_low)

    def whole(self, config, is_low: bool) -> float:
        """Return the bytes of one layer while it is computed, with the gradients of its activations."""
        if config.EVAL or not self.trains:
            return self._of_layer(config, is_low) / 2
        recomputed = self._of_layer(config, is_low) if config.TRAIN.RECOMPUTE else 0.0
        return recomputed + self.elements * _TRANSIENT * (2 if is_low else 4)


def _layers(architecture: Architecture | ClipArchitecture, config, cost: Cost) -> Iterator[_Stack]:
    """Yield the stacks of a network."""
    in_eval = config.DATA.BATCH_SIZE_EVAL if config.EVAL else None
    batch = cost.views * (in_eval or config.DATA.BATCH_SIZE)
    if isinstance(architecture, ClipArchitecture):
        text, image = architecture.text, architecture.image
        tokens = min(TEXT_TOKENS, text.positions - 2)
        yield _stack(text.tower, batch * tokens, text.mlp_ratio, text.tower.depth, batch * tokens**2)
        if not config.LIT.CACHE_FEATURES or config.EVAL:
            yield _stack(image.encoder, batch * (1 + math.prod(image.grid_hw)), image.mlp_ratio, 0, 0.0, trains=False)
        return
    num_patches, decoder = architecture.num_patches, architecture.decoder
    hides = decoder is not None
    mask_ratio, predict_ratio = ratios(config)
    visible = num_visible(num_patches, mask_ratio) if hides else num_patches
    depth = trained_depth(architecture, cost.trained_blocks)
    yield _stack(architecture.encoder, batch * (1 + visible), architecture.mlp_ratio, depth, 0.0, trains=depth > 0)
    if not hides:
        return
    predicted = num_predicted(num_patches, mask_ratio, predict_ratio)
    if architecture.decoder_kind == SELF:
        yield _stack(decoder, batch * (1 + visible + predicted), architecture.mlp_ratio, decoder.depth, 0.0)
        return
    # Each block keeps a mixture, its norm, keys, values, and scores twice.
    read = 2 * (1 + visible) * (architecture.encoder.width + decoder.width + decoder.heads * predicted)
    yield _Stack(batch * predicted * decoder.width, architecture.mlp_ratio, decoder.depth, batch * read, True)


def _stack(tower: Tower, tokens: float, hidden: float, depth: int, scores: float, trains: bool = True) -> _Stack:
    return _Stack(tokens * tower.width, hidden, depth, 2 * scores * tower.heads, trains)


def _inputs(architecture: Architecture | ClipArchitecture, config, cost: Cost) -> float:
    """Return the bytes of images, as the loader and the model have them, and of a decoder's prediction and target."""
    data = config.DATA
    if isinstance(architecture, ClipArchitecture) and config.LIT.CACHE_FEATURES and not config.EVAL:
        return 4 * data.BATCH_SIZE * architecture.image.encoder.width
    numbers = cost.views * data.BATCH_SIZE * data.IMAGE_CHANNELS * math.prod(image_size_hw(config))
    predicted = 5 * 4 * numbers if getattr(architecture, "decoder", None) is not None else 0
    logits = 3 * 4 * data.BATCH_SIZE * getattr(architecture, "num_classes", 0)
    if getattr(architecture, "segmented_layers", ()):  # enlarged to the images' size
        logits *= math.prod(image_size_hw(config)) * _KEPT_PER_PIXEL / 3
    return numbers * (4 + 1 + 2 * data.NUM_WORKERS) + predicted + logits


# ---- words --------------------------------------------------------------------------------------


def describe(
    architecture: Architecture | ClipArchitecture, config, gpu_gib: float, ranks: int | None, cost: Cost = ONE_PASS
) -> str:
    """Return lines that say what a GPU needs for a configuration, and for its variants, and whether it has it.

    Args:
        gpu_gib: memory of a GPU in GiB.
        ranks: number of GPUs; None: sharding is shown for `_MANY_RANKS`.
        cost: of a step of the method.

    With MODEL.NUM_CLASSES None, the head is not counted, and the lines say so.
    """
    count, ranks = count_parameters(architecture), ranks or _MANY_RANKS
    lines = [
        f"{architecture.content}: {architecture}",
        f"{count.all:,} parameters, {count.trained:,} of them train; estimates, not measured on a GPU, without a "
        "method's heads, teacher and momentum network",
    ]
    has_head = config.MODEL.NUM_CLASSES is not None
    if not has_head:
        each = 16 * architecture.encoder.width + 12 * config.DATA.BATCH_SIZE
        lines.append(
            f"without the head, as MODEL.NUM_CLASSES follows the data, which is not there: {1e5 * each / GIB:.1f} "
            "GiB more for each 100,000 classes; -opts MODEL.NUM_CLASSES N counts it"
        )
    fits = False
    for words, variant in _variants(config, ranks):
        memory = estimate(architecture, variant, count, cost, device="gpu", ranks=ranks)
        parts = {
            "weights": memory.weights,
            "gradients": memory.gradients,
            "optimizer": memory.moments,
            "activations": max(memory.activations, memory.layer),
        }
        shown = ", ".join(f"{name} {value / GIB:.1f}" for name, value in parts.items() if value)
        verdict = "does NOT fit" if memory.peak > gpu_gib * GIB else "fits" if has_head else "without its head fits"
        fits = fits or memory.peak <= gpu_gib * GIB
        lines.append(f"{words}: {memory.peak / GIB:.1f} GiB per GPU ({shown}); {verdict} {gpu_gib:g} GiB")
    if not config.EVAL:
        lines.append(_describe_host(architecture, config, count, ranks))
    if not fits:
        lines.append(
            f"nothing fits {ranks} x {gpu_gib:g} GiB: every GPU keeps all weights; Paddle can distribute these, too "
            "(paddle.distributed.sharding.group_sharded_parallel, level p_g_os), and this project does not"
        )
    return "\n".join(lines)


def _describe_host(architecture: Architecture | ClipArchitecture, config, count: Count, ranks: int) -> str:
    """Say what a checkpoint takes while it is written: it is copied whole, or with sharding read tensor by tensor."""
    whole = (8 if config.TRAIN.EMA_DECAY else 4) * count.all + _moment_bytes(config, count)
    tensor = 4 * max(math.prod(shape) for shape in architecture.shapes().values()) if ranks > 1 else whole
    return (
        f"host of the first GPU, while a checkpoint is written: {whole / GIB:.1f} GiB more, with any sharding "
        f"{tensor / GIB:.1f}; other hosts: none"
    )


_SHARDED = {"none": "", "optimizer": "optimizer", "gradients": "optimizer and gradients"}  # in words


def _variants(config, ranks: int) -> Iterator[tuple[str, object]]:
    """Yield the configuration, and the same with other precision, recomputation and sharding."""
    yield "as configured", config
    if config.EVAL:
        yield "with bfloat16 weights", _with(config, MODEL={"DTYPE": "bfloat16"})
        return
    for precision, amp in (("float32", False), ("bf16", "bf16")):
        for recompute in (False, True):
            for sharding, what in _SHARDED.items() if ranks > 1 else [("none", "")]:
                words = [precision, *["recompute"] * recompute, *[f"{what} sharded over {ranks} GPUs"] * bool(what)]
                yield ", ".join(words), _with(config, AMP=amp, TRAIN={"RECOMPUTE": recompute, "SHARDING": sharding})


def _with(config, **sections: object):
    """Return a copy of a configuration with other values."""
    copy = config.clone()
    copy.defrost()
    for key, value in sections.items():
        if isinstance(value, dict):
            copy[key].update(value)
        else:
            copy[key] = value
    copy.freeze()
    return copy
