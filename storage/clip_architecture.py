"""Architecture of a CLIP model: an image tower, a text tower, and where both are projected to. No Paddle here.

Tensors of the towers have their own names behind `vision_encoder.` and `text_encoder.`; see `clip.py`.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from storage.architecture import Architecture, Tower, of_config
from storage.tensor_shapes import Shapes, layer_shapes, norm_shapes

IMAGE_PREFIX, TEXT_PREFIX = "vision_encoder.", "text_encoder."
IMAGE_PROJECTION, TEXT_PROJECTION, SCALE = "vision_projection", "text_projection", "logit_scale"


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
            raise ValueError("a size of the text tower is not an integer above 0")
        if not isinstance(rebuilt.mlp_ratio, (int, float)) or not 0 < rebuilt.mlp_ratio <= 64:
            raise ValueError("the text tower's MLP ratio is not a number")
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
            raise ValueError("the shared width is not an integer above 0")
        return cls(Architecture.from_dict(values["image"]), TextArchitecture.from_dict(values["text"]), embed_dim)


def text_of_config(config) -> TextArchitecture:
    """Return the text tower that the section TEXT of a configuration describes."""
    text = config.TEXT
    tower = Tower(text.EMBED_DIM, text.DEPTH, text.NUM_HEADS)
    return TextArchitecture(tower, text.VOCAB_SIZE, text.POSITIONS, text.MLP_RATIO)


def of_any_config(config, network: str) -> Architecture | ClipArchitecture:
    """Return the architecture that a configuration builds, a CLIP model's, too; see `architecture.of_config`."""
    if config.MODEL.NUM_CLASSES is None:  # follows the data
        config = config.clone()
        config.defrost()
        config.MODEL.NUM_CLASSES = 0
    image = of_config(config, network)
    return ClipArchitecture(image, text_of_config(config), config.LIT.EMBED_DIM) if network == "clip" else image
