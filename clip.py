"""CLIP (arXiv 2103.00020) as MAWS has it (arXiv 2303.13496): an image tower and a multilingual text tower.

    from clip import load_clip
    clip = load_clip("vit_base_patch16.maws_clip.pdparams")
    probabilities = clip.classify("photo.jpg", ["a cat", "un chien", "eine Maus"])  # [1, 3]

Shapes: B images or texts, T tokens, E width of the shared space.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from PIL import Image

import checkpoint
from config import get_config, network_kind, replaced
from errors import UserError, printable
from layers.basic import unit_vectors
from pipeline import captions
from pipeline.decoding import as_mode, open_file
from pipeline.transforms import Transform, eval_transform
from storage import weight_files
from storage.clip_architecture import ClipArchitecture, text_of_config
from text_tower import TextTower
from transformer import VisionTransformer, build_transformer

FIRST_LOGIT_SCALE = math.log(1 / 0.07)
TOKENIZER_FILE = "sentencepiece.bpe.model"  # as XLM-R's is called
_MAX_PIECES = 100  # longest text in pieces; XLM-R has positions for 510, and MAWS reads 100

Images = paddle.Tensor | Image.Image | str | Path | Sequence["Images"]
Texts = paddle.Tensor | str | Sequence[str]


class CLIP(nn.Layer):
    """Image and text tower, each projected without bias to the shared space.

    Args:
        vision_encoder: from images [B, C, H, W] to features [B, Dv].
        text_encoder: from token ids [B, T] to features [B, Dt].
        embed_dim: E.
        transform: makes the image tower's input of an image.
        tokenizer: from texts to ids; None: `encode_texts` takes ids only.
        max_pieces: of a text that are read; fewer where the text tower has fewer positions.

    Attributes:
        logit_scale: logarithm of the factor of the cosines, a scalar parameter.
    """

    def __init__(
        self,
        vision_encoder: VisionTransformer,
        text_encoder: TextTower,
        embed_dim: int,
        transform: Transform | None = None,
        tokenizer: captions.Tokenizer | None = None,
        max_pieces: int = _MAX_PIECES,
    ):
        super().__init__()
        self.vision_encoder, self.text_encoder = vision_encoder, text_encoder
        self.transform, self._tokenizer = transform, None
        self.max_pieces = min(max_pieces, text_encoder.max_tokens - 2)
        self.vision_projection = self._projection(vision_encoder.architecture.encoder.width, embed_dim)
        self.text_projection = self._projection(text_encoder.architecture.tower.width, embed_dim)
        self.logit_scale = self.create_parameter([], default_initializer=nn.initializer.Constant(FIRST_LOGIT_SCALE))
        if tokenizer is not None:
            self.tokenizer = tokenizer

    def _projection(self, inputs: int, outputs: int) -> paddle.Tensor:
        return self.create_parameter([inputs, outputs], default_initializer=nn.initializer.Normal(std=inputs**-0.5))

    @property
    def tokenizer(self) -> captions.Tokenizer | None:
        """The tokenizer, whose ids must all be in the text tower's vocabulary."""
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: captions.Tokenizer) -> None:
        if tokenizer.vocab_size > self.text_encoder.vocab_size:
            raise UserError(
                f"{tokenizer.path}: has {tokenizer.vocab_size:,} ids, and the text tower "
                f"{self.text_encoder.vocab_size:,}; it belongs to another model"
            )
        self._tokenizer = tokenizer

    @property
    def architecture(self) -> ClipArchitecture:
        """Sizes of both towers."""
        image, text = self.vision_encoder.architecture, self.text_encoder.architecture
        return ClipArchitecture(image, text, self.vision_projection.shape[1])

    # ---- features

    def encode_images(self, images: Images, normalize: bool = True) -> paddle.Tensor:
        """Encode images in the shared space.

        Args:
            images: normalised [B, C, H, W] or [C, H, W]; or a PIL image, a path, or a list of these.
            normalize: scale the vectors to length 1.

        Returns:
            [B, E] float32.
        """
        features = paddle.matmul(self.vision_encoder(self.prepare_images(images)), self.vision_projection)
        return unit_vectors(features) if normalize else features

    def encode_texts(self, texts: Texts, normalize: bool = True) -> paddle.Tensor:
        """Encode texts in the shared space.

        Args:
            texts: a text or a list of them; or ids [B, T], filled up with 1.
            normalize: scale the vectors to length 1.

        Returns:
            [B, E] float32.
        """
        ids = texts if isinstance(texts, paddle.Tensor) else self.tokenize(texts)
        features = paddle.matmul(self.text_encoder(ids), self.text_projection)
        return unit_vectors(features) if normalize else features

    def tokenize(self, texts: str | Sequence[str]) -> paddle.Tensor:
        """Return the ids [B, T] of texts, filled up to the longest of them."""
        if self._tokenizer is None:
            raise UserError(
                f"texts need a tokenizer: load_clip(path, tokenizer=FILE), or put {TOKENIZER_FILE} beside the weights; "
                "python -m zoo fetch xlmr_tokenizer fetches XLM-R's"
            )
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise UserError("no text is given")
        return paddle.to_tensor(captions.pad(self._tokenizer(texts, self.max_pieces)))

    def prepare_images(self, images: Images) -> paddle.Tensor:
        """Return images as the image tower takes them, [B, C, H, W]: resized, cropped and normalised."""
        if isinstance(images, paddle.Tensor):
            return images.unsqueeze(0) if images.ndim == 3 else images
        images = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
        if not images:
            raise UserError("no image is given")
        return paddle.concat([self._prepared(image) for image in images])

    def _prepared(self, image: paddle.Tensor | Image.Image | str | Path) -> paddle.Tensor:
        """Return one image as [1, C, H, W]."""
        if isinstance(image, paddle.Tensor):
            return self.prepare_images(image)
        if isinstance(image, (str, Path)):
            image = open_file(image)
        if not isinstance(image, Image.Image):
            raise UserError(f"{printable(image, 60)}: images are tensors, PIL images, paths, or lists of them")
        image = as_mode(image, self.vision_encoder.patch_embedding.in_channels)
        return paddle.to_tensor(self.transform(image, np.random.default_rng(0))).unsqueeze(0)

    # ---- scores

    @paddle.no_grad()
    def classify(self, images: Images, texts: Texts, return_logits: bool = False) -> paddle.Tensor:
        """Return the probability of each text for each image, [B, number of texts].

        Args:
            images, texts: see `encode_images` and `encode_texts`; or features of both, [B, E].
            return_logits: return the scaled cosines, before the softmax.
        """
        image_features = unit_vectors(images) if _are_features(images) else self.encode_images(images)
        is_text_features = isinstance(texts, paddle.Tensor) and texts.is_floating_point()
        text_features = unit_vectors(texts) if is_text_features else self.encode_texts(texts)
        logits = self.logit_scale.exp() * paddle.matmul(image_features, text_features, transpose_y=True)
        return logits if return_logits else F.softmax(logits, axis=-1)

    def forward(self, images: paddle.Tensor, ids: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Return the unit vectors of images [B, C, H, W] and texts [B, T], and the factor of their cosines."""
        return self.encode_images(images), self.encode_texts(ids), self.logit_scale.exp()


def _are_features(images: Images) -> bool:
    return isinstance(images, paddle.Tensor) and images.ndim == 2


def build_clip(config) -> CLIP:
    """Build the CLIP model that a configuration with the sections TEXT and LIT describes."""
    tower = TextTower(text_of_config(config), config.TEXT.DROPOUT, config.TRAIN.RECOMPUTE)
    encoder = build_transformer(replaced(config, "MODEL.NUM_CLASSES", 0))
    return CLIP(encoder, tower, config.LIT.EMBED_DIM, eval_transform(config), max_pieces=config.LIT.MAX_PIECES)


def load_clip(path: str | Path, tokenizer: str | Path | None = None) -> CLIP:
    """Load a CLIP model: a ported file with its YAML beside it, or a run or checkpoint of LiT.

    Args:
        path: of the weights.
        tokenizer: sentencepiece model; None: the run's own, or `sentencepiece.bpe.model` beside the weights, or none.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: if the weights are of another kind of model, or do not fit.
    """
    weights = weight_files.resolve(path)
    config = get_config(weight_files.config_beside(weights))
    if network_kind(config) != "clip":
        raise UserError(f"{weights}: no CLIP model with an image and a text tower")
    clip = build_clip(config)
    checkpoint.load_weights(clip, weights)
    clip.eval()
    beside = [folder / TOKENIZER_FILE for folder in (weights.parent, weights.parent.parent)]
    found = tokenizer or next((file for file in beside if file.is_file()), config.LIT.TOKENIZER)
    if found is not None:
        clip.tokenizer = captions.Tokenizer(found)
    return clip
