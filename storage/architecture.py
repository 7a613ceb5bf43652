"""Architecture of a set of weights: sizes of the model, names and shapes of its tensors. No Paddle here.

Names and shapes are those of PaddleViT's files, and of `mae.py` and `transformer.py`. They determine every size but the
number of attention heads, which splits a matrix without changing its shape. Files of this project record it.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from errors import UserError
from layers.pos_embed import square_grid
from layers.relative_position import num_rows

Shapes = dict[str, tuple[int, ...]]
LAYER_MODULES = ("attn_norm", "attn.qkv", "attn.out", "mlp_norm", "mlp.fc1", "mlp.fc2")


class Tower(NamedTuple):
    """A stack of transformer layers."""

    width: int
    depth: int
    heads: int


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model of `mae.py` (with a decoder) or `transformer.py` (without).

    Attributes:
        encoder: its sizes.
        decoder: sizes of the decoder; None for an encoder or a classifier.
        patch_px: patch side in pixels.
        channels: image channels.
        grid_hw: patches per column and per row.
        mlp_ratio: hidden width of the MLPs over their width.
        qkv_bias: whether queries, keys and values have a bias.
        num_classes: outputs of the classifier; 0 without one.
        global_pool: the classifier reads the normalised mean of the patches, not the class token.
        pool_after_norm: it reads the mean of the normalised patches; no shape depends on it.
        position_bias: the encoder's blocks have relative position biases: True; "shared" ones; or False.
        layer_scale: their branches have learned factors; None if unknown.
        decode_layer: the decoder reads the output of this lower block, from 1; None: of the last one.
        distill_head: there is a second classifier, on the class token, that a teacher trained.
        probe: the classifier is a batch norm and a linear layer.
        norm_pix_loss: whether the decoder predicts normalised pixels; None if unknown.
    """

    encoder: Tower
    patch_px: int
    grid_hw: tuple[int, int]
    channels: int = 3
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    decoder: Tower | None = None
    num_classes: int = 0
    global_pool: bool = False
    probe: bool = False
    norm_pix_loss: bool | None = None
    pool_after_norm: bool = False
    position_bias: bool | str = False
    layer_scale: bool | None = False
    distill_head: bool = False
    decode_layer: int | None = None

    KEY: ClassVar[str] = "architecture"  # under which a file's description has it

    @property
    def image_hw(self) -> tuple[int, int]:
        """Image height and width in pixels."""
        return self.grid_hw[0] * self.patch_px, self.grid_hw[1] * self.patch_px

    @property
    def towers(self) -> list[Tower]:
        """Encoder, and decoder if there is one."""
        return [tower for tower in (self.encoder, self.decoder) if tower is not None]

    @property
    def network(self) -> str:
        """Which network builds this model: "autoencoder", "probe" or "classifier" (without a head, too)."""
        return "autoencoder" if self.decoder is not None else "probe" if self.probe else "classifier"

    @property
    def content(self) -> str:
        """Describe such weights in words."""
        if self.decoder is not None:
            return "pretrained autoencoder: encoder and decoder"
        if self.num_classes == 0:
            return "encoder only: neither decoder nor classifier"
        reads = "mean of the patches" if self.global_pool else "class token"
        reads = "mean of the normalised patches" if self.pool_after_norm else reads
        kind = "linear probe" if self.probe else "classifier"
        second = ", and a distilled one reads the class token" if self.distill_head else ""
        return f"{kind}: {self.num_classes} classes, reads the {reads}{second}"

    def __str__(self) -> str:
        (height, width), (rows, columns) = self.image_hw, self.grid_hw
        text = (
            f"{self.encoder.width} wide, {self.encoder.depth} deep, {self.encoder.heads} heads, "
            f"MLP ratio {self.mlp_ratio:g}; {self.patch_px}-pixel patches, {self.channels} channels, "
            f"grid {rows}x{columns} ({height}x{width} pixels)"
        )
        if self.position_bias:
            text += f"; {'shared ' if self.position_bias == 'shared' else ''}relative position biases"
        if self.layer_scale:
            text += "; layer scale"
        if self.decoder is not None:
            text += f"; decoder {self.decoder.width} wide, {self.decoder.depth} deep, {self.decoder.heads} heads"
        return text

    def shapes(self) -> Shapes:
        """Return the name and shape of every tensor, in the order of PaddleViT's files."""
        dim, num_patches = self.encoder.width, self.grid_hw[0] * self.grid_hw[1]
        patch_size = (self.channels, self.patch_px, self.patch_px)
        shapes: Shapes = {"cls_token": (1, 1, dim), "encoder_position_embedding": (1, num_patches + 1, dim)}
        shapes["patch_embedding.patch_embedding.weight"] = (dim, *patch_size)
        shapes["patch_embedding.patch_embedding.bias"] = (dim,)
        shapes |= self._layers("encoder", self.encoder) | self._extras()
        shapes |= norm_shapes("encoder_norm" if self.global_pool else "encoder.norm", dim)
        if self.num_classes and self.probe:
            shapes |= {"classifier.0._mean": (dim,), "classifier.0._variance": (dim,)}
        if self.distill_head:
            shapes |= norm_shapes("distill_norm", dim) | _linear("distill_classifier", dim, self.num_classes)
        if self.num_classes:
            shapes |= _linear("classifier.1" if self.probe else "classifier", dim, self.num_classes)
        if self.decoder is not None:
            width = self.decoder.width
            shapes["mask_token"] = (1, 1, width)
            shapes["decoder_position_embedding"] = (1, num_patches + 1, width)
            shapes |= _linear("linear_projection", dim, width)
            shapes |= self._layers("decoder", self.decoder)
            shapes |= norm_shapes("decoder.norm", width)
            shapes |= _linear("decoder_pred", width, math.prod(patch_size))
        return shapes

    def hidden_width(self, tower: Tower) -> int:
        """Return the hidden width of a tower's MLPs."""
        return int(tower.width * self.mlp_ratio)

    def _layers(self, part: str, tower: Tower) -> Shapes:
        shapes: Shapes = {}
        for index in range(tower.depth):
            shapes |= layer_shapes(f"{part}.layers.{index}", tower.width, self.hidden_width(tower), self.qkv_bias)
        return shapes

    def _extras(self) -> Shapes:
        """Return the encoder's position biases and layer scales."""
        table = (num_rows(self.grid_hw), self.encoder.heads)
        shapes: Shapes = {"encoder.position_bias.table": table} if self.position_bias == "shared" else {}
        for index in range(self.encoder.depth):
            prefix = f"encoder.layers.{index}"
            if self.position_bias is True:
                shapes[f"{prefix}.attn.position_bias.table"] = table
            if self.layer_scale:
                shapes |= {f"{prefix}.gamma_{branch}": (self.encoder.width,) for branch in (1, 2)}
        return shapes

    def settings(self) -> dict[str, object]:
        """Return the configuration keys, and their values, that build this model, but for MODEL.TYPE; see `network`."""
        height, width = self.image_hw
        values = {
            "DATA.IMAGE_SIZE": height if height == width else [height, width],
            "DATA.IMAGE_CHANNELS": self.channels,
            "MODEL.PATCH_SIZE": self.patch_px,
            "MODEL.MLP_RATIO": self.mlp_ratio,
            "MODEL.QKV_BIAS": self.qkv_bias,
        }
        if self.channels != 3:  # the default has three values
            values |= {"DATA.IMAGENET_MEAN": [0.5] * self.channels, "DATA.IMAGENET_STD": [0.5] * self.channels}
        if self.decoder is None:
            values |= {"MODEL.NUM_CLASSES": self.num_classes, "MODEL.GLOBAL_POOL": self.global_pool}
            values |= {"MODEL.POOL_AFTER_NORM": self.pool_after_norm, "MODEL.DISTILL_HEAD": self.distill_head}
            values["MODEL.ENCODER.RELATIVE_POSITION_BIAS"] = self.position_bias
            values["MODEL.ENCODER.LAYER_SCALE"] = 1.0 if self.layer_scale else None
        else:
            values["MODEL.NORM_PIX_LOSS"] = self.norm_pix_loss is not False
            values |= {} if self.decode_layer is None else {"DISTILL.DECODE_LAYER": self.decode_layer}
        for section, tower in (("ENCODER", self.encoder), ("DECODER", self.decoder)):
            if tower is not None:
                values[f"MODEL.{section}.DEPTH"] = tower.depth
                values[f"MODEL.{section}.EMBED_DIM"] = tower.width
                values[f"MODEL.{section}.NUM_HEADS"] = tower.heads
        return values

    def without_decoder(self) -> "Architecture":
        """Return the encoder alone."""
        return dataclasses.replace(self, decoder=None, norm_pix_loss=None, decode_layer=None)

    def to_dict(self) -> dict[str, object]:
        """Return plain values, as a file stores them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "Architecture":
        """Rebuild an architecture from `to_dict`'s values; raise ValueError, TypeError or KeyError for others."""
        values = dict(values)
        for key in ("encoder", "decoder"):
            values[key] = Tower(*values[key]) if values.get(key) is not None else None
        rebuilt = cls(**values | {"grid_hw": tuple(values["grid_hw"])})
        numbers = [*rebuilt.encoder, *(rebuilt.decoder or ()), *rebuilt.grid_hw, rebuilt.patch_px, rebuilt.channels]
        if len(rebuilt.grid_hw) != 2 or not all(type(number) is int and 0 < number < 2**20 for number in numbers):
            raise ValueError("a size is no whole number above 0")
        if type(rebuilt.num_classes) is not int or not isinstance(rebuilt.mlp_ratio, (int, float)):
            raise ValueError("a size is no number")
        flags = [rebuilt.qkv_bias, rebuilt.global_pool, rebuilt.probe, rebuilt.norm_pix_loss, rebuilt.pool_after_norm]
        flags += [rebuilt.layer_scale, rebuilt.distill_head, rebuilt.position_bias == "shared" or rebuilt.position_bias]
        if rebuilt.decode_layer is not None and type(rebuilt.decode_layer) is not int:
            raise ValueError("a layer is no number")
        if not all(flag is None or isinstance(flag, bool) for flag in flags):
            raise ValueError("a switch is neither true nor false")
        return rebuilt


