"""Contrastive tuning of a pretrained autoencoder (MAE-CT, arXiv 2304.10520), in two stages.

The head stage trains a head on the frozen encoder. It predicts, from one view of an image, the nearest neighbour of the
other view among the projections of earlier images (`nnclr_head.py`). The tuning stage then trains the upper half of the
encoder together with the head. Its result is an ordinary encoder.
"""

import numpy as np
import paddle
from paddle import nn

from config import replaced
from errors import UserError, abridge
from methods import start
from methods.method import Method
from methods.nnclr_head import NNCLRHead
from optim import param_groups
from pipeline.contrastive_augment import two_views
from pipeline.loading import Batch
from pipeline.transforms import Transform, train_transform
from storage import weight_files
from storage.run_files import EXTRA_FILE
from training.optimizers import configured_optimizer, weight_average
from training.run import Run
from training.task import Cost, Task
from transformer import VisionTransformer, build_transformer

# ---- network -----------------------------------------------------------------------------------


class ContrastiveTuning(nn.Layer):
    """Encoder and head; the lower blocks of the encoder are frozen.

    Args:
        encoder: without a classifier, with a last norm.
        head: reads the pooled features.
        num_frozen: lower blocks that do not train, with embeddings; the number of blocks freezes the norm, too.
    """

    def __init__(self, encoder: VisionTransformer, head: NNCLRHead, num_frozen: int):
        super().__init__()
        self.encoder, self.head, self.num_frozen = encoder, head, num_frozen
        depth = len(encoder.encoder.layers)
        for name, parameter in encoder.named_parameters():
            if num_frozen == depth or encoder.layer_index(name) <= num_frozen:
                parameter.stop_gradient = True

    def train(self) -> None:
        """Put everything that trains into training mode; what is frozen stays in evaluation mode."""
        super().train()
        self.encoder.eval()
        for layer in self.encoder.encoder.layers[self.num_frozen :]:
            layer.train()

    def features(self, images: paddle.Tensor) -> paddle.Tensor:
        """Encode images [B, C, H, W] as what the head reads, [B, D]."""
        blocks, depth = self.encoder.encoder, len(self.encoder.encoder.layers)
        with paddle.no_grad():
            tokens = blocks(self.encoder.embed(images), end=self.num_frozen)
        if self.num_frozen < depth:
            tokens = blocks(tokens, first=self.num_frozen)  # [B, T, D], normalised
        return self.encoder.pool(tokens)

    def forward(
        self, view0: paddle.Tensor, view1: paddle.Tensor, ids: paddle.Tensor, labels: paddle.Tensor | None = None
    ) -> tuple[paddle.Tensor, dict[str, paddle.Tensor]]:
        """Return the loss of two views [B, C, H, W] of the same images, and the numbers to log."""
        features = self.features(paddle.concat([view0, view1]))
        output = self.head(features[: len(view0)], features[len(view0) :], ids, labels)
        parts = {"loss_view0": output.loss_parts[0], "loss_view1": output.loss_parts[1]}
        if output.nn_accuracy is not None:
            parts["nn_accuracy"] = output.nn_accuracy * 100.0
        return output.loss, parts | {"queue_fill": output.queue_fill, "projection_std": output.projection_std}


# ---- method ------------------------------------------------------------------------------------


