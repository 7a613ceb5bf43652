"""Reconstructions of a masked autoencoder: their pictures, their errors, and what is hidden."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import paddle

import mae
from errors import UserError
from layers.patches import patchify, unpatchify
from pages import html
from pages.drawing import as_uint8, shown_channels, to_pixels
from pipeline.pixel_array import PixelFormat

COLUMNS = ["original", "masked", "prediction", "reconstruction", "patch means only"]
_GREY = 0.5
_BLOCK = 4  # patches
_VISIBLE_NOTE = "The prediction carries no loss where a patch is visible."
_CROSS_NOTE = "The decoder predicts hidden patches alone; the others are the photo's."
_NORMALISED_NOTE = (
    " The model was trained on normalised pixels: it predicts each patch up to its mean and contrast, which are taken "
    "from the original patch here, so that even an untrained model draws something: compare the two errors."
)


class Reconstruction(NamedTuple):
    """What a model makes of the visible patches of images, beside what needs no model.

    Attributes:
        panels: uint8 [B, H, W, C] for each of COLUMNS. The reconstruction is the prediction with the visible patches
            put back; the last column has the mean of each hidden patch in its place, which nobody need learn.
        error: mean squared error of the prediction on the hidden patches: the model's loss.
        means_error: the same of a prediction of each patch's mean.
        is_normalised: whether the errors are of normalised pixels, see `MODEL.NORM_PIX_LOSS`.
        predicts_visible: False for a cross decoder, in whose prediction visible patches are the photo's.
        deviations: root mean squared error of each channel, in the numbers of the files (decibels, where these are
            taken); of arrays (DATA.PIXELS) only.
    """

    panels: list[np.ndarray]
    error: float
    means_error: float
    is_normalised: bool
    predicts_visible: bool = True
    deviations: Sequence[float] = ()

    @property
    def caption(self) -> str:
        """Return the errors as a sentence, and what to know of the pictures."""
        return (
            f"Mean squared error on the hidden patches of these images: {self.error:.3f} by the model, "
            f"{self.means_error:.3f} by the means of the patches alone (last column). "
            f"{_VISIBLE_NOTE if self.predicts_visible else _CROSS_NOTE}"
            f"{_NORMALISED_NOTE if self.is_normalised else ''}{self._in_numbers()}"
        )

    def _in_numbers(self) -> str:
        if not self.deviations:
            return ""
        listed = ", ".join(f"{channel}: {value:.4g}" for channel, value in enumerate(self.deviations))
        return f" Root mean squared error of each channel in the numbers of the files: {listed}."

    def to_html(self) -> str:
        """Return the pictures as a grid, and the caption."""
        return html.html_grid(COLUMNS, self.panels) + html.html_paragraph(self.caption)


@paddle.no_grad()
def reconstruct(
    model: mae.MAEPretrain, config, images: np.ndarray, mask_ratio: float | None = None, noise: np.ndarray | None = None
) -> Reconstruction:
    """Hide patches of images, and predict them.

    Args:
        images: [B, C, H, W], normalised.
        mask_ratio: instead of the model's own.
        noise: [B, N], see `MAEPretrain.forward`; drawn by seed 0 if None. With groups of channels that hide patches
            of their own, [B, G*N], or [B, N] to hide the same of all.
    """
    patch_size, grid_hw = model.patch_embedding.patch_size, model.patch_embedding.grid_hw
    noise = draw_noise_for(model, len(images)) if noise is None else noise
    inputs = paddle.to_tensor(images)
    loss, pred, mask = model(inputs, mask_ratio=mask_ratio, noise=paddle.to_tensor(noise))
    means, std = model.groups.statistics(patchify(inputs, patch_size))
    means_loss = model.loss(inputs, paddle.zeros(pred.shape) if model.norm_pix_loss else means, mask)
    pred = pred * std + means if model.norm_pix_loss else pred
    hidden = unpatchify(model.groups.hidden(mask, patch_size), patch_size, grid_hw).numpy()  # [B, C, H, W]
    deviations = _deviations(config, images, unpatchify(pred, patch_size, grid_hw).numpy(), hidden)
    hidden, original = hidden[:, shown_channels(config)], to_pixels(config, images)
    pred, means = (to_pixels(config, unpatchify(pixels, patch_size, grid_hw)) for pixels in (pred, means))
    filled = [original * (1 - hidden) + pixels * hidden for pixels in (_GREY, pred, means)]
    panels = [as_uint8(panel) for panel in (original, filled[0], filled[1] if model.is_cross else pred, *filled[1:])]
    errors = (float(loss), float(means_loss))
    return Reconstruction(panels, *errors, model.norm_pix_loss, not model.is_cross, deviations)


def _deviations(config, images: np.ndarray, pred: np.ndarray, hidden: np.ndarray) -> list[float]:
    """Return the root mean squared error of each channel's hidden pixels, in the numbers of the files; of arrays only.

    Args:
        images, pred: [B, C, H, W], normalised.
        hidden: 1 where a pixel is hidden.
    """
    if config.DATA.PIXELS == "photo":
        return []
    squares = ((pred - images) ** 2 * hidden).sum(axis=(0, 2, 3)) / np.maximum(hidden.sum(axis=(0, 2, 3)), 1)
    form = PixelFormat.of_config(config)
    spans = np.subtract(form.high, form.low) * np.asarray(config.DATA.IMAGENET_STD)
    return (np.sqrt(squares) * spans).tolist()


def side_by_side(drawn: dict[float, Reconstruction]) -> tuple[list[str], list[np.ndarray], str]:
    """Lay out the same images at several mask ratios, a row for each image.

    Returns:
        headings: of the columns.
        panels: uint8 [B, H, W, C] for each column.
        caption: with the errors at each ratio.
    """
    first = next(iter(drawn.values()))
    headings, panels, errors = [COLUMNS[0]], [first.panels[0]], []
    for ratio, result in drawn.items():
        headings += [f"{ratio:.0%} hidden", "reconstruction", "patch means"]
        panels += [result.panels[1], *result.panels[3:]]
        errors.append(f"{ratio:.0%} hidden: {result.error:.3f} and {result.means_error:.3f}")
    caption = (
        "Mean squared error on the hidden patches of these images, by the model and by the means of the patches "
        f"alone; {', '.join(errors)}."
    )
    return headings, panels, caption + (_NORMALISED_NOTE if first.is_normalised else "")


def draw_noise_for(
    model: mae.MAEPretrain, num_images: int, seed: int = 0, kind: str = "random", same: bool = False
) -> np.ndarray:
    """Draw noise as a model wants it, see `draw_noise`: [B, G*N], where groups hide patches of their own."""
    grid_hw = model.patch_embedding.grid_hw
    groups = range(model.num_masked // (grid_hw[0] * grid_hw[1]))
    return np.concatenate([draw_noise(num_images, grid_hw, seed + group, kind, same) for group in groups], axis=1)


def draw_noise(
    num_images: int, grid_hw: tuple[int, int], seed: int = 0, kind: str = "random", same: bool = False
) -> np.ndarray:
    """Draw noise [B, N] whose smallest values are to stay visible.

    Args:
        kind: "random", or "block": blocks of 4 x 4 patches are hidden together.
        same: all images get the same.
    """
    rng, (rows, columns) = np.random.default_rng(seed), grid_hw
    count = 1 if same else num_images
    noise = rng.random((count, rows, columns), dtype=np.float32)
    if kind == "block":
        blocks = rng.random((count, -(-rows // _BLOCK), -(-columns // _BLOCK)), dtype=np.float32)
        coarse = blocks.repeat(_BLOCK, axis=1).repeat(_BLOCK, axis=2)[:, :rows, :columns]
        noise = coarse + 1e-4 * noise
    return np.broadcast_to(noise.reshape(count, -1), (num_images, rows * columns)).copy()


def mask_to_noise(hidden: np.ndarray, origin: str) -> tuple[np.ndarray, float]:
    """Turn a boolean per patch, True where it is hidden, into noise [1, N] and the mask ratio."""
    hidden = hidden.reshape(1, -1)
    if hidden.all() or not hidden.any():
        raise UserError(f"{origin}: hides {'all' if hidden.all() else 'none'} of {hidden.size} patches")
    return hidden.astype(np.float32), float(hidden.mean())
