"""Architecture of a CLIP model: an image tower, a text tower, and where both are projected to. No Paddle here.

Tensors of the towers have their own names behind `vision_encoder.` and `text_encoder.`; see `clip.py`.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import ClassVar

from errors import UserError
from storage.architecture import Architecture, Shapes, Tower, infer, layer_shapes, norm_shapes, of_config

IMAGE_PREFIX, TEXT_PREFIX = "vision_encoder.", "text_encoder."
IMAGE_PROJECTION, TEXT_PROJECTION, SCALE = "vision_projection", "text_projection", "logit_scale"
KNOWN_TEXT_HEADS = {(768, 12): 12, (1024, 24): 16}  # (width, depth): heads of XLM-R base and large


@dataclasses.dataclass(frozen=True)
class TextArchitecture:
    """A text tower of `text_tower.py`.

    Attributes:
        tower: its sizes.
        vocab_size: number of token ids.
        positions: rows of the position table.
        mlp_ratio: hidden width of the MLPs over their width.
    """

    tower: Tower
    vocab_size: int = 250_002
    positions: int = 514
    mlp_ratio: float = 4.0

    KEY: ClassVar[str] = "text_architecture"

    @property
    def content(self) -> str:
        """Describe such weights in words."""
        return "text encoder"

    def __str__(self) -> str:
        width, depth, heads = self.tower
        return f"{width} wide, {depth} deep, {heads} heads, {self.vocab_size:,} tokens, {self.positions} positions"

    def shapes(self) -> Shapes:
        """Return the name and shape of every tensor."""
        width, shapes = self.tower.width, {}
        shapes["token_embedding.weight"] = (self.vocab_size, width)
        shapes["position_embedding.weight"] = (self.positions, width)
        shapes |= norm_shapes("embedding_norm", width)
        for index in range(self.tower.depth):
            shapes |= layer_shapes(f"layers.{index}", width, int(width * self.mlp_ratio))
        return shapes

    def settings(self) -> dict[str, object]:
        """Return the configuration keys, and their values, that build this tower."""
        width, depth, heads = self.tower
        return {
            "TEXT.EMBED_DIM": width,
            "TEXT.DEPTH": depth,
            "TEXT.NUM_HEADS": heads,
            "TEXT.MLP_RATIO": self.mlp_ratio,
            "TEXT.VOCAB_SIZE": self.vocab_size,
            "TEXT.POSITIONS": self.positions,
        }

    def to_dict(self) -> dict[str, object]:
        """Return plain values, as a file stores them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "TextArchitecture":
        """Rebuild from `to_dict`'s values; raise ValueError, TypeError or KeyError for others."""
        rebuilt = cls(**{**values, "tower": Tower(*values["tower"])})
        numbers = [*rebuilt.tower, rebuilt.vocab_size, rebuilt.positions]
        if not all(type(number) is int and 0 < number < 2**31 for number in numbers):
            raise ValueError("a size of the text tower is no whole number above 0")
        if not isinstance(rebuilt.mlp_ratio, (int, float)) or not 0 < rebuilt.mlp_ratio <= 64:
            raise ValueError("the text tower's MLP ratio is no number")
        return rebuilt


