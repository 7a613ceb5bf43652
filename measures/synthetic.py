"""Synthetic images, and the cost of a step on them. No Paddle here, as torch's side of a comparison has none."""

import numpy as np

from config import image_size_hw, network_kind
from storage.architecture import of_config
from training import flops


def synthetic_arrays(config, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images [count, C, H, W] of standard normal pixels, and labels [count]; the same each time."""
    shape = (count, config.DATA.IMAGE_CHANNELS, *image_size_hw(config))
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return images, np.random.default_rng(1).integers(0, max(1, config.MODEL.NUM_CLASSES), count)


def flop_per_image(config) -> float:
    """Return the FLOPs of a step of a network without other parts."""
    architecture, ratios = of_config(config, network_kind(config)), flops.ratios(config)
    return 2 * flops.forward_macs(architecture, *ratios) if config.EVAL else flops.train_flops(architecture, *ratios)