def build(run: Run) -> Task:
    """Build encoder and head of the stage that CONTRAST.STAGE names, and load what it starts from."""
    config, contrast = run.config, run.config.CONTRAST
    _check(config)
    paddle.seed(config.SEED)
    encoder = build_transformer(replaced(config, "MODEL.NUM_CLASSES", 0))
    depth = len(encoder.encoder.layers)
    is_head = contrast.STAGE == "head"
    num_frozen = depth - trained_blocks(config)
    if num_frozen > depth or (num_frozen == depth and not is_head):
        raise UserError(f"CONTRAST.FROZEN_BLOCKS={num_frozen}: tuning needs a block that trains, and there are {depth}")
    head = NNCLRHead(
        config.MODEL.ENCODER.EMBED_DIM,
        contrast.PROJECTOR_DIMS,
        contrast.PREDICTOR_DIM,
        contrast.QUEUE_SIZE,
        contrast.TEMPERATURE,
        contrast.TOPK,
        contrast.MOMENTUM,
    )
    model = ContrastiveTuning(encoder, head, num_frozen)
    if run.resume_from is None:
        _load(run, model)
    scale, groups = _parameter_groups(config, model)
    run.log.say(_describe(config, model, scale))
    labels = _LabelCheck()

    def loss(model: nn.Layer, batch: Batch, rng: np.random.Generator):
        return model(*batch.views, batch.indices, labels.of(batch))

    return Task(
        f"contrastive_{contrast.STAGE}",
        model,
        configured_optimizer(config, groups),
        loss,
        saved=encoder,
        after_update=lambda step, total: head.update_target(),
        ema=None if is_head else weight_average(config, encoder),
        smallest_batch=2,
        cost=Cost(views=2, trained_blocks=depth - num_frozen),
        lr_scales={} if is_head else {"head": scale},
        notes=lambda num_images: _notes(contrast.QUEUE_SIZE, num_images),
    )


def _check(config) -> None:
    """Raise UserError for settings that this method cannot train with."""
    dims, train = config.CONTRAST.PROJECTOR_DIMS, config.TRAIN
    if not dims or not all(type(width) is int and 0 < width <= 65_536 for width in dims):
        raise UserError(f"CONTRAST.PROJECTOR_DIMS={dims!r}: must be a list of integers from 1 to 65,536")
    if config.MODEL.GLOBAL_POOL:
        raise UserError("MODEL.GLOBAL_POOL=True: leaves the encoder without its last norm; use MODEL.POOL_AFTER_NORM")
    if config.CONTRAST.STAGE == "tuning" and train.EMA_DECAY is not None and train.NUM_EPOCHS == 0:
        raise UserError("TRAIN.NUM_EPOCHS=0: tuning needs updates")
    if config.CONTRAST.HEAD_BASE_LR is not None and train.BASE_LR <= 0:
        raise UserError(
            f"TRAIN.BASE_LR={train.BASE_LR}: must be above 0; CONTRAST.HEAD_BASE_LR is applied as a multiple of it"
        )


def _load(run: Run, model: ContrastiveTuning) -> None:
    """Load the encoder of -pretrained, and for the tuning stage the head of the head stage's run."""
    config = run.config
    start.load_encoder(run, model.encoder)
    if config.CONTRAST.STAGE == "head":
        return
    source = config.CONTRAST.HEAD or config.MODEL.PRETRAINED
    if source is None:
        raise UserError("CONTRAST.STAGE=tuning: needs a head; give the run of the head stage as -pretrained")
    run.log.say(load_head(model.head, source))


def load_head(head: NNCLRHead, source: str) -> str:
    """Load projector, predictor and queue from a run of the head stage; the averaged projector becomes their copy.

    Returns:
        a line for the log.

    Raises:
        UserError: if there is no head, or one of another size. The head is unchanged then.
    """
    file = weight_files.resolve(source).parent / EXTRA_FILE
    if not file.is_file():
        raise UserError(
            f"{source}: holds no head ({EXTRA_FILE}); train one first, with CONTRAST.STAGE head, and give that run"
        )
    stored = {
        name.removeprefix("head."): tensor
        for name, tensor in weight_files.read(file).tensors.items()
        if name.startswith("head.") and not name.startswith("head.target_projector.")
    }
    own = {name: value for name, value in head.state_dict().items() if not name.startswith("target_projector.")}
    odd = [name for name in {*stored, *own} if name not in stored or name not in own]
    kinds = {name: (tuple(value.shape), str(value.dtype).split(".")[-1]) for name, value in own.items()}
    odd += [name for name in {*stored} & {*own} if (stored[name].shape, stored[name].dtype) != kinds[name]]
    if odd:
        sizes = [
            f"{name} {_describe_tensor(stored[name]) if name in stored else 'missing'} in the file, "
            f"{_describe_tensor(own[name]) if name in own else 'not'} here"
            for name in sorted(odd)
        ]
        raise UserError(f"{file}: the head differs: {abridge(sizes, 3)}; set CONTRAST.* as in that run")
    arrays = {name: tensor.checked(name, file).read() for name, tensor in stored.items()}
    for name, array in arrays.items():
        own[name].set_value(array)
    head.copy_target()
    return f"loaded the head of {file}: {len(arrays)} tensors, {int((arrays['queue_id'] >= 0).sum()):,} in the queue"