@dataclasses.dataclass(frozen=True)
class ClipArchitecture:
    """An image tower and a text tower with a shared space of embeddings.

    Attributes:
        image: an encoder without a classifier.
        text: the text tower.
        embed_dim: width of the shared space.
    """

    image: Architecture
    text: TextArchitecture
    embed_dim: int

    KEY: ClassVar[str] = "clip_architecture"
    content: ClassVar[str] = "CLIP: image and text encoder with a shared space"
    network: ClassVar[str] = "clip"
    position_bias: ClassVar[bool] = False

    def __str__(self) -> str:
        return f"image {self.image}; text {self.text}; both projected to {self.embed_dim}"

    @property
    def towers(self) -> list[Tower]:
        """Image tower and text tower."""
        return [*self.image.towers, self.text.tower]

    def shapes(self) -> Shapes:
        """Return the name and shape of every tensor."""
        shapes: Shapes = {f"{IMAGE_PREFIX}{name}": shape for name, shape in self.image.shapes().items()}
        shapes |= {f"{TEXT_PREFIX}{name}": shape for name, shape in self.text.shapes().items()}
        shapes[IMAGE_PROJECTION] = (self.image.encoder.width, self.embed_dim)
        shapes[TEXT_PROJECTION] = (self.text.tower.width, self.embed_dim)
        shapes[SCALE] = ()
        return shapes

    def settings(self) -> dict[str, object]:
        """Return the configuration keys, and their values, that build this model, but for MODEL.TYPE."""
        embedding = {"LIT.EMBED_DIM": self.embed_dim, "DATA.CROP_PCT": 1.0}
        return self.image.settings() | self.text.settings() | embedding

    def to_dict(self) -> dict[str, object]:
        """Return plain values, as a file stores them."""
        return {"image": self.image.to_dict(), "text": self.text.to_dict(), "embed_dim": self.embed_dim}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "ClipArchitecture":
        """Rebuild from `to_dict`'s values; raise ValueError, TypeError or KeyError for others."""
        embed_dim = values["embed_dim"]
        if type(embed_dim) is not int or not 0 < embed_dim < 2**20:
            raise ValueError("the shared width is no whole number above 0")
        return cls(Architecture.from_dict(values["image"]), TextArchitecture.from_dict(values["text"]), embed_dim)


def of_any_config(config, network: str) -> Architecture | ClipArchitecture:
    """Return the architecture that a configuration builds, a CLIP model's, too; see `architecture.of_config`."""
    if config.MODEL.NUM_CLASSES is None:  # follows the data
        config = config.clone()
        config.defrost()
        config.MODEL.NUM_CLASSES = 0
    image = of_config(config, network)
    if network != "clip":
        return image
    text = config.TEXT
    tower = Tower(text.EMBED_DIM, text.DEPTH, text.NUM_HEADS)
    sizes = TextArchitecture(tower, text.VOCAB_SIZE, text.POSITIONS, text.MLP_RATIO)
    return ClipArchitecture(image, sizes, config.LIT.EMBED_DIM)


def infer_text(shapes: Shapes, heads: int | None) -> TextArchitecture:
    """Read the sizes of a text tower off the shapes of its tensors.

    Args:
        heads: attention heads, which no shape shows; None: those of XLM-R of this size.

    Raises:
        UserError: if a tensor is missing, or the number of heads is not known.
    """
    for name, ndim in (("token_embedding.weight", 2), ("position_embedding.weight", 2), ("layers.0.mlp.fc1.weight", 2)):
        if len(shapes.get(name, ())) != ndim or 0 in shapes[name]:
            raise UserError(f"the text tower's {name} is {list(shapes[name]) if name in shapes else 'missing'}")
    vocab_size, width = shapes["token_embedding.weight"]
    indices = [int(match[1]) for match in (re.match(r"layers\.(\d{1,3})\.", name) for name in shapes) if match]
    depth, hidden = 1 + max(indices), shapes["layers.0.mlp.fc1.weight"][1]
    if heads is None:
        heads = KNOWN_TEXT_HEADS.get((width, depth))
    if heads is None:
        raise UserError(
            f"a text tower {width} wide and {depth} deep, whose number of attention heads is not visible in the shapes "
            "and not known here; say it with -heads IMAGE,TEXT"
        )
    if heads < 1 or width % heads:
        raise UserError(f"{heads} heads do not divide the text tower's width of {width}")
    tower = Tower(width, depth, heads)
    return TextArchitecture(tower, vocab_size, shapes["position_embedding.weight"][0], hidden / width)


def infer_clip(shapes: Shapes, image_heads: int, text_heads: int | None) -> ClipArchitecture:
    """Read the sizes of a CLIP model off the shapes of its tensors; raise UserError if one is missing."""
    parts = {
        prefix: {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
        for prefix in (IMAGE_PREFIX, TEXT_PREFIX)
    }
    projection = shapes.get(IMAGE_PROJECTION, ())
    if len(projection) != 2 or 0 in projection:
        raise UserError(f"{IMAGE_PROJECTION} is {list(projection) if projection else 'missing'}")
    text = infer_text(parts[TEXT_PREFIX], text_heads)
    return ClipArchitecture(infer(parts[IMAGE_PREFIX], image_heads), text, projection[1])
