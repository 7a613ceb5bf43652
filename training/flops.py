"""How much a model computes per image, and what share of a GPU's peak that is. No Paddle here.

Multiply-accumulates (MAC) of the published formulas: a matrix product counts as rows x inner x columns; norms, biases,
GELU and softmax as nothing. A training step is three forward passes' worth; one MAC is two FLOPs. As in published
figures the patch projection counts all patches, although only the visible ones are projected here (0.9 % of ViT-Base).
"""

import math
import re

from layers.patch_counts import num_predicted, num_visible
from storage.architecture import CROSS_SELF, SELF, Architecture, Tower
from storage.clip_architecture import ClipArchitecture, TextArchitecture

TEXT_TOKENS = 102  # longest caption that MAWS reads
# Dense TFLOPs per second in bf16 (fp16 where there is none) with sums in float32, as the makers state them, without
# sparsity. The first pattern that is found in a device's name holds.
_PEAK_TFLOPS = {
    r"V100": 125,
    r"T4\b": 65,
    r"A(100|800)\b": 312,
    r"A10\b": 125,
    r"A30\b": 165,
    r"A40\b": 149.7,
    r"H(100|800) PCIe": 756,
    r"H(100|800|200)\b": 989,
    r"B200\b": 2250,
    r"L40S": 362,
    r"L4\b": 60.5,
    r"RTX 3090\b": 71,
    r"RTX 4090\b": 165.2,
    r"RTX 5090\b": 209.5,
}


def forward_macs(
    architecture: Architecture | ClipArchitecture | TextArchitecture,
    mask_ratio: float = 0.0,
    predict_ratio: float | None = None,
) -> float:
    """Return the MACs of one image's forward pass; of a text of `TEXT_TOKENS`; or of both.

    Args:
        mask_ratio: share of the patches that the encoder of an autoencoder does not see.
        predict_ratio: share that its decoder predicts; None: all of these.
    """
    if isinstance(architecture, ClipArchitecture):
        projections = sum(tower.width for tower in architecture.towers) * architecture.embed_dim
        return forward_macs(architecture.image) + forward_macs(architecture.text) + projections
    if isinstance(architecture, TextArchitecture):
        hidden = int(architecture.tower.width * architecture.mlp_ratio)
        return _tower_macs(architecture.tower, hidden, min(TEXT_TOKENS, architecture.positions - 2))
    macs = encoder_macs(architecture, mask_ratio)
    if architecture.decoder is not None:
        return macs + _decoder_macs(architecture, mask_ratio, predict_ratio)
    classified = math.prod(architecture.grid_hw) if architecture.segmented_layers else 1
    return macs + classified * architecture.head_width * architecture.num_classes


def encoder_macs(architecture: Architecture, mask_ratio: float = 0.0) -> float:
    """Return the MACs of one image in the encoder; an autoencoder's sees the visible patches only."""
    num_patches, encoder = architecture.num_patches, architecture.encoder
    visible = num_patches if architecture.decoder is None else num_visible(num_patches, mask_ratio)
    projected = math.prod(architecture.grid_hw) * encoder.width * architecture.channels * architecture.patch_px**2
    return projected + _tower_macs(encoder, architecture.hidden_width(encoder), visible + 1)


def _decoder_macs(architecture: Architecture, mask_ratio: float, predict_ratio: float | None) -> float:
    num_patches, decoder = architecture.num_patches, architecture.decoder
    predict = decoder.width * architecture.channels * architecture.patch_px**2  # the pixels of a patch
    visible, predicted = num_visible(num_patches, mask_ratio), num_predicted(num_patches, mask_ratio, predict_ratio)
    if architecture.decoder_kind != SELF:
        return _cross_macs(architecture, decoder, visible + 1, predicted) + predicted * predict
    macs = (visible + 1) * architecture.encoder.width * decoder.width
    macs += _tower_macs(decoder, architecture.hidden_width(decoder), visible + 1 + predicted)
    predicts_all = visible + predicted == num_patches  # also the visible ones and the class token
    if architecture.channel_groups:  # each predicts its own channels, and none the class token
        return macs + math.prod(architecture.grid_hw) * predict
    return macs + (num_patches + 1 if predicts_all else predicted) * predict


def _cross_macs(architecture: Architecture, tower: Tower, num_tokens: int, predicted: int) -> float:
    """Return the MACs of a cross decoder's blocks: `predicted` queries of `num_tokens` tokens of the encoder."""
    width, source_width = tower.width, architecture.encoder.width
    linear = predicted * (2 * width**2 + 2 * width * architecture.hidden_width(tower))
    attention = 2 * num_tokens * source_width * width + 2 * predicted * num_tokens * width
    own = predicted * 4 * width**2 + 2 * predicted**2 * width if architecture.decoder_kind == CROSS_SELF else 0
    mixed = num_tokens * source_width * len(architecture.decoder_sources)
    return tower.depth * (linear + attention + own + mixed)


def ratios(config) -> tuple[float, float | None]:
    """Return the shares of the patches that a configuration hides, and predicts; see `forward_macs`."""
    return config.MODEL.MASK_RATIO, config.MODEL.get("PREDICT_RATIO")


def _tower_macs(tower: Tower, hidden: int, num_tokens: int) -> float:
    linear = num_tokens * (4 * tower.width**2 + 2 * tower.width * hidden)
    attention = 2 * num_tokens**2 * tower.width
    return tower.depth * (linear + attention)


def train_flops(
    architecture: Architecture | ClipArchitecture,
    mask_ratio: float = 0.0,
    predict_ratio: float | None = None,
    *,
    views: int = 1,
    trained_blocks: int | None = None,
    other_macs: float = 0.0,
) -> float:
    """Return the FLOPs to train on one image: forward, and twice that backward where there are gradients.

    Args:
        views, trained_blocks, other_macs: see `task.Cost`.
    """
    if isinstance(architecture, ClipArchitecture):  # its image tower does not train, and is in `other_macs`
        return 2.0 * (3 * forward_macs(architecture.text) + other_macs)
    share = trained_depth(architecture, trained_blocks) / architecture.encoder.depth
    return 2.0 * (views * (1 + 2 * share) * forward_macs(architecture, mask_ratio, predict_ratio) + other_macs)


def trained_depth(architecture: Architecture, trained_blocks: int | None = None) -> int:
    """Return the number of the encoder's blocks that get gradients: those given, none of a probe, or all."""
    whole = 0 if architecture.probe else architecture.encoder.depth
    return whole if trained_blocks is None else trained_blocks


def peak_flops(device_name: str) -> float | None:
    """Return the FLOPs per second of a GPU by its name, if known; PEAK_TFLOPS gives those of another."""
    known = _PEAK_TFLOPS.items()
    return next((1e12 * peak for name, peak in known if re.search(name, device_name, re.IGNORECASE)), None)


def known_gpus() -> list[str]:
    """Return the names of the GPUs whose peak is known."""
    return [re.sub(r"\\b|\((\d+).*\)", r"\1", name).lower() for name in _PEAK_TFLOPS]
