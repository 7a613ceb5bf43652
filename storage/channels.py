"""Weights for images of one number of channels in a model for images of another (MODEL.ADAPT_CHANNELS)."""

import math

import numpy as np

from storage.stored_tensor import StoredTensor

_COLOURS = 3
# SatMAE, arXiv 2207.08051, ViT-L on 13 bands of fMoW-Sentinel.
_OF_MANY = "; on 13 bands of satellites such a start has been reported as worse than none (51.6 against 53.0 %)"
_MEAN, _NONE = "mean", "none"
_PATCHES, _PREDICTION = "patch_embedding.patch_embedding.weight", "decoder_pred"
# Tensors with a value for each pixel and channel of a patch.
_PARTS = (_PATCHES, "patch_embedding.norm_pixels.weight", "patch_embedding.norm_pixels.bias")
_PARTS += (f"{_PREDICTION}.weight", f"{_PREDICTION}.bias")


def adapt_channels(weights: dict[str, StoredTensor], channels: int, how: str | None) -> str:
    """Give weights another number of channels, in place; return what was done, "" for nothing.

    `repeat` takes the channels in turn, as timm does, `mean` their mean; the projection of patches is scaled by the
    channels before over those after, which keeps the size of its output. So a model of one channel answers to a grey
    image as the RGB model does, in either way. Predictions of pixels are repeated or averaged, not scaled.
    `none` removes the tensors, so that a model keeps its own at random.

    Args:
        weights: of a file.
        channels: of the model.
        how: "repeat", "mean" or "none"; None: nothing is done.
    """
    if how is None or _PATCHES not in weights or len(weights[_PATCHES].shape) != 4:
        return ""
    found = weights[_PATCHES].shape[1]
    if found == channels:
        return ""
    names = [name for name in _PARTS if name in weights]
    for name in names:
        tensor = weights.pop(name)
        if how != _NONE:
            weights[name] = StoredTensor.of(_adapted(name, tensor.read_float32(), found, channels, how))
    if how == _NONE:
        return f"{found} channels, and the model has {channels}: {', '.join(names)} not taken"
    note = _OF_MANY if channels > _COLOURS else ""
    return f"{found} channels to {channels} by {how}: {', '.join(names)}{note}"


def _adapted(name: str, values: np.ndarray, found: int, channels: int, how: str) -> np.ndarray:
    """Return a tensor with `channels` channels."""
    is_prediction, shape = name.startswith(_PREDICTION), values.shape
    if is_prediction:  # pixels in (row, column, channel) order
        values = values.reshape([-1, found])
    elif name == _PATCHES:
        values = np.moveaxis(values, 1, -1)
    else:
        values = values.reshape([found, -1]).T
    if how == _MEAN or channels == 1:
        values = values.mean(axis=-1, keepdims=True)
    adapted = np.take(values, np.arange(channels) % values.shape[-1], axis=-1)
    if name == _PATCHES:
        return np.moveaxis(adapted * np.float32(found / channels), -1, 1)
    if is_prediction:
        return adapted.reshape([*shape[:-1], math.prod(shape[-1:]) // found * channels])
    return adapted.T.flatten()
