"""Segmentation by the patches of a frozen encoder, without training it.

Patches of a bank vote for the pixels of the patches that are like them, after CAPI (arXiv 2502.08769) and Hummingbird
(arXiv 2306.01667); or a linear classifier is fitted to them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import paddle

from config import image_size_hw
from errors import UserError
from layers.patch_embedding import on_grid
from measures import linear_probe, neighbours, patch_labels
from measures.extraction import extract
from methods import segmentation_scores
from pipeline import augment, sources
from pipeline.masks import resize_mask
from pipeline.transforms import eval_transform

DISTANCES = ("cosine", "l2")
_TEMPERATURE = 0.02
_HELD_OUT = 0.1


class Patches(NamedTuple):
    """The patches of some images, and their masks at the size of the network's input.

    Attributes:
        features: [B * N, D], row by row of each image.
        masks: int16 [B, H, W].
        grid_hw: rows and columns of patches.
        patch_px: side of a patch.
    """

    features: np.ndarray
    masks: np.ndarray
    grid_hw: tuple[int, int]
    patch_px: int

    def take(self, images: np.ndarray) -> "Patches":
        """Return the patches of some of the images."""
        per_image = len(self.features) // len(self.masks)
        rows = (images[:, None] * per_image + np.arange(per_image)).ravel()
        return self._replace(features=self.features[rows], masks=self.masks[images])

    def split(self, seed: int) -> tuple["Patches", "Patches"]:
        """Return a tenth of the images, and the others."""
        order = np.random.default_rng(seed).permutation(len(self.masks))
        count = max(1, round(_HELD_OUT * len(order)))
        return self.take(order[:count]), self.take(order[count:])

    def labels(self) -> np.ndarray:
        """Return the labels of each patch's pixels, [B * N, P * P]."""
        return patch_labels.cut(self.masks, self.patch_px)

    def main_labels(self) -> np.ndarray:
        """Return the most frequent label of each patch, [B * N]; negative where most pixels have none."""
        return patch_labels.vote(self.labels()[..., None])[:, 0]

    def count(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Return the confusion of the masks with labels of patches [B * N, P * P], see `segmentation_scores`."""
        predicted = patch_labels.join(labels, self.grid_hw, self.patch_px)
        return segmentation_scores.confusion(self.masks, predicted, num_classes)


@paddle.no_grad()
def read_patches(model, config, source: sources.Source, indices: np.ndarray, layer: int | None = None) -> Patches:
    """Compute the patches of some images of a source with masks.

    Args:
        model: encoder.
        indices: of the images, which are resized whatever their shape; DATA.BAD_IMAGES says what to do about those
            that cannot be read.
        layer: of which the patches are, behind the encoder's last norm; None: the last one.
    """
    size_hw, data = image_size_hw(config), config.DATA
    layer = len(model.encoder.layers) if layer is None else layer
    normalise, features, masks = eval_transform(config).normalise, [], []
    for first in range(0, len(indices), data.BATCH_SIZE):
        pixels = []
        for index in indices[first : first + data.BATCH_SIZE]:
            try:
                image, labels = sources.read_pair(source, int(index), data.IMAGE_CHANNELS, data.EXIF_TRANSPOSE)
            except Exception as error:  # damaged files raise nearly anything
                problem = sources.describe_unreadable(source, int(index), error)
                if data.BAD_IMAGES == "error":
                    raise UserError(problem + sources.SKIP_ADVICE) from error
                print(f"warning: {problem}; it is left out")
                continue
            pixels.append(augment.as_pixels(augment.squash(image, size_hw)))
            masks.append(resize_mask(labels, size_hw))
        if not pixels:
            continue
        tokens = extract(model, normalise(paddle.to_tensor(np.stack(pixels))), [layer], "tokens", norm=True)[layer]
        patches = on_grid(tokens[:, 1:], len(model.architecture.channel_groups))
        features.append(patches.astype("float32").flatten(0, 1).numpy())
    if not any((mask >= 0).any() for mask in masks):
        raise UserError(f"{source.origin}: no pixel of {len(indices)} masks has a class; is DATA.MASK_IGNORE right?")
    embedding = model.patch_embedding
    return Patches(np.concatenate(features), np.stack(masks), embedding.grid_hw, embedding.patch_size)


def segment_by_votes(bank: Patches, asked: np.ndarray, ks: list[int], distance: str) -> dict[int, np.ndarray]:
    """Return {k: labels of the pixels of each patch [m, P * P]} by CAPI's rule.

    Each pixel takes the most frequent label of the same place in the k nearest patches of the bank; patches whose most
    frequent label is none are not in it.

    Args:
        asked: features [m, D].
        distance: one of DISTANCES.
    """
    kept = bank.main_labels() >= 0
    if not kept.any():
        raise UserError("no training patch has a class for most of its pixels; take more images (-num)")
    features, labels, found = bank.features[kept], bank.labels()[kept], {k: [] for k in ks}
    blocks = neighbours.search(features, asked, min(max(ks), len(features)), neighbours.Scaler.of(features), distance)
    for places, _ in blocks:
        for k in ks:
            found[k].append(patch_labels.vote(labels[places[:, :k]]))
    return {k: np.concatenate(parts) for k, parts in found.items()}


def by_capi(
    train: Patches, val: Patches, ks: list[int], num_classes: int, seed: int, say: Callable[[str], None] = print
) -> dict[str, object]:
    """Return the scores of CAPI's protocol on val, and the k and the distance that a tenth of train has chosen."""
    held, others = train.split(seed)
    tried = {}
    for distance in DISTANCES if len(others.masks) else ():
        for k, labels in segment_by_votes(others, held.features, ks, distance).items():
            tried[k, distance] = segmentation_scores.means(held.count(labels, num_classes))["miou"]
            say(f"  {distance}, k={k}: {tried[k, distance]:.2f} on a tenth of the training images")
    k, distance = max(tried, key=tried.get) if tried else (ks[0], DISTANCES[0])
    labels = segment_by_votes(train, val.features, [k], distance)[k]
    return segmentation_scores.means(val.count(labels, num_classes)) | {"k": k, "distance": distance}


def by_hummingbird(train: Patches, val: Patches, k: int, num_classes: int) -> dict[str, object]:
    """Return the scores of Hummingbird's protocol on val, without its augmentation and its sampling of the bank."""
    shares = patch_labels.class_shares(train.labels(), num_classes)
    counts = np.zeros((num_classes, num_classes + 1), np.int64)
    most, per_image = min(k, len(shares)), len(val.features) // len(val.masks)
    masks, scores = iter(val.masks), np.empty((0, num_classes), np.float32)
    for places, found in neighbours.search(train.features, val.features, most):
        scores = np.concatenate([scores, patch_labels.blend(shares[places], found, _TEMPERATURE)])
        while len(scores) >= per_image:
            truth, own, scores = next(masks), scores[:per_image], scores[per_image:]
            predicted = patch_labels.enlarge(own, val.grid_hw, truth.shape)[0]
            counts += segmentation_scores.confusion(truth, predicted, num_classes)
    return segmentation_scores.means(counts) | {"k": k, "distance": "cosine"}


def by_linear_classifier(train: Patches, val: Patches, num_classes: int, seed: int) -> dict[str, float]:
    """Return the scores on val of a linear classifier of patches, whose logits are enlarged bilinearly.

    It is fitted to the most frequent labels of the patches; its learning rate is the one with the best mIoU on a tenth
    of the training images, see `linear_probe.fit_heads`.
    """
    held, fitted = train.split(seed)
    labels = fitted.main_labels()
    kept = labels >= 0
    if len(np.unique(labels[kept])) < 2:
        raise UserError("linear segmentation needs training patches of at least two classes")
    heads = linear_probe.fit_heads(fitted.features[kept], labels[kept].astype(np.int64), seed=seed)
    best = int(np.argmax([scores["miou"] for scores in _score_heads(heads, held, num_classes)]))
    return _score_heads(heads, val, num_classes)[best]


def _score_heads(heads: linear_probe.Heads, patches: Patches, num_classes: int) -> list[dict[str, float]]:
    """Return the scores of each head."""
    counts = np.zeros((heads.bias.shape[0], num_classes, num_classes + 1), np.int64)
    per_image = len(patches.features) // len(patches.masks)
    for image, truth in enumerate(patches.masks):
        own = patches.features[image * per_image : (image + 1) * per_image]
        logits = heads.logits(heads.standardise(own)).numpy()  # [N, R, K]
        for rate in range(len(counts)):
            predicted = patch_labels.enlarge(logits[:, rate], patches.grid_hw, truth.shape)[0]
            counts[rate] += segmentation_scores.confusion(truth, predicted, num_classes)
    return [segmentation_scores.means(own) for own in counts]
