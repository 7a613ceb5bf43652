"""Pictures of what models see, predict and attend to."""

from collections.abc import Sequence

import numpy as np
import paddle
from PIL import Image, ImageDraw, ImageFont

import mae
from errors import UserError
from measures import attention, image_sets
from pipeline import sources
from pipeline.transforms import eval_transform

COLUMNS = ["original", "masked", "prediction", "reconstruction", "patch means only"]
_GREY = 0.5
_GAP_PX, _HEADING_PX = 2, 24
_BLOCK = 4  # patches
_NORMALISED_NOTE = (
    " The model was trained on normalised pixels: it predicts each patch up to its mean and contrast, which are taken "
    "from the original patch here, so that even an untrained model draws something: compare the two errors."
)


@paddle.no_grad()
def reconstruct(
    model: mae.MAEPretrain, images: paddle.Tensor, noise: paddle.Tensor | None = None, mask_ratio: float | None = None
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """Predict the pixels of all patches, in the scale of the images.

    Args:
        images: [B, C, H, W], normalised.
        noise: [B, N], see `MAEPretrain.forward`.
        mask_ratio: instead of the model's own.

    Returns:
        reconstruction: [B, C, H, W].
        hidden: [B, 1, H, W]; 1 where the pixel was hidden.
    """
    _, pred, mask = model(images, mask_ratio=mask_ratio, noise=noise)
    patch_size, grid_hw = model.patch_embedding.patch_size, model.patch_embedding.grid_hw
    if model.norm_pix_loss:
        mean, std = mae.patch_statistics(mae.patchify(images, patch_size))
        pred = pred * std + mean
    hidden = mask.unsqueeze(-1).expand([*mask.shape, patch_size**2])
    return mae.unpatchify(pred, patch_size, grid_hw), mae.unpatchify(hidden, patch_size, grid_hw)


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


def draw_panels(
    model: mae.MAEPretrain,
    config,
    images: np.ndarray,
    seed: int = 0,
    mask_ratio: float | None = None,
    noise: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Return a uint8 array [B, H, W, C] for each of COLUMNS.

    The reconstruction is the prediction with the visible patches put back. The last column has the mean of each hidden
    patch in its place: what is seen there, a model need not have learned.

    Args:
        images: [B, C, H, W], normalised.
        noise: [B, N]; drawn by `seed` if None.
    """
    if noise is None:
        noise = draw_noise(len(images), model.patch_embedding.grid_hw, seed)
    reconstruction, hidden = reconstruct(model, paddle.to_tensor(images), paddle.to_tensor(noise), mask_ratio)
    patches = mae.patchify(paddle.to_tensor(images), model.patch_embedding.patch_size)
    means = mae.patch_statistics(patches)[0].expand(patches.shape)
    means = mae.unpatchify(means, model.patch_embedding.patch_size, model.patch_embedding.grid_hw)
    means = to_pixels(config, means)
    original, reconstruction, hidden = to_pixels(config, images), to_pixels(config, reconstruction), hidden.numpy()
    panels = (
        original,
        original * (1 - hidden) + _GREY * hidden,
        reconstruction,
        original * (1 - hidden) + reconstruction * hidden,
        original * (1 - hidden) + means * hidden,
    )
    return [as_uint8(panel) for panel in panels]


def to_pixels(config, images: np.ndarray | paddle.Tensor) -> np.ndarray:
    """Undo the normalisation of images [B, C, H, W]; pixels are from 0 to 1 then."""
    mean, std = (np.reshape(values, (1, -1, 1, 1)) for values in (config.DATA.IMAGENET_MEAN, config.DATA.IMAGENET_STD))
    return np.asarray(images) * std + mean


def as_uint8(images: np.ndarray) -> np.ndarray:
    """Turn pixels from 0 to 1, [B, C, H, W], into uint8 [B, H, W, C]."""
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def make_grid(panels: list[np.ndarray], headings: Sequence[str] = (), side_px: int = 96) -> Image.Image:
    """Lay panels out as columns, images as rows; small images are enlarged by an integer factor.

    Args:
        headings: of the columns.
        side_px: smallest side of an image that is enlarged.
    """
    factor = max(1, side_px // max(panels[0].shape[1:3]))
    rows = []
    for images in zip(*panels, strict=True):
        cells = [np.repeat(np.repeat(image, factor, axis=0), factor, axis=1) for image in images]
        cells = [
            np.pad(
                np.broadcast_to(cell[..., :3], (*cell.shape[:2], 3)),
                ((0, _GAP_PX), (0, _GAP_PX), (0, 0)),
                constant_values=255,
            )
            for cell in cells
        ]
        rows.append(np.concatenate(cells, axis=1))
    grid = Image.fromarray(np.concatenate(rows, axis=0))
    if not headings:
        return grid
    page = Image.new("RGB", (grid.width, grid.height + _HEADING_PX), "white")
    page.paste(grid, (0, _HEADING_PX))
    pen, column_px = ImageDraw.Draw(page), grid.width // len(panels)
    font = ImageFont.load_default(min(0.6 * _HEADING_PX, 1.8 * column_px / max(map(len, headings))))
    for column, heading in enumerate(headings):
        pen.text((column * column_px + 2, _HEADING_PX * 0.2), heading, "black", font)
    return page


def draw_reconstructions(
    model: mae.MAEPretrain, config, images: np.ndarray, mask_ratio: float | None = None, noise: np.ndarray | None = None
) -> tuple[list[np.ndarray], str]:
    """Return the arrays of `draw_panels`, and a caption that compares the model with the means of the patches."""
    noise = draw_noise(len(images), model.patch_embedding.grid_hw) if noise is None else noise
    own, means = errors_on_hidden(model, paddle.to_tensor(images), paddle.to_tensor(noise), mask_ratio)
    caption = (
        f"Mean squared error on the hidden patches of these images: {own:.3f} by the model, {means:.3f} by the means "
        "of the patches alone (last column). The prediction carries no loss where a patch is visible."
    )
    panels = draw_panels(model, config, images, mask_ratio=mask_ratio, noise=noise)
    return panels, caption + (_NORMALISED_NOTE if model.norm_pix_loss else "")


@paddle.no_grad()
def errors_on_hidden(
    model: mae.MAEPretrain, images: paddle.Tensor, noise: paddle.Tensor, mask_ratio: float | None = None
) -> tuple[float, float]:
    """Return the loss of a model, and that of a prediction of each patch's mean; arguments as of `reconstruct`."""
    loss, pred, mask = model(images, mask_ratio=mask_ratio, noise=noise)
    if model.norm_pix_loss:  # the target's means are 0
        means = paddle.zeros(pred.shape)
    else:
        means = mae.patch_statistics(mae.patchify(images, model.patch_embedding.patch_size))[0].expand(pred.shape)
    return float(loss), float(model.loss(images, means, mask))


def stack(pictures: list[Image.Image]) -> Image.Image:
    """Put pictures below each other."""
    page = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        page.paste(picture, (0, top))
        top += picture.height
    return page


@paddle.no_grad()
def draw_attention(model, config, images: np.ndarray, layer: int = -1) -> list[np.ndarray]:
    """Return uint8 arrays [B, H, W, 3]: original, rollout over all layers, and each head of one layer."""
    depth, grid_hw = len(model.encoder.layers), model.patch_embedding.grid_hw
    if not 1 <= abs(layer) <= depth:
        raise UserError(f"-layer {layer}: the encoder has layers 1 to {depth}")
    layer = layer - 1 if layer > 0 else depth + layer
    heads, rollouts = [], []
    for image in images:  # one at a time: scores of all take much memory
        scores = list(attention.attention_logits(model, paddle.to_tensor(image[None])))
        heads.append(attention.class_token_maps(scores[layer], grid_hw)[0])  # [A, rows, columns]
        rollouts.append(attention.rollout(scores, grid_hw)[0])
    return _overlaid(config, images, [rollouts, *np.stack(heads, axis=1)])


@paddle.no_grad()
def draw_pooler(model, config, images: np.ndarray, most: int) -> list[np.ndarray]:
    """Return uint8 arrays [B, H, W, 3]: original, and what the first queries or heads of an attentive pooler read."""
    tokens = model.pooled_tokens(model.forward_tokens(paddle.to_tensor(images)))
    weights = model.pooler.attention(tokens).numpy()[:, :most]  # [B, Q, N]
    rows, columns = model.patch_embedding.grid_hw
    heats = weights[:, :, -rows * columns :].reshape(*weights.shape[:2], rows, columns)  # without the class token
    return _overlaid(config, images, heats.swapaxes(0, 1))


def _overlaid(config, images: np.ndarray, heats: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Return uint8 arrays [B, H, W, 3]: original images, and these under each of some maps [B, rows, columns]."""
    pictures = as_uint8(to_pixels(config, images))
    pictures = np.broadcast_to(pictures[..., :3], (*pictures.shape[:3], 3))
    pairs = (zip(pictures, heat, strict=True) for heat in heats)
    return [pictures, *(np.stack([attention.overlay(*pair) for pair in own]) for own in pairs)]


def draw_images(config, num_images: int, seed: int = 0, split: str = "val") -> np.ndarray:
    """Return images [B, C, H, W] drawn from a split of a config's data set, as evaluation sees them."""
    source = image_sets.open_any_images(config, split)
    return load_images(config, source, np.random.default_rng(seed).permutation(len(source))[:num_images])


def load_images(config, source: sources.Source, indices) -> np.ndarray:
    """Return some images of a source [B, C, H, W], as evaluation sees them."""
    rng, transform, channels = np.random.default_rng(0), eval_transform(config), config.DATA.IMAGE_CHANNELS
    arrays = []
    for index in indices:
        problem = sources.why_unreadable(source, index, channels)
        if problem is None:
            arrays.append(transform(sources.read_image(source, index, channels, config.DATA.EXIF_TRANSPOSE), rng))
        elif config.DATA.BAD_IMAGES == "error":
            raise UserError(problem + sources.SKIP_ADVICE)
    if not arrays:
        raise UserError(f"{source.origin}: none of the images can be read")
    return np.stack(arrays)
