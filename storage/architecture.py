"""Architecture of a model: the plain values from which its network is built and which it carries. No Paddle here.

A field names the configuration key that sets it, and the tensors that it adds; docs/CONTRIBUTING.md lists the steps of
a new option. Names and shapes of tensors are those of PaddleViT's files. They determine every size but the number of
attention heads, which splits a matrix without changing its shape. Files of this project record the architecture.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

from layers.relative_position import num_rows
from storage.model_options import Added, option
from storage.tensor_shapes import Shapes, cross_stack_shapes, linear_shapes, norm_shapes, pooler_shapes, stack_shapes

CLASSIFIERS = ("classifier", "probe", "attentive")  # networks that have a head for classes
OWN_NETWORKS = ("attentive", "segmenter")  # that no other project has
NORM_EPS = 1e-6  # as in the official code, timm and torchvision
SELF, CROSS, CROSS_SELF = "self", "cross", "cross_self"  # kinds of decoder
DECODERS = (SELF, CROSS, CROSS_SELF)
_AUTOENCODER, _CLASSIFIER, _ATTENTIVE, SEGMENTER = "autoencoder", "classifier", "attentive", "segmenter"


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
        patch_px: patch side in pixels.
        grid_hw: patches per column and per row.
        channels: image channels.
        channel_groups: each has patches of its own, see `layers.patch_embedding`; none: the patches have all channels.
        mlp_ratio: hidden width of the MLPs over their width.
        qkv_bias: whether queries, keys and values have a bias.
        norm_eps: what layer norms add to the variance.
        decoder: sizes of the decoder; None for an encoder or a classifier.
        num_classes: outputs of the classifier; 0 without one.
        global_pool: the classifier reads the normalised mean of the patches, not the class token.
        probe: the classifier is a batch norm and a linear layer.
        norm_pix_loss: whether the decoder predicts normalised pixels; None if unknown.
        pool_after_norm: the classifier reads the mean of the normalised patches; no shape depends on it.
        position_bias: the encoder's blocks have relative position biases: True; "shared" ones; or False.
        layer_scale: first value of a learned factor of each branch of the encoder; None: there are none.
        distill_head: there is a second classifier, on the class token, that a teacher trained.
        patch_norm: layer norms of the pixels of each patch, and of its projection, as vit-pytorch has them.
        pooler: kind of attentive pooler through which a probe reads the tokens, see `layers.poolers`; None: without.
        pooler_queries, pooler_heads, pooler_d_out: of it, as far as its kind has them.
        pooler_tokens: "patches", or "all" with the class token.
        pooler_normed: the pooler reads tokens behind the encoder's last norm, not before it.
        segmented_layers: blocks, from 1 or from -1 backwards, whose patches a segmenter's head reads side by side;
            none: the model is another one.
        decode_layer: the decoder reads the output of this lower block, from 1; None: of the last one.
        decoder_kind: "self": all tokens attend to each other; "cross": those of predicted patches to the encoder's
            (CrossMAE, arXiv 2401.14391); "cross_self": to each other, too.
        decoder_sources: blocks of the encoder, 0 for its input, whose outputs each block of a cross decoder mixes by
            weights of its own; no norm follows the encoder then. None: it reads the normalised output of the last one.
    """

    encoder: Tower
    patch_px: int = option(16, "MODEL.PATCH_SIZE")
    grid_hw: tuple[int, int] = (14, 14)
    channels: int = option(3, "DATA.IMAGE_CHANNELS")
    mlp_ratio: float = option(4.0, "MODEL.MLP_RATIO")
    qkv_bias: bool = option(True, "MODEL.QKV_BIAS", adds=("*.attn.qkv.bias", "*.cross_attn.[qk]*.bias"))
    norm_eps: float = option(NORM_EPS, "MODEL.NORM_EPS")
    decoder: Tower | None = None
    num_classes: int = option(0, "MODEL.NUM_CLASSES", _CLASSIFIER)
    global_pool: bool = option(False, "MODEL.GLOBAL_POOL", _CLASSIFIER, ("encoder.norm.*", "encoder_norm.*"))
    probe: bool = False
    norm_pix_loss: bool | None = option(None, "MODEL.NORM_PIX_LOSS", _AUTOENCODER)
    pool_after_norm: bool = option(False, "MODEL.POOL_AFTER_NORM", _CLASSIFIER)
    position_bias: bool | str = option(
        False,
        "MODEL.ENCODER.RELATIVE_POSITION_BIAS",
        _CLASSIFIER,
        extras=(
            Added("encoder.layers.{}.attn.position_bias.table", "blocks.{}.attn.relative_position_bias_table"),
            Added("encoder.position_bias.table", "rel_pos_bias.relative_position_bias_table", "shared"),
        ),
        words="relative position biases",
    )
    layer_scale: float | None = option(
        None,
        "MODEL.ENCODER.LAYER_SCALE",
        _CLASSIFIER,
        extras=tuple(Added(f"encoder.layers.{{}}.gamma_{n}", f"blocks.{{}}.gamma_{n}", 1.0) for n in (1, 2)),
        words="layer scales",
    )
    distill_head: bool = option(
        False,
        "MODEL.DISTILL_HEAD",
        _CLASSIFIER,
        extras=(Added("distill_norm.", "dist_norm."), Added("distill_classifier.", "head_dist.")),
        words="a second classifier",
    )
    patch_norm: bool = option(
        False,
        "MODEL.PATCH_NORM",
        extras=tuple(
            Added(f"patch_embedding.{name}.", f"patch_embed.{name}.") for name in ("norm_pixels", "norm_tokens")
        ),
        words="norms of the patches",
    )
    pooler: str | None = option(
        None,
        "PROBE.POOLER",
        _ATTENTIVE,
        extras=(Added("pooler.queries", "pooler.queries", "ep"),),
        words="an attentive pooler",
    )
    pooler_queries: int = option(32, "PROBE.QUERIES", _ATTENTIVE)
    pooler_heads: int = option(12, "PROBE.HEADS", _ATTENTIVE)
    pooler_d_out: int = option(1, "PROBE.D_OUT", _ATTENTIVE)
    pooler_tokens: str = option("patches", "PROBE.TOKENS", _ATTENTIVE)
    pooler_normed: bool = option(False, "PROBE.NORM", _ATTENTIVE)
    segmented_layers: tuple[int, ...] = option((), "SEG.LAYERS", SEGMENTER)
    decode_layer: int | None = option(None, "DISTILL.DECODE_LAYER", _AUTOENCODER)
    decoder_kind: str = option(SELF, "MODEL.DECODER.KIND", _AUTOENCODER, ("linear_projection.*", "decoder.layers.*"))
    decoder_sources: tuple[int, ...] = option(
        (), "MODEL.DECODER.SOURCES", _AUTOENCODER, ("decoder.source_mix.*", "decoder.layers.*.source_norm.*")
    )
    channel_groups: tuple[tuple[int, ...], ...] = option(
        (), "MODEL.CHANNEL_GROUPS", adds=("patch_embedding.*", "decoder_pred.*")
    )

    KEY: ClassVar[str] = "architecture"  # under which a file's description has it

    @property
    def num_patches(self) -> int:
        """Tokens of an image, without the class token."""
        return math.prod(self.grid_hw) * max(1, len(self.channel_groups))

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
        """Which network builds this model: "autoencoder", "segmenter", "attentive", "probe" or "classifier"."""
        if self.segmented_layers:
            return SEGMENTER
        if self.pooler is not None:
            return _ATTENTIVE
        return "autoencoder" if self.decoder is not None else "probe" if self.probe else "classifier"

    @property
    def has_last_norm(self) -> bool:
        """True if a norm of the tokens follows the encoder's last block."""
        return not (self.global_pool or self.decoder_sources) and (self.pooler is None or self.pooler_normed)

    @property
    def head_width(self) -> int:
        """Width of the features that the classifier reads."""
        if self.segmented_layers:
            return self.encoder.width * len(self.segmented_layers)
        return self.encoder.width // (self.pooler_d_out if self.pooler == "ep" else 1)

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
        if self.pooler is not None:
            kind, reads = "attentive probe", f"{self.pooler_tokens} through the pooler {self.pooler}"
            reads += f" with {self.pooler_queries} queries" if self.pooler == "ep" else ""
        if self.segmented_layers:
            kind, reads = "segmenter", f"patches of the layers {', '.join(map(str, self.segmented_layers))}"
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
        if self.layer_scale is not None:
            text += "; layer scale"
        if self.channel_groups:
            text += f"; {len(self.channel_groups)} groups of channels"
        if self.patch_norm:
            text += "; norms of the patches"
        if self.decoder is not None:
            text += f"; decoder {self.decoder.width} wide, {self.decoder.depth} deep, {self.decoder.heads} heads"
            text += {SELF: "", CROSS: ", cross-attention", CROSS_SELF: ", cross- and self-attention"}[self.decoder_kind]
            text += f" on {len(self.decoder_sources)} outputs" if self.decoder_sources else ""
        return text

    def shapes(self) -> Shapes:
        """Return the name and shape of every tensor, in the order of PaddleViT's files."""
        dim, num_patches = self.encoder.width, self.num_patches
        patch_size = (self.channels, self.patch_px, self.patch_px)
        groups = {f".{index}": (len(group), *patch_size[1:]) for index, group in enumerate(self.channel_groups)}
        parts = {f"groups{end}": size for end, size in groups.items()} or {"patch_embedding": patch_size}
        shapes: Shapes = {"cls_token": (1, 1, dim), "encoder_position_embedding": (1, num_patches + 1, dim)}
        for part, size in parts.items():
            shapes |= {f"patch_embedding.{part}.weight": (dim, *size), f"patch_embedding.{part}.bias": (dim,)}
        if self.patch_norm:
            shapes |= norm_shapes("patch_embedding.norm_pixels", math.prod(patch_size))
            shapes |= norm_shapes("patch_embedding.norm_tokens", dim)
        shapes |= self._stack("encoder", self.encoder) | self._extras()
        if self.has_last_norm or self.global_pool:
            shapes |= norm_shapes("encoder_norm" if self.global_pool else "encoder.norm", dim)
        if self.pooler is not None:
            shapes |= pooler_shapes(self.pooler, dim, self.pooler_queries, self.head_width)
        if self.num_classes and self.probe:
            shapes |= {f"classifier.0.{name}": (self.head_width,) for name in ("_mean", "_variance")}
        if self.distill_head and self.num_classes:
            shapes |= norm_shapes("distill_norm", dim) | linear_shapes("distill_classifier", dim, self.num_classes)
        if self.num_classes:
            shapes |= linear_shapes("classifier.1" if self.probe else "classifier", self.head_width, self.num_classes)
        if self.decoder is not None:
            width = self.decoder.width
            shapes["mask_token"] = (1, 1, width)
            shapes["decoder_position_embedding"] = (1, num_patches + 1, width)
            shapes |= linear_shapes("linear_projection", dim, width) if self.decoder_kind == SELF else {}
            shapes |= self._stack("decoder", self.decoder) | norm_shapes("decoder.norm", width)
            for end, size in (groups or {"": patch_size}).items():
                shapes |= linear_shapes(f"decoder_pred{end}", width, math.prod(size))
        return shapes

    def hidden_width(self, tower: Tower) -> int:
        """Return the hidden width of a tower's MLPs."""
        return int(tower.width * self.mlp_ratio)

    def _stack(self, part: str, tower: Tower) -> Shapes:
        width, hidden, bias = tower.width, self.hidden_width(tower), self.qkv_bias
        if part == "encoder" or self.decoder_kind == SELF:
            return stack_shapes(part, width, tower.depth, hidden, bias)
        count, has_self = len(self.decoder_sources), self.decoder_kind == CROSS_SELF
        return cross_stack_shapes(width, tower.depth, hidden, self.encoder.width, bias, count, has_self)

    def _extras(self) -> Shapes:
        """Return the encoder's position biases and layer scales."""
        table = (num_rows(self.grid_hw), self.encoder.heads)
        shapes: Shapes = {"encoder.position_bias.table": table} if self.position_bias == "shared" else {}
        for index in range(self.encoder.depth):
            prefix = f"encoder.layers.{index}"
            if self.position_bias is True:
                shapes[f"{prefix}.attn.position_bias.table"] = table
            if self.layer_scale is not None:
                shapes |= {f"{prefix}.gamma_{branch}": (self.encoder.width,) for branch in (1, 2)}
        return shapes

    def settings(self) -> dict[str, object]:
        """Return the configuration keys, and their values, that build this model, but for MODEL.TYPE; see `network`."""
        height, width = self.image_hw
        values: dict[str, object] = {"DATA.IMAGE_SIZE": height if height == width else [height, width]}
        kind = _ATTENTIVE if self.pooler is not None else SEGMENTER if self.segmented_layers else _CLASSIFIER
        for field in options(kind if self.decoder is None else _AUTOENCODER):
            if getattr(self, field.name) is not None:
                value = getattr(self, field.name)
                values[field.metadata["key"]] = _as_lists(value)
        if self.channels != 3:  # the default has three values
            values |= {"DATA.IMAGENET_MEAN": [0.5] * self.channels, "DATA.IMAGENET_STD": [0.5] * self.channels}
        if self.decoder is not None:
            values["MODEL.NORM_PIX_LOSS"] = self.norm_pix_loss is not False
        for section, tower in (("ENCODER", self.encoder), ("DECODER", self.decoder)):
            if tower is not None:
                names = (f"MODEL.{section}.{name}" for name in ("EMBED_DIM", "DEPTH", "NUM_HEADS"))
                values |= dict(zip(names, tower, strict=True))
        return values

    def without_decoder(self) -> "Architecture":
        """Return the encoder alone."""
        fields = options(_AUTOENCODER)
        usual = {field.name: field.default for field in fields if field.metadata["only"] == _AUTOENCODER}
        return dataclasses.replace(self, decoder=None, **usual)

    def to_dict(self) -> dict[str, object]:
        """Return plain values, as a file stores them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "Architecture":
        """Rebuild an architecture from `to_dict`'s values; raise ValueError, TypeError or KeyError for others."""
        values = dict(values)
        for key in ("encoder", "decoder"):
            values[key] = Tower(*values[key]) if values.get(key) is not None else None
        if isinstance(values.get("layer_scale"), bool):  # older files record only whether there is LayerScale
            values["layer_scale"] = 1.0 if values["layer_scale"] else None
        names = ("segmented_layers", "decoder_sources", "channel_groups")
        lists = {name: _as_tuples(values.get(name, ())) for name in names}
        found = cls(**values | lists | {"grid_hw": tuple(values["grid_hw"])})
        sizes = [*found.encoder, *(found.decoder or ()), *found.grid_hw, found.patch_px, found.channels]
        if len(found.grid_hw) != 2 or not all(type(size) is int and 0 < size < 2**20 for size in sizes):
            raise ValueError("a size is not an integer above 0")
        numbers = [channel for group in found.channel_groups for channel in group]
        numbers += [found.layer_scale, found.decode_layer, *found.segmented_layers, *found.decoder_sources]
        numbers += found._with_default(int, float)
        if not all(number is None or type(number) in (int, float) for number in numbers):
            raise ValueError("a value is not a number")
        flags = [found.norm_pix_loss, *(flag for flag in found._with_default(bool) if flag != "shared")]
        if not all(flag is None or isinstance(flag, bool) for flag in flags):
            raise ValueError("a switch is neither true nor false")
        if found.decoder_kind not in DECODERS:
            raise ValueError("the kind of decoder is not known")
        return found

    def _with_default(self, *kinds: type) -> list[object]:
        """Return the values whose defaults are of some type."""
        return [getattr(self, field.name) for field in dataclasses.fields(self) if type(field.default) in kinds]


