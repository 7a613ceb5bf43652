"""Attention of an encoder: scores, maps for pictures, and rollout."""

from collections.abc import Iterable, Iterator

import numpy as np
import paddle
import paddle.nn.functional as F

from transformer import VisionTransformer


def attention_logits(model: VisionTransformer, images: paddle.Tensor) -> Iterator[paddle.Tensor]:
    """Give the scores of one layer after the other, before the softmax, [B, A, T, T].

    Queries are in rows, the class token comes first. Those of all layers together can be larger than the memory.

    Args:
        model: in evaluation mode.
        images: [B, C, H, W], normalised.
    """
    for _, _, logits in model.encoder.walk(model.embed(images), return_logits=True):
        yield logits.astype("float32")


def class_token_maps(logits: paddle.Tensor, grid_hw: tuple[int, int]) -> np.ndarray:
    """Return how much the class token attends to each patch, per head, [B, A, rows, columns]; from one layer.

    Where groups of channels have patches of their own, it is the sum over them; in `rollout`, too.
    """
    weights = F.softmax(logits, axis=-1)[:, :, 0, 1:]  # [B, A, N]
    return weights.reshape([*weights.shape[:2], -1, *grid_hw]).sum(axis=2).numpy()


def rollout(scores: Iterable[paddle.Tensor], grid_hw: tuple[int, int]) -> np.ndarray:
    """Return how much of each patch reaches the class token through all layers, [B, rows, columns].

    Attention rollout (Abnar and Zuidema, arXiv 2005.00928): the product over layers of the mean over heads, with the
    identity added for the residual connection and rows scaled to 1.
    """
    joint = None
    for logits in scores:
        weights = F.softmax(logits, axis=-1).mean(axis=1)  # [B, T, T]
        weights = (weights + paddle.eye(weights.shape[-1])) / 2.0
        joint = weights if joint is None else paddle.matmul(weights, joint)
    patches = joint[:, 0, 1:]
    return patches.reshape([len(patches), -1, *grid_hw]).sum(axis=1).numpy()


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Colour a picture uint8 [H, W, 3] by a map [rows, columns], scaled to its own largest value."""
    from matplotlib import colormaps
    from PIL import Image

    height, width = picture.shape[:2]
    scaled = (255 * (heat - heat.min()) / max(float(np.ptp(heat)), 1e-12)).astype(np.uint8)
    scaled = np.asarray(Image.fromarray(scaled).resize((width, height), Image.Resampling.BICUBIC))
    colours = colormaps["inferno"](scaled)[..., :3] * 255
    return np.round(0.4 * picture + 0.6 * colours).astype(np.uint8)