def of_network(network: object) -> Architecture | None:
    """Read the architecture off a network of `mae.py` or `transformer.py`; None for one of another kind.

    A network of another kind may have it as its attribute `architecture`, see `clip_architecture.py`.
    """
    if hasattr(network, "architecture"):
        return network.architecture
    if not hasattr(network, "patch_embedding") or not hasattr(network, "encoder"):
        return None
    towers = {part: getattr(network, part) for part in ("encoder", "decoder") if hasattr(network, part)}
    heads = {part: tower.layers[0].attn.num_heads for part, tower in towers.items()}
    inferred = infer(
        {name: tuple(value.shape) for name, value in network.state_dict().items()},
        encoder_heads=heads["encoder"],
        decoder_heads=heads.get("decoder"),
        grid_hw=network.patch_embedding.grid_hw,
        norm_pix_loss=getattr(network, "norm_pix_loss", None),
    )
    decode_layer = getattr(network, "decode_layer", None)
    return dataclasses.replace(
        inferred,
        pool_after_norm=getattr(network, "pool_after_norm", False),
        decode_layer=None if decode_layer == inferred.encoder.depth else decode_layer,
    )


def of_config(config, network: str) -> Architecture:
    """Return the architecture that a configuration builds.

    Args:
        network: `config.network_of(config)`.
    """
    model, size = config.MODEL, config.DATA.IMAGE_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    towers = [Tower(part.EMBED_DIM, part.DEPTH, part.NUM_HEADS) for part in (model.ENCODER, model.DECODER)]
    has_decoder, has_head = network == "autoencoder", network in ("classifier", "probe")
    return Architecture(
        encoder=towers[0],
        decoder=towers[1] if has_decoder else None,
        patch_px=model.PATCH_SIZE,
        grid_hw=(height // model.PATCH_SIZE, width // model.PATCH_SIZE),
        channels=config.DATA.IMAGE_CHANNELS,
        mlp_ratio=model.MLP_RATIO,
        qkv_bias=model.QKV_BIAS,
        num_classes=model.NUM_CLASSES if has_head else 0,
        global_pool=model.GLOBAL_POOL and not has_decoder,
        probe=network == "probe" and model.NUM_CLASSES > 0,
        norm_pix_loss=model.NORM_PIX_LOSS if has_decoder else None,
        pool_after_norm=model.POOL_AFTER_NORM and not has_decoder,
        position_bias=False if has_decoder else model.ENCODER.RELATIVE_POSITION_BIAS,
        layer_scale=model.ENCODER.LAYER_SCALE is not None and not has_decoder,
        distill_head=model.DISTILL_HEAD and has_head,
        decode_layer=config.get("DISTILL", {}).get("DECODE_LAYER") if has_decoder else None,
    )


def infer(
    shapes: Shapes,
    encoder_heads: int,
    decoder_heads: int | None = None,
    grid_hw: tuple[int, int] | None = None,
    norm_pix_loss: bool | None = None,
) -> Architecture:
    """Read the sizes of a model off the shapes of its tensors.

    Args:
        shapes: tensors under PaddleViT's names.
        encoder_heads: attention heads; no shape depends on them.
        decoder_heads: those of the decoder, if there is one.
        grid_hw: patches per column and per row; None: square.
        norm_pix_loss: whether the decoder predicts normalised pixels; no shape depends on it either.

    Raises:
        UserError: if tensors that determine a size are missing, or do not fit together.
    """

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        found = shapes.get(name)
        if found is None or len(found) != ndim or 0 in found:
            raise UserError(f"{name} is {'missing' if found is None else f'of shape {list(found)}'}")
        return found

    width, channels, patch_px, patch_width = shape("patch_embedding.patch_embedding.weight", 4)
    if patch_px != patch_width:
        raise UserError(f"patches of {patch_px}x{patch_width} pixels; only square ones are known here")
    num_patches = shape("encoder_position_embedding", 3)[1] - 1
    decoder = None
    if "mask_token" in shapes:
        if decoder_heads is None:
            raise UserError("the decoder's number of heads is not known")
        decoder = Tower(shape("mask_token", 3)[2], count_layers(shapes, "decoder"), decoder_heads)
    probe = "classifier.1.weight" in shapes
    head = "classifier.1.weight" if probe else "classifier.weight"
    return Architecture(
        encoder=Tower(width, count_layers(shapes, "encoder"), encoder_heads),
        decoder=decoder,
        patch_px=patch_px,
        grid_hw=grid_hw or square_grid(num_patches),
        channels=channels,
        mlp_ratio=_mlp_ratio(width, shape("encoder.layers.0.mlp.fc1.weight", 2)[1]),
        num_classes=shape(head, 2)[1] if head in shapes else 0,
        probe=probe,
        norm_pix_loss=norm_pix_loss,
        **_switches(shapes),
    )


def _switches(shapes: Mapping[str, object]) -> dict[str, bool | str]:
    """Return the fields that say which optional tensors there are."""
    is_shared = "encoder.position_bias.table" in shapes
    return {
        "qkv_bias": "encoder.layers.0.attn.qkv.bias" in shapes,
        "global_pool": "encoder_norm.weight" in shapes,
        "position_bias": "shared" if is_shared else "encoder.layers.0.attn.position_bias.table" in shapes,
        "layer_scale": "encoder.layers.0.gamma_1" in shapes,
        "distill_head": "distill_classifier.weight" in shapes,
    }


def _mlp_ratio(width: int, hidden: int) -> float:
    """Return the ratio from which the models get this hidden width, rounding down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def count_layers(shapes: Mapping[str, object], part: str) -> int:
    """Return the number of layers that an encoder or a decoder has; gaps count, so that they show as missing."""
    indices = [
        int(match[1]) for match in (re.match(rf"{part}\.layers\.(\d{{1,3}})\.", name) for name in shapes) if match
    ]
    return max(indices, default=-1) + 1


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (inputs, outputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def layer_shapes(prefix: str, width: int, hidden: int, qkv_bias: bool = True) -> Shapes:
    """Return the tensors of a transformer layer."""
    shapes = norm_shapes(f"{prefix}.attn_norm", width) | _linear(f"{prefix}.attn.qkv", width, 3 * width, bias=qkv_bias)
    shapes |= _linear(f"{prefix}.attn.out", width, width) | norm_shapes(f"{prefix}.mlp_norm", width)
    return shapes | _linear(f"{prefix}.mlp.fc1", width, hidden) | _linear(f"{prefix}.mlp.fc2", hidden, width)


def norm_shapes(name: str, dim: int) -> Shapes:
    """Return the tensors of a layer norm."""
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