def extras() -> list[tuple[dataclasses.Field, Added]]:
    """Return the tensors that options add, each with the field of its option."""
    return [(field, added) for field in options() for added in field.metadata["extras"]]


def options(kind: str | None = None) -> list[dataclasses.Field]:
    """Return the fields that a key sets: of "autoencoder", "classifier", "attentive" or "segmenter", or all."""
    fields = [field for field in dataclasses.fields(Architecture) if "key" in field.metadata]
    own = ("", kind, _CLASSIFIER) if kind in (_ATTENTIVE, SEGMENTER) else ("", kind)  # which are classifiers, too
    return [field for field in fields if kind is None or field.metadata["only"] in own]


def of_config(config, network: str) -> Architecture:
    """Return the architecture that a configuration builds.

    Args:
        network: `config.network_kind(config)`; "encoder" and "clip" have no classifier.
    """
    model, size = config.MODEL, config.DATA.IMAGE_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    encoder, decoder = (Tower(part.EMBED_DIM, part.DEPTH, part.NUM_HEADS) for part in (model.ENCODER, model.DECODER))
    has_decoder, has_head = network == _AUTOENCODER, network in (*CLASSIFIERS, SEGMENTER)
    kind = network if network in (_AUTOENCODER, _ATTENTIVE, SEGMENTER) else _CLASSIFIER
    values = {f.name: _value(config, f) for f in options(kind)}
    values["num_classes"] = model.NUM_CLASSES if has_head else 0
    values["distill_head"] = has_head and values.get("distill_head", False)
    return Architecture(
        encoder=encoder,
        decoder=decoder if has_decoder else None,
        grid_hw=(height // model.PATCH_SIZE, width // model.PATCH_SIZE),
        probe=network in ("probe", _ATTENTIVE, SEGMENTER) and model.NUM_CLASSES > 0,
        **values,
    )


def _value(config, field: dataclasses.Field) -> object:
    """Return the value of a field's key; its default where a method's configuration has no such section."""
    *sections, name = field.metadata["key"].split(".")
    for section in sections:
        config = config.get(section, {})
    value = config.get(name, field.default)
    return _as_tuples(value or ()) if isinstance(field.default, tuple) else value


def _as_tuples(value: object) -> object:
    return tuple(map(_as_tuples, value)) if isinstance(value, (list, tuple)) else value


def _as_lists(value: object) -> object:
    return list(map(_as_lists, value)) if isinstance(value, tuple) else value
