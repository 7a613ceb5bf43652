"""Encoders for detection and segmentation in other libraries: PaddleDetection, PaddleSeg, detectron2.

Weights get the names that the library's own ViT has, and a configuration of the library uses them; `docs/engines.md`
says how to train there. Facts are those of PaddleDetection 2.6, PaddleSeg 2.8 and detectron2's ViTDet.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from errors import UserError
from port_weights import names
from storage.architecture import Architecture
from storage.stored_tensor import StoredTensor, sliced

Tensors = dict[str, StoredTensor]

WEIGHTS = "vit_backbone"
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
    renamed = _split_biases(_encoder(tensors, architecture))
    text = _PADDLEDETECTION.format(**_values(architecture), weights=f"{WEIGHTS}.pdparams")
    return Export(renamed, f"{WEIGHTS}.pdparams", "faster_rcnn_vit.yml", text)


def to_paddleseg(tensors: Tensors, architecture: Architecture) -> Export:
    """Export for PaddleSeg: UPerNet and its ViT `CAE`, for width 768; else Segmenter and its `VisionTransformer`."""
    _check(architecture, "PaddleSeg")
    encoder, values = _encoder(tensors, architecture), _values(architecture)
    if architecture.encoder.width == 768 and architecture.patch_px == 16:
        text = _UPERNET.format(**values, weights=f"{WEIGHTS}.pdparams")
        return Export(_split_biases(encoder), f"{WEIGHTS}.pdparams", "upernet_vit.yml", text)
    encoder |= names.transpose_linear(_official(tensors, ("encoder.norm",)))
    has_norm = "norm.weight" in encoder
    text = _SEGMENTER.format(**values, final_norm=has_norm, weights=f"{WEIGHTS}.pdparams")
    return Export(encoder, f"{WEIGHTS}.pdparams", "segmenter_vit.yml", text)


def to_detectron2(tensors: Tensors, architecture: Architecture) -> Export:
    """Export for detectron2's ViTDet, which has no class token and torch's layout of matrices."""
    _check(architecture, "detectron2")
    if architecture.patch_px != 16:
        raise UserError(
            f"detectron2's feature pyramid wants patches of 16 pixels; these are {architecture.patch_px} pixels"
        )
    encoder = names.transpose_linear(_encoder(tensors, architecture))
    renamed = {f"backbone.net.{name}": tensor for name, tensor in encoder.items() if name != "cls_token"}
    text = _DETECTRON2.format(**_values(architecture), weights=f"{WEIGHTS}.pth")
    return Export(renamed, f"{WEIGHTS}.pth", "mask_rcnn_vitdet.py", text)


ENGINES: dict[str, Callable[[Tensors, Architecture], Export]] = {
    "paddledetection": to_paddledetection,
    "paddleseg": to_paddleseg,
    "detectron2": to_detectron2,
}


def _check(architecture: Architecture, library: str) -> None:
    """Raise UserError for what a library's ViT cannot represent."""
    if architecture.position_bias:
        raise UserError(
            f"{library}: images have many sizes there, and relative position biases are for one grid; finetune without"
        )
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
    lines = _SIZES.format(**values).splitlines()
    return values | {f"sizes_{indent}": "\n".join(" " * indent + line for line in lines) for indent in (2, 4)}


# Sizes of the ViT in a YAML of PaddleDetection or PaddleSeg.
_SIZES = """patch_size: {patch_px}
embed_dim: {width}
depth: {depth}
num_heads: {heads}
mlp_ratio: {mlp_ratio}
qkv_bias: {qkv_bias}
drop_path_rate: {drop_path}"""


_PADDLEDETECTION = """# Faster R-CNN with a ViT pretrained as a masked autoencoder. Put this file into configs/vitdet of
# PaddleDetection, {weights} beside tools/, and train from there:
#
#   python tools/train.py -c configs/vitdet/faster_rcnn_vit.yml --eval
#
# For Mask R-CNN, take mask_rcnn_vit_base_hrfpn_cae_1x_coco.yml as _BASE_; for Cascade R-CNN,
# cascade_rcnn_vit_base_hrfpn_cae_1x_coco.yml.
_BASE_: ['faster_rcnn_vit_base_fpn_cae_1x_coco.yml']
weights: output/faster_rcnn_vit/model_final

OptimizerBuilder:
  optimizer:
    num_layers: {depth}
    layer_decay: {layer_decay}

VisionTransformer:
  img_size: [{image_px}, {image_px}]
{sizes_2}
  init_values: null
  use_rel_pos_bias: False
  use_abs_pos_emb: True
  use_sincos_pos_emb: False
  epsilon: 0.000001
  out_indices: {outputs}
  with_fpn: True
  pretrained: {weights}
"""

_UPERNET = """# UPerNet with a ViT pretrained as a masked autoencoder. Put this file into configs/upernet_vit of
# PaddleSeg, {weights} beside tools/, and train from there:
#
#   python tools/train.py --config configs/upernet_vit/upernet_vit.yml --do_eval
_base_: '../_base_/ade20k.yml'

batch_size: 2
iters: 160000

model:
  type: UPerNetCAE
  backbone:
    type: CAE
    img_size: 512
{sizes_4}
    init_values: null
    use_rel_pos_bias: False
    epsilon: 0.000001
    pretrained: {weights}
  backbone_indices: {outputs}
  channels: {width}
  fpn_channels: {width}
  head_channels: {width}
  channels_fpn: [{width}, {width}, {width}, {width}]

optimizer:
  type: AdamW
  weight_decay: 0.05

lr_scheduler:
  type: PolynomialDecay
  learning_rate: 0.0001
  end_lr: 0
  power: 1
  warmup_iters: 1500
  warmup_start_lr: 0.000001

loss:
  types:
    - type: CrossEntropyLoss
  coef: [1, 0.4]
"""

_SEGMENTER = """# Segmenter with a ViT pretrained as a masked autoencoder. Put this file into configs/segmenter of
# PaddleSeg, {weights} beside tools/, and train from there:
#
#   python tools/train.py --config configs/segmenter/segmenter_vit.yml --do_eval
#
# PaddleSeg's UPerNet for plain ViTs is for a width of 768 only.
_base_: 'segmenter_vit_base_linear_ade20k_512x512_160k.yml'

model:
  backbone:
    img_size: 512
{sizes_4}
    epsilon: 0.000001
    final_norm: {final_norm}
    pretrained: {weights}
"""

_DETECTRON2 = '''"""Mask R-CNN on ViTDet with a ViT pretrained as a masked autoencoder.

Put this file into projects/ViTDet/configs/COCO of detectron2, {weights} into the directory in which you start:

    python tools/lazyconfig_train_net.py --config-file projects/ViTDet/configs/COCO/mask_rcnn_vitdet.py
"""

from functools import partial

from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

from .mask_rcnn_vitdet_b_100ep import dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = "{weights}"
model.backbone.net.embed_dim = {width}
model.backbone.net.depth = {depth}
model.backbone.net.num_heads = {heads}
model.backbone.net.mlp_ratio = {mlp_ratio}
model.backbone.net.qkv_bias = {qkv_bias}
model.backbone.net.patch_size = {patch_px}
model.backbone.net.pretrain_img_size = {image_px}
model.backbone.net.pretrain_use_cls_token = True
model.backbone.net.drop_path_rate = {drop_path}
model.backbone.net.window_block_indexes = {windows}
optimizer.params.lr_factor_func = partial(
    get_vit_lr_decay_rate, num_layers={depth}, lr_decay_rate={layer_decay}
)
'''
