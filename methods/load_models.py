"""Networks with the weights of a run or a file, and of the architecture that is recorded with them."""

from collections.abc import Callable
from pathlib import Path

from paddle import nn

import checkpoint
from config import get_config, network_kind, replaced
from errors import UserError
from mae import MAEPretrain, build_mae_pretrain
from methods.segmenter import Segmenter, build_segmenter
from storage import weight_files
from storage.architecture import CLASSIFIERS, SEGMENTER
from transformer import VisionTransformer, build_transformer


def load_autoencoder(path: str | Path, config=None) -> tuple[MAEPretrain, object]:
    """Load an autoencoder and its config from a pretraining run, a checkpoint, or a file with its YAML beside it."""
    weights = weight_files.resolve(path)
    config = config or get_config(weight_files.config_beside(weights))
    if network_kind(config) != "autoencoder":
        raise UserError(
            f"{weights}: weights of a classifier or an encoder; reconstructing needs the decoder, which only "
            "pretraining runs and full pretraining files have"
        )
    return _load(build_mae_pretrain(config), weights), config


def load_encoder(path: str | Path, config=None) -> tuple[VisionTransformer, object]:
    """Load the encoder of any weights as a model from images to features [B, D]."""
    weights = weight_files.resolve(path)
    config = config or get_config(weight_files.config_beside(weights))
    headless = replaced(config, "MODEL.NUM_CLASSES", 0)
    if network_kind(config) == "autoencoder":  # which has its last norm whatever the configuration says
        headless = replaced(headless, "MODEL.GLOBAL_POOL", False)
    return _load(
        build_transformer(headless), weights, checkpoint.load_encoder, blocks=config.MODEL.PRETRAINED_BLOCKS
    ), config


def load_classifier(path: str | Path, config=None) -> tuple[VisionTransformer, object]:
    """Load a classifier of a finetuning or probing run, or of a ported file."""
    weights = weight_files.resolve(path)
    config = config or get_config(weight_files.config_beside(weights))
    if network_kind(config) not in CLASSIFIERS or config.MODEL.NUM_CLASSES == 0:
        what = "a segmenter" if network_kind(config) == SEGMENTER else "an encoder"
        raise UserError(f"{weights}: {what} without a classifier of images; finetune or probe it first")
    return _load(build_transformer(config), weights, allow_unexpected=checkpoint.UNUSED_PROBE_NORM), config


def load_segmenter(path: str | Path, config=None) -> tuple[Segmenter, object]:
    """Load the network of a segmentation run."""
    weights = weight_files.resolve(path)
    config = config or get_config(weight_files.config_beside(weights))
    if network_kind(config) != SEGMENTER:
        raise UserError(f"{weights}: weights of another kind of model; train one with MODEL.TYPE SEGMENTATION")
    return _load(build_segmenter(config), weights), config


def _load(model: nn.Layer, weights: Path, load: Callable = checkpoint.load_weights, **allowed: object):
    load(model, weights, **allowed)
    model.eval()
    return model
