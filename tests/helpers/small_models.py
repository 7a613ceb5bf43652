"""Models of a few thousand parameters, and what is compared of them."""

import paddle

from mae import MAEPretrain
from storage.architecture import Architecture, Tower
from transformer import VisionTransformer

VIT = Architecture(Tower(16, 1, 2), patch_px=4, grid_hw=(2, 2), num_classes=3)


def make_vit(image=(8, 8), seed=0, **options):
    paddle.seed(seed)
    options = {"num_classes": 3, "depth": 1, **options}
    return VisionTransformer(image, 4, 3, embed_dim=16, num_heads=2, **options)


def make_mae(image=(8, 8), seed=0):
    paddle.seed(seed)
    return MAEPretrain(image, 4, 3, 16, 1, 2, 8, 1, 2)


def equal(a, b) -> bool:
    return all((value == b.state_dict()[name]).all() for name, value in a.state_dict().items())
