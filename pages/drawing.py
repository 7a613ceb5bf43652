"""Images as models see them, grids of pictures, and maps of attention."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle
from PIL import Image, ImageDraw, ImageFont

from errors import UserError
from measures import attention, image_sets
from pipeline import array_source, sources
from pipeline.decoding import PIL_MODES
from pipeline.file_images import FileImages
from pipeline.folders import find_images
from pipeline.left_out import LeftOut, no_images
from pipeline.transforms import eval_transform

_GAP_PX, _HEADING_PX = 2, 24


def shown_channels(config) -> list[int]:
    """Return the channels that pictures show."""
    data = config.DATA
    takes_all = data.SHOW_BANDS is None and data.IMAGE_CHANNELS in PIL_MODES
    return list(range(data.IMAGE_CHANNELS) if takes_all else data.SHOW_BANDS or [0])


def to_pixels(config, images: np.ndarray | paddle.Tensor) -> np.ndarray:
    """Undo the normalisation of images [B, C, H, W]; pixels are from 0 to 1 then.

    Of arrays (DATA.PIXELS), the channels of DATA.SHOW_BANDS are returned; all panels of a picture have one stretch, as
    0 and 1 are the ends of DATA.PIXEL_RANGE.
    """
    data, shown = config.DATA, shown_channels(config)
    mean, std = (np.asarray(values)[shown].reshape(1, -1, 1, 1) for values in (data.IMAGENET_MEAN, data.IMAGENET_STD))
    return np.asarray(images)[:, shown] * std + mean


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
    patches = weights[:, :, -model.architecture.num_patches :]  # without the class token
    heats = patches.reshape(*weights.shape[:2], -1, *model.patch_embedding.grid_hw).sum(axis=2)
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


def named_images(config, paths: list[str], most: int) -> tuple[np.ndarray, list[str]]:
    """Return the first images [B, C, H, W] among files and folders, and their names if all can be read."""
    files, notes = [], []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path}: no such file or directory")
        left_out = LeftOut()
        files += find_images(path, left_out) if path.is_dir() else [path]
        notes += left_out.notes(path, "files or folders")
    if not files:
        raise no_images(", ".join(paths), notes)
    source = array_source.as_configured(config, FileImages(files, np.full(len(files), -1), Path(paths[0])))
    images = load_images(config, source, range(min(most, len(files))))
    names = [Path(file).name for file in files[:most]]
    return images, names if len(names) == len(images) else []
