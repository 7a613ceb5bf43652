"""LiT (arXiv 2111.07991): train a text tower, and both projections, to a frozen image tower; MAWS's last stage."""

import math

import numpy as np
import paddle
from paddle import nn

import checkpoint
from clip import CLIP, TOKENIZER_FILE, build_clip
from config import replaced
from errors import UserError
from layers.basic import unit_vectors
from methods import image_features, start, zero_shot
from methods.classifier import count_correct
from methods.info_nce import info_nce
from methods.method import Method
from optim import param_groups
from pipeline import augment, captions, prompts
from pipeline.device_copy import to_device
from pipeline.loading import Batch
from pipeline.sources import Source
from pipeline.transforms import Transform, crop_and_flip, train_transform
from pipeline.wrapped_sources import LabelsOnly
from storage import atomic, manifest
from storage.clip_architecture import TEXT_PREFIX
from storage.run_files import MODEL_FILE
from training.flops import forward_macs
from training.optimizers import configured_optimizer, weight_average
from training.run import Run
from training.task import Cost, Evaluation, Task

_CROP_SCALE = [0.9, 1.0]  # a caption describes the whole image


def image_text_loss(
    image_features: paddle.Tensor, text_features: paddle.Tensor, logit_scale: paddle.Tensor
) -> paddle.Tensor:
    """Return the symmetric contrastive loss of pairs (CLIP, arXiv 2103.00020), in float32.

    Args:
        image_features: [B, E] of this rank; those of all ranks are gathered, with gradients.
        text_features: [B, E], of the texts that belong to these images.
        logit_scale: logarithm of the factor of the cosines.
    """
    with paddle.amp.auto_cast(enable=False):
        images, texts = unit_vectors(image_features), unit_vectors(text_features)
        temperature = (-logit_scale.astype("float32")).exp()
        return (info_nce(images, texts, temperature) + info_nce(texts, images, temperature)) / 2


class LockedImageTuning(nn.Layer):
    """A CLIP model whose image tower does not train, and the loss.

    Args:
        clip: its image tower is frozen by this.
    """

    def __init__(self, clip: CLIP):
        super().__init__()
        self.clip = clip
        for parameter in clip.vision_encoder.parameters():
            parameter.stop_gradient = True

    def train(self) -> None:
        """Switch to training mode; the image tower stays in evaluation mode."""
        super().train()
        self.clip.vision_encoder.eval()

    def forward(self, images: paddle.Tensor, ids: paddle.Tensor) -> paddle.Tensor:
        """Return the loss of images [B, C, H, W], or their features [B, D] before the projection, and ids [B, T]."""
        clip = self.clip
        with paddle.no_grad():
            features = clip.vision_encoder(images) if images.ndim == 4 else images
        projected = paddle.matmul(features.detach(), clip.vision_projection)
        return image_text_loss(projected, clip.encode_texts(ids, normalize=False), clip.logit_scale)

    def no_weight_decay(self) -> set[str]:
        """Name the parameters that weight decay leaves alone, besides biases and norms."""
        return {f"clip.{TEXT_PREFIX}{name}" for name in self.clip.text_encoder.no_weight_decay()}

    @paddle.no_grad()
    def limit_scale(self, most: float | None) -> None:
        """Keep the factor of the cosines at or below `most`."""
        scale = self.clip.logit_scale
        if most is not None:
            paddle.assign(scale.clip(max=math.log(most)), scale)


def build(run: Run) -> Task:
    """Build both towers, their weights, the tokenizer and the loss."""
    config, lit = run.config, run.config.LIT
    if config.TRAIN.LAYER_DECAY is not None:
        raise UserError(
            f"TRAIN.LAYER_DECAY={config.TRAIN.LAYER_DECAY}: is not for MODEL.TYPE IMAGE_TEXT; set it to None"
        )
    paddle.seed(config.SEED)
    clip = build_clip(config)
    clip.tokenizer = _open_tokenizer(lit.TOKENIZER)
    if clip.max_pieces < lit.MAX_PIECES:
        run.log.say(f"warning: LIT.MAX_PIECES={lit.MAX_PIECES}: TEXT.POSITIONS leave room for {clip.max_pieces}")
    if run.resume_from is None:
        _load_towers(run, clip)
    elif lit.CACHE_FEATURES:  # the loop restores all of it, but later
        checkpoint.load_encoder(clip.vision_encoder, run.resume_from / MODEL_FILE)
    _keep_tokenizer(run, clip.tokenizer)
    model = LockedImageTuning(clip)
    cached = None
    if lit.CACHE_FEATURES and not run.dry_run:
        cached = image_features.of_train_split(run, clip.vision_encoder)

    def loss(model: nn.Layer, batch: Batch, rng: np.random.Generator):
        images = batch.images if cached is None else to_device([cached[batch.host_indices]])[0]
        return model(images, clip.tokenize(batch.captions)), {"logit_scale": clip.logit_scale.exp()}

    evaluator = ZeroShotEvaluator(run, clip) if lit.EVAL_DATASET is not None else None
    return Task(
        "image_text",
        model,
        configured_optimizer(config, param_groups(model, config.TRAIN.WEIGHT_DECAY)),
        loss,
        saved=clip,
        after_update=lambda step, total: model.limit_scale(lit.MAX_SCALE),
        evaluation=evaluator.evaluation() if evaluator else None,
        ema=weight_average(config, clip),
        cost=_cost(config, clip),
        external_id=f"tokenizer {manifest.digests(clip.tokenizer.path, 'sha256')['sha256'][:16]}",
    )


