"""Encoders for detection and segmentation in other libraries: PaddleDetection, PaddleSeg, detectron2.

Weights get the names that the library's own ViT has, and a configuration of the library uses them; `docs/engines.md`
says how to train there. Facts are those of PaddleDetection 2.6, PaddleSeg 2.8 and detectron2's ViTDet.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from errors import UserError
from port_weights import names
from storage.architecture import Architecture, extras
from storage.stored_tensor import StoredTensor, sliced

Tensors = dict[str, StoredTensor]

WEIGHTS = "vit_backbone"
_TEMPLATES = Path(__file__).with_name("templates")
_LIGHT = 384  # widths up to this are finetuned without layer-wise decay and drop path (MAE-Lite)


@dataclasses.dataclass(frozen=True)
class Export:
    """What is written for a library.

    Attributes:
        tensors: under the library's names.
        weights: name of the weights' file.
        config: name of the configuration file.
        text: its content.
    """

    tensors: Tensors
    weights: str
    config: str
    text: str


def to_paddledetection(tensors: Tensors, architecture: Architecture) -> Export:
    """Export for PaddleDetection's `VisionTransformer`, which has biases of queries and values only."""
    _check(architecture, "PaddleDetection")
    return _export(_split_biases(_encoder(tensors, architecture)), architecture, "faster_rcnn_vit.yml")


def to_paddleseg(tensors: Tensors, architecture: Architecture) -> Export:
    """Export for PaddleSeg: UPerNet and its ViT `CAE`, for width 768; else Segmenter and its `VisionTransformer`."""
    _check(architecture, "PaddleSeg")
    encoder = _encoder(tensors, architecture)
    if architecture.encoder.width == 768 and architecture.patch_px == 16:
        return _export(_split_biases(encoder), architecture, "upernet_vit.yml")
    encoder |= names.transpose_linear(_official(tensors, ("encoder.norm",)))
    return _export(encoder, architecture, "segmenter_vit.yml", final_norm="norm.weight" in encoder)


def to_detectron2(tensors: Tensors, architecture: Architecture) -> Export:
    """Export for detectron2's ViTDet, which has no class token and torch's layout of matrices."""
    _check(architecture, "detectron2")
    if architecture.patch_px != 16:
        raise UserError(
            f"detectron2's feature pyramid wants patches of 16 pixels; these are {architecture.patch_px} pixels"
        )
    encoder = names.transpose_linear(_encoder(tensors, architecture))
    renamed = {f"backbone.net.{name}": tensor for name, tensor in encoder.items() if name != "cls_token"}
    return _export(renamed, architecture, "mask_rcnn_vitdet.py", suffix=".pth")


ENGINES: dict[str, Callable[[Tensors, Architecture], Export]] = {
    "paddledetection": to_paddledetection,
    "paddleseg": to_paddleseg,
    "detectron2": to_detectron2,
}


def _export(
    tensors: Tensors, architecture: Architecture, config: str, suffix: str = ".pdparams", **values: object
) -> Export:
    """Fill in the template of a configuration file."""
    weights = f"{WEIGHTS}{suffix}"
    text = (_TEMPLATES / f"{config}.template").read_text(encoding="utf-8")
    return Export(tensors, weights, config, text.format(**_values(architecture), **values, weights=weights))


def _check(architecture: Architecture, library: str) -> None:
    """Raise UserError for what a library's ViT cannot represent."""
    for field, added in extras():  # layer scales become parts of the matrices, and heads are left out
        if getattr(architecture, field.name) and not added.name.startswith("distill") and field.name != "layer_scale":
            raise UserError(f"{library}: its ViT has no {field.metadata['words']} of this kind; finetune without")
    if architecture.encoder.depth < 4:
        raise UserError(f"{library}: its pyramid reads four blocks, and this encoder has {architecture.encoder.depth}")
    rows, columns = architecture.grid_hw
    if rows != columns:
        raise UserError(f"{library}: takes position tables of square grids only, and this one is {rows}x{columns}")
    if architecture.channels != 3:
        raise UserError(f"{library}: reads RGB images, and this encoder {architecture.channels} channels")


def _official(tensors: Tensors, modules: tuple[str, ...]) -> Tensors:
    """Return what begins with one of these names, under its official name and in our layout."""
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(modules)}
    return {names.official_name(name): tensor for name, tensor in found.items()}


def _encoder(tensors: Tensors, architecture: Architecture) -> Tensors:
    """Return embeddings and blocks under official names, in our layout, with layer scales as parts of the matrices."""
    parts = ("cls_token", "encoder_position_embedding", "patch_embedding.", "encoder.layers.")
    encoder = _official(tensors, parts)
    if architecture.layer_scale:
        for block in range(architecture.encoder.depth):
            for number, module in ((1, "attn.proj"), (2, "mlp.fc2")):
                gamma = encoder.pop(f"blocks.{block}.gamma_{number}")
                for kind in ("weight", "bias"):  # matrices are [in, out], so the last dimension is the output
                    name = f"blocks.{block}.{module}.{kind}"
                    encoder[name] = _scaled(encoder[name], gamma)
    return encoder


def _scaled(tensor: StoredTensor, factor: StoredTensor) -> StoredTensor:
    def load() -> np.ndarray:
        return tensor.load() * factor.load()

    return StoredTensor(tensor.shape, tensor.dtype, load)


def _split_biases(encoder: Tensors) -> Tensors:
    """Split the biases of queries, keys and values, and leave the keys' out: the softmax does not see it."""
    split: Tensors = {}
    for name, tensor in encoder.items():
        if name.endswith("attn.qkv.bias"):
            prefix = name.removesuffix("qkv.bias")
            split |= {f"{prefix}q_bias": sliced(tensor, 0, 3), f"{prefix}v_bias": sliced(tensor, 2, 3)}
        else:
            split[name] = tensor
    return split


def _values(architecture: Architecture) -> dict[str, object]:
    """Return what the configurations have in common."""
    tower, depth = architecture.encoder, architecture.encoder.depth
    ends = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
    is_light = tower.width <= _LIGHT
    values = {
        "width": tower.width,
        "depth": depth,
        "heads": tower.heads,
        "mlp_ratio": f"{architecture.mlp_ratio:g}",
        "patch_px": architecture.patch_px,
        "image_px": architecture.image_hw[0],
        "qkv_bias": architecture.qkv_bias,
        "outputs": [round(depth * share) - 1 for share in (1 / 3, 1 / 2, 2 / 3, 1)],
        "windows": [block for block in range(depth) if block not in ends],
        "layer_decay": "1.0" if is_light else "0.7",
        "drop_path": "0.0" if is_light else "0.1",
    }
    lines = (_TEMPLATES / "sizes.yml.template").read_text(encoding="utf-8").format(**values).splitlines()
    return values | {f"sizes_{indent}": "\n".join(" " * indent + line for line in lines) for indent in (2, 4)}
