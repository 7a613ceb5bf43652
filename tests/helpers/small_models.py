"""Models of a few thousand parameters, and what is compared of them."""

import paddle

from mae import MAEPretrain
from storage.architecture import Architecture, Tower
from transformer import VisionTransformer

VIT = Architecture(Tower(16, 1, 2), patch_px=4, grid_hw=(2, 2), num_classes=3)


def make_vit(image=(8, 8), seed=0, **options):
    paddle.seed(seed)
    options = {"num_classes": 3, **options}
    tower = Tower(options.pop("embed_dim", 16), options.pop("depth", 1), options.pop("num_heads", 2))
    rates = {name: options.pop(name) for name in ("drop_path", "dropout", "recompute") if name in options}
    architecture = Architecture(tower, options.pop("patch_px", 4), (image[0] // 4, image[1] // 4), **options)
    return VisionTransformer(architecture, **rates)


def make_mae(image=(8, 8), seed=0):
    paddle.seed(seed)
    return MAEPretrain(mae_architecture(image))


def mae_architecture(image=(8, 8), encoder=(16, 1, 2), decoder=(8, 1, 2), patch_px=4, **options):
    grid_hw = (image[0] // patch_px, image[1] // patch_px)
    return Architecture(Tower(*encoder), patch_px, grid_hw, decoder=Tower(*decoder), **options)


def equal(a, b) -> bool:
    return all((value == b.state_dict()[name]).all() for name, value in a.state_dict().items())
