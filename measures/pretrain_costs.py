"""What pretraining costs with each decoder, share of predicted patches and resolution: products, memory, hours.

Arithmetic from the architecture, see `training/flops.py`; nothing is run. No Paddle here.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from config import get_config, network_kind
from errors import UserError
from storage.architecture import SELF, of_config
from training import flops, memory, resolution
from training.task import Cost

# As in CrossMAE's ablations.
_BLOCKS, _SHARES = (12, 4, 1), (0.75, 0.25, 0.15)
_HEAD_WIDTH = 32  # channels of a head in all published cross decoders
# Sides of the stages of DailyMAE (arXiv 2404.00509, scheme 2), and their first epochs, as shares of all.
_SIDES, _STARTS = (160 / 224, 192 / 224, 1.0), (0.0, 0.25, 0.5)


class Variant(NamedTuple):
    """A way to pretrain the same encoder.

    Attributes:
        name: in words.
        options: KEY and VALUE of each setting that makes it from the recipe.
        config: with these.
    """

    name: str
    options: list[str]
    config: object


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of a variant.

    Attributes:
        encoder_gmac, decoder_gmac: of an image's forward pass; means over the epochs, where the images grow.
        train_gflop: to train on an image, of all its views and masks together.
        memory_gib: peak by estimate at the recipe's batch, on a GPU with its AMP.
        encoded: views of a decoded image times masks of each.
        epochs: of the recipe.
    """

    encoder_gmac: float
    decoder_gmac: float
    train_gflop: float
    memory_gib: float
    encoded: int
    epochs: int

    def images_per_sec(self, flops_per_sec: float) -> float:
        """Return the images of the data set that a machine trains on per second."""
        return flops_per_sec / (1e9 * self.train_gflop)

    def hours(self, num_images: int, flops_per_sec: float) -> float:
        """Return the hours of all epochs."""
        return self.epochs * num_images / self.images_per_sec(flops_per_sec) / 3600


def family(cfg_file: str | None, opts: Sequence[object] = ()) -> Iterator[Variant]:
    """Yield a recipe, and the same with cheaper decoders and with growing images.

    Raises:
        UserError: if it trains something else.
    """
    config = get_config(cfg_file, opts)
    if network_kind(config) != "autoencoder":
        raise UserError(f"-cfg: of MODEL.TYPE {config.MODEL.TYPE}; name a recipe of pretraining, such as {_EXAMPLE}")
    if config.DISTILL.TEACHER is not None:
        raise UserError("DISTILL.TEACHER: what a teacher costs is not planned here; leave it out")
    if config.TRAIN.NUM_EPOCHS == 0:
        raise UserError("TRAIN.NUM_EPOCHS=0: there is nothing to plan")
    yield Variant("as configured", [], config)
    for name, options in _decoders(config):
        for growing, stages in _growing(config):
            changes = [*options, *stages]
            if changes:
                yield Variant(name + growing, changes, get_config(cfg_file, [*opts, *changes]))


_EXAMPLE = "configs/vit_base_patch16_224_pretrain.yaml"


def _decoders(config) -> Iterator[tuple[str, list[str]]]:
    """Yield decoders in words, with their settings; the first has none, and is the recipe's own."""
    model, mask_ratio = config.MODEL, config.MODEL.MASK_RATIO
    yield "own decoder", []
    if model.DECODER.KIND == SELF and model.DECODER.DEPTH > 1:
        yield "one block", ["MODEL.DECODER.DEPTH", "1"]
    width, depth = model.DECODER.EMBED_DIM, model.ENCODER.DEPTH
    heads = width // _HEAD_WIDTH if width % _HEAD_WIDTH == 0 else model.DECODER.NUM_HEADS
    own_share = model.PREDICT_RATIO or mask_ratio
    for blocks in sorted({min(number, depth) for number in _BLOCKS}, reverse=True):
        for share in sorted({min(share, mask_ratio) for share in _SHARES}, reverse=True):
            settings = {
                "MODEL.DECODER.KIND": "cross",
                "MODEL.DECODER.DEPTH": blocks,
                "MODEL.DECODER.NUM_HEADS": heads,
                "MODEL.DECODER.SOURCES": str(list(range(depth + 1))).replace(" ", ""),
                "MODEL.PREDICT_RATIO": share,
                # CrossMAE's rule: the learning rate follows the share of the hidden patches that is predicted
                "TRAIN.BASE_LR": f"{config.TRAIN.BASE_LR * share / own_share:.3g}",
            }
            words = f"cross, {blocks} block{'s' * (blocks > 1)}, predicts {share:.0%}"
            yield words, [str(word) for pair in settings.items() for word in pair]


def _growing(config) -> Iterator[tuple[str, list[str]]]:
    """Yield sizes in words, with their settings; the first has none."""
    yield "", []
    size, patch_px, epochs = config.DATA.IMAGE_SIZE, config.MODEL.PATCH_SIZE, config.TRAIN.NUM_EPOCHS
    has_one_size = config.TRAIN.RESOLUTION is not None or config.TRAIN.TO_STATIC
    if not isinstance(size, int) or has_one_size or epochs < 4:
        return
    sides = [round(size * share / patch_px) * patch_px for share in _SIDES]
    if len(set(sides)) == len(sides):
        stages = [[round(epochs * start), side] for start, side in zip(_STARTS, sides, strict=True)]
        yield f", {sides[0]} to {size} pixels", ["TRAIN.RESOLUTION", str(stages).replace(" ", "")]


def costs(config) -> Costs:
    """Return what a configuration of pretraining costs."""
    architecture, stages = of_config(config, "autoencoder"), resolution.stages(config)
    encoded, epochs = config.TRAIN.VIEWS * config.TRAIN.MASKS, config.TRAIN.NUM_EPOCHS
    whole = encoder = 0.0
    ends = [stage.first_epoch for stage in stages[1:]] + [max(epochs, 1)]
    for stage, end in zip(stages, ends, strict=True):
        share, own = (end - stage.first_epoch) / max(epochs, 1), resolution.of_stage(architecture, stage)
        ratios = flops.ratios(stage.config)
        whole += share * flops.forward_macs(own, *ratios) / 1e9
        encoder += share * flops.encoder_macs(own, ratios[0]) / 1e9
    peak = memory.estimate(architecture, config, cost=Cost(views=encoded), device="gpu").peak
    return Costs(encoder, whole - encoder, 6 * encoded * whole, peak / memory.GIB, encoded, epochs)
