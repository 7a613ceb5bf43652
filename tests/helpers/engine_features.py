"""Run the ViT of PaddleDetection or PaddleSeg on images, in a process of its own.

python tests/helpers/engine_features.py LIBRARY CONFIG.yml WEIGHTS.pdparams IMAGES.npy FEATURES.npz

Packages are imported without their __init__.py, which import all of a library and what it depends on.
"""

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import paddle
import yaml


def bare_package(name: str, **attributes: object) -> None:
    """Register a package without running its __init__.py."""
    parent, _, own = name.rpartition(".")
    if parent:
        folder = Path(sys.modules[parent].__path__[0], own)
    else:
        folder = Path(importlib.util.find_spec(name).submodule_search_locations[0])
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    for attribute, value in attributes.items():
        setattr(package, attribute, value)
    sys.modules[name] = package


def load_state(layer: paddle.nn.Layer, file: str) -> None:
    """Load a file as the libraries do, but every tensor must fit."""
    state, own = paddle.load(file), layer.state_dict()
    extra = {name for name in own if name not in state and not name.startswith("fpn")}
    if extra or set(state) - set(own):
        raise SystemExit(f"missing {sorted(extra)}, unexpected {sorted(set(state) - set(own))}")
    layer.set_state_dict(state)


def paddledetection(config: dict, weights: str, images: paddle.Tensor) -> list[paddle.Tensor]:
    """Return the outputs [B, D, H, W] of the chosen blocks."""
    for name in ("ppdet", "ppdet.core", "ppdet.core.config", "ppdet.modeling", "ppdet.modeling.backbones"):
        bare_package(name)
    module = importlib.import_module("ppdet.modeling.backbones.vision_transformer")
    settings = dict(config["VisionTransformer"], pretrained=weights, with_fpn=False)
    network = module.VisionTransformer(**settings)
    load_state(network, weights)
    network.eval()
    return network({"image": images})


def paddleseg(config: dict, weights: str, images: paddle.Tensor) -> list[paddle.Tensor]:
    """Return the outputs [B, N, D] of all blocks."""
    bare_package("paddleseg")
    bare_package("paddleseg.cvlibs")
    bare_package("paddleseg.models")
    bare_package("paddleseg.models.backbones")
    ignores = types.SimpleNamespace(load_pretrained_model=lambda network, file: load_state(network, file))
    bare_package("paddleseg.utils", utils=ignores, logger=types.SimpleNamespace(info=print))
    settings = dict(config["model"]["backbone"], pretrained=weights, img_size=images.shape[-1])
    kind = settings.pop("type", "VisionTransformer")
    file = {"CAE": "cae", "VisionTransformer": "vision_transformer"}[kind]
    network = getattr(importlib.import_module(f"paddleseg.models.backbones.{file}"), kind)(**settings)
    network.eval()
    return network(images)[0]


def main() -> None:
    """Write the features as arrays named by their number."""
    library, config_file, weights, images_file, out = sys.argv[1:]
    paddle.set_device("cpu")
    config = yaml.safe_load(Path(config_file).read_text(encoding="utf-8"))
    with paddle.no_grad():
        found = globals()[library](config, weights, paddle.to_tensor(np.load(images_file)))
    np.savez(out, **{str(number): value.numpy() for number, value in enumerate(found)})


if __name__ == "__main__":
    main()