def _describe_tensor(tensor) -> str:
    dtype = str(tensor.dtype).split(".")[-1]
    return f"{list(tensor.shape)}" + ("" if dtype == "float32" else f" of {dtype}")


def _parameter_groups(config, model: ContrastiveTuning) -> tuple[float, list[dict]]:
    """Return the multiplier of the head's learning rate, and the groups of all networks."""
    train, contrast = config.TRAIN, config.CONTRAST
    if contrast.STAGE == "head":
        return 1.0, param_groups(model.head, contrast.HEAD_WEIGHT_DECAY)
    scale = 1.0 if contrast.HEAD_BASE_LR is None else contrast.HEAD_BASE_LR / train.BASE_LR
    groups = param_groups(model.encoder, train.WEIGHT_DECAY, train.LAYER_DECAY)
    return scale, groups + param_groups(model.head, contrast.HEAD_WEIGHT_DECAY, lr_scale=scale)


def _describe(config, model: ContrastiveTuning, head_scale: float) -> str:
    """Return lines that say what is frozen, what trains, and with which learning rates."""
    train, depth = config.TRAIN, len(model.encoder.encoder.layers)
    if config.CONTRAST.STAGE == "head":
        frozen, encoder_lr = f"the encoder is frozen, all {depth} blocks", "0"
    else:
        frozen = (
            f"embeddings and blocks 1 to {model.num_frozen} of {depth} are frozen"
            if model.num_frozen
            else "the embeddings are frozen"
        )
        encoder_lr = f"{train.BASE_LR:g}" + (f" x {train.LAYER_DECAY:g}^depth" if train.LAYER_DECAY else "")
    return (
        f"contrastive {config.CONTRAST.STAGE} stage: {frozen}; the head trains, and predicts neighbours of "
        f"{config.CONTRAST.AUGMENTATION} views\n"
        f"base learning rates: encoder {encoder_lr}, head {train.BASE_LR * head_scale:g}; weight decay: encoder "
        f"{train.WEIGHT_DECAY:g}, head {config.CONTRAST.HEAD_WEIGHT_DECAY:g}"
    )


def _notes(queue_size: int, num_images: int) -> list[str]:
    if queue_size <= num_images:
        return []
    return [
        f"warning: the queue of {queue_size:,} images is larger than the data set, which has {num_images:,}: it holds "
        "some images several times; set CONTRAST.QUEUE_SIZE to less"
    ]


class _LabelCheck:
    """Hands labels on if the first batch has any, so that all updates log the same numbers."""

    def __init__(self):
        self._has_labels: bool | None = None

    def of(self, batch: Batch) -> paddle.Tensor | None:
        """Return the labels of a batch [B], or None for a data set without."""
        if self._has_labels is None:
            self._has_labels = batch.host_labels.ndim == 1 and bool((batch.host_labels >= 0).any())
        return batch.labels if self._has_labels else None


def transform(config) -> Transform:
    """Return the two views of CONTRAST.AUGMENTATION."""
    return train_transform(config, *two_views(config, config.CONTRAST.AUGMENTATION))


def trained_blocks(config) -> int:
    """Return how many upper blocks of the encoder train."""
    depth, contrast = config.MODEL.ENCODER.DEPTH, config.CONTRAST
    if contrast.STAGE == "head":
        return 0
    return depth - (depth // 2 if contrast.FROZEN_BLOCKS is None else contrast.FROZEN_BLOCKS)


METHOD = Method(
    "pretrain",
    build,
    transform,
    variant=lambda config: "head" if config.CONTRAST.STAGE == "head" else "",
    trained_blocks=trained_blocks,
    whole_batch=True,
)