def _cost(config, clip: CLIP) -> Cost:
    image = 0.0 if config.LIT.CACHE_FEATURES else forward_macs(clip.vision_encoder.architecture)
    return Cost(other_macs=image)


def _open_tokenizer(path: str | None) -> captions.Tokenizer:
    if path is None:
        raise UserError(
            f"LIT.TOKENIZER: is not set; XLM-R's {TOKENIZER_FILE} comes by python -m zoo fetch xlmr_tokenizer, "
            "and docs/billion_scale.md trains a small one"
        )
    return captions.Tokenizer(path)


def _keep_tokenizer(run: Run, tokenizer: captions.Tokenizer) -> None:
    """Copy the tokenizer into the run's directory, where `load_clip` finds it."""
    if run.directory is not None and not run.dry_run:
        with atomic.replacing(run.directory / TOKENIZER_FILE) as path:
            path.write_bytes(tokenizer.path.read_bytes())


def _load_towers(run: Run, clip: CLIP) -> None:
    """Load the image tower of -pretrained, and the text tower of LIT.TEXT_PRETRAINED."""
    config = run.config
    start.load_encoder(run, clip.vision_encoder)
    if config.LIT.TEXT_PRETRAINED:
        run.log.say(str(checkpoint.load_weights(clip.text_encoder, config.LIT.TEXT_PRETRAINED)))
    else:
        run.log.say("text tower: from its initialisation; LIT.TEXT_PRETRAINED starts from XLM-R")


class ZeroShotEvaluator:
    """Zero-shot evaluation of a CLIP model while it trains: top-1 and top-5 accuracy per language of LIT.LANGUAGES."""

    def __init__(self, run: Run, clip: CLIP):
        lit, self._clip = run.config.LIT, clip
        self._texts = {language: _class_texts(run.config, language) for language in lit.LANGUAGES}
        self._vectors: list[paddle.Tensor] = []

    def evaluation(self) -> Evaluation:
        """Return how the model is evaluated; the first language chooses the best checkpoint."""
        metrics = tuple(f"{name}_{language}" for language in self._texts for name in ("acc1", "acc5"))
        return Evaluation(metrics, self._measure, (metrics[0], "max"), self._prepare)

    def _prepare(self) -> None:
        """Compute the vectors of the classes with the present weights."""
        self._vectors = [zero_shot.class_vectors(self._clip, texts) for texts in self._texts.values()]

    def _measure(self, model: nn.Layer, batch: Batch) -> list[paddle.Tensor]:
        features, sums = self._clip.encode_images(batch.images), []
        for vectors in self._vectors:
            logits = paddle.matmul(features, vectors, transpose_y=True)
            sums += [count * 100.0 for count in count_correct(logits, batch.labels, (1, 5))]
        return sums


def _class_texts(config, language: str) -> list[list[str]]:
    return prompts.sentences(prompts.language_templates(language), _class_names(config, language))


def _class_names(config, language: str) -> list[list[str]]:
    return prompts.language_class_names(language, config.LIT.EVAL_NAMES or config.LIT.EVAL_DATASET, None)


def validation_config(config) -> object | None:
    """Return the configuration of the data set that a run is evaluated on; None: no evaluation."""
    lit = config.LIT
    if lit.EVAL_DATASET is None:
        return None
    if not lit.LANGUAGES:
        raise UserError("LIT.LANGUAGES=[]: zero-shot evaluation needs a language")
    validation = replaced(config, "DATA.DATASET", lit.EVAL_DATASET)
    validation = replaced(validation, "DATA.DATA_PATH", lit.EVAL_DATA_PATH or config.DATA.DATA_PATH)
    return replaced(validation, "MODEL.NUM_CLASSES", len(_class_names(config, lit.LANGUAGES[0])))


def prepare_source(config, source: Source) -> Source:
    """Return the images that are trained on; with cached features they are not read."""
    return LabelsOnly(source) if config.LIT.CACHE_FEATURES else source


def transform(config) -> Transform:
    """Return a random crop of nearly the whole image, and a flip; nothing where features are cached."""
    if config.LIT.CACHE_FEATURES:
        return train_transform(config, lambda image, rng: augment.as_pixels(image))
    return train_transform(config, crop_and_flip(config, _CROP_SCALE))


METHOD = Method(
    "pretrain",
    build,
    transform,
    target=lambda config: "caption",
    validation_config=validation_config,
    prepare_source=prepare_source,
    whole_batch=True,
)
