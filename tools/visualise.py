"""Draw what a masked autoencoder sees and what it makes of it, and what an encoder attends to.

    python -m tools.visualise RUN -out FILE.png [-data_path DIR] [-num 8] [-mask_ratio 0.75] [-seed 0]
    python -m tools.visualise RUN photo.jpg folder/ -out page.html -mask_ratio 0.5 0.75 0.9 -attention

RUN is a pretraining run, one of its checkpoints, or a ported file with its YAML. Images are those named, or drawn from
the val split of the run's data set, or of the one that -dataset and -data_path name. Columns: original, masked,
prediction of every patch, reconstruction (the prediction with the visible patches put back). What is predicted where a
patch was visible carries no loss. Several ratios stand below each other in a .png; a .html page has them with captions,
in one file. Models trained on normalised pixels predict each patch up to its mean
and contrast; those are taken from the original patch, and the page says so.

`-mask` chooses what is hidden: random patches, `block`s of 4 x 4 patches, or a picture of your own that is white where
a patch is to be hidden. `-same_mask` hides the same patches in every image. `-attention` adds maps of the encoder: each
head of `-layer` (the last one), and rollout over all layers; any weights have these, also without a decoder.
"""

import runtime

runtime.prepare()

from pathlib import Path

import numpy as np
import paddle
from PIL import Image

import mae
from arguments import Parser, finite
from config import network_of
from errors import UserError
from pipeline import sources
from pipeline.sources import open_image
from pipeline.transforms import eval_transform
from storage import atomic
from storage.regular_files import read_regular_file
from tools import attention, inputs, pages
from training import cli, device

_GREY = 0.5
_GAP_PX = 2
_BLOCK = 4  # patches
_NORMALISED_NOTE = (
    " The model was trained on normalised pixels: it predicts each patch up to its mean and contrast, which are taken "
    "from the original patch here."
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


def read_mask(path: str, grid_hw: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Read a drawn mask: a picture that is white where a patch is to be hidden.

    Returns:
        noise: [1, N], and the mask ratio that hides what was drawn.
    """
    try:
        with open_image(read_regular_file(path, 1 << 30)) as picture:
            drawn = np.asarray(picture.convert("L").resize(grid_hw[::-1], Image.Resampling.BOX))
    except (OSError, ValueError) as error:
        raise UserError(f"-mask {path}: neither random nor block, nor a picture ({error})") from error
    return mask_to_noise(drawn > 127, f"-mask {path}")


def mask_to_noise(hidden: np.ndarray, origin: str) -> tuple[np.ndarray, float]:
    """Turn hidden patches, a truth value for each, into noise [1, N] and the mask ratio."""
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
    """Return four uint8 arrays [B, H, W, C]: original, masked, prediction, reconstruction (prediction + visible).

    Args:
        images: [B, C, H, W], normalised.
        noise: [B, N]; drawn by `seed` if None.
    """
    if noise is None:
        noise = draw_noise(len(images), model.patch_embedding.grid_hw, seed)
    reconstruction, hidden = reconstruct(model, paddle.to_tensor(images), paddle.to_tensor(noise), mask_ratio)
    original, reconstruction, hidden = to_pixels(config, images), to_pixels(config, reconstruction), hidden.numpy()
    panels = (
        original,
        original * (1 - hidden) + _GREY * hidden,
        reconstruction,
        original * (1 - hidden) + reconstruction * hidden,
    )
    return [as_uint8(panel) for panel in panels]


def to_pixels(config, images: np.ndarray | paddle.Tensor) -> np.ndarray:
    """Undo the normalisation of images [B, C, H, W]; pixels are from 0 to 1 then."""
    mean, std = (np.reshape(values, (1, -1, 1, 1)) for values in (config.DATA.IMAGENET_MEAN, config.DATA.IMAGENET_STD))
    return np.asarray(images) * std + mean


def as_uint8(images: np.ndarray) -> np.ndarray:
    """Turn pixels from 0 to 1, [B, C, H, W], into uint8 [B, H, W, C]."""
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)


def make_grid(panels: list[np.ndarray], side_px: int = 96) -> Image.Image:
    """Lay panels out as columns, images as rows; small images are enlarged by a whole factor."""
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
    return Image.fromarray(np.concatenate(rows, axis=0))


def caption_of(model: mae.MAEPretrain) -> str:
    """Say what the columns of reconstructions are."""
    caption = (
        "Columns: original, masked, prediction of every patch (it carries no loss where the patch is visible), "
        "reconstruction: the prediction with the visible patches put back."
    )
    return caption + (_NORMALISED_NOTE if model.norm_pix_loss else "")


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
    pictures = as_uint8(to_pixels(config, images))
    pictures = np.broadcast_to(pictures[..., :3], (*pictures.shape[:3], 3))
    heats = [rollouts, *np.stack(heads, axis=1)]
    return [
        pictures,
        *(np.stack([attention.overlay(*pair) for pair in zip(pictures, heat, strict=True)]) for heat in heats),
    ]


def draw_images(config, num_images: int, seed: int = 0, split: str = "val") -> np.ndarray:
    """Return images [B, C, H, W] drawn from a split of a config's data set, as evaluation sees them."""
    source = inputs.open_any_images(config, split)
    return _load(config, source, np.random.default_rng(seed).permutation(len(source))[:num_images])


def named_images(config, paths: list[str], most: int) -> np.ndarray:
    """Return the first images [B, C, H, W] among files and folders."""
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path}: no such file or directory")
        files += sources.find_images(path) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{', '.join(paths)}: no images found")
    source = sources.FileImages(files, np.full(len(files), -1), Path(paths[0]))
    return _load(config, source, range(min(most, len(files))))


def _load(config, source: sources.Images, indices) -> np.ndarray:
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


def _reconstructions(model, config, images: np.ndarray, args) -> list[tuple[str, Image.Image, str]]:
    """Return heading, picture and caption for each mask ratio, or for the drawn mask."""
    grid_hw = model.patch_embedding.grid_hw
    if args.mask in ("random", "block"):
        noise = draw_noise(len(images), grid_hw, args.seed, args.mask, args.same_mask)
        ratios = args.mask_ratio or [model.mask_ratio]
    else:
        noise, ratio = read_mask(args.mask, grid_hw)
        noise, ratios = noise.repeat(len(images), axis=0), [ratio]
    pictures = []
    for ratio in ratios:
        panels = draw_panels(model, config, images, mask_ratio=ratio, noise=noise)
        pictures.append((f"{ratio:.0%} hidden", make_grid(panels), caption_of(model)))
    return pictures


def _check(args) -> Path:
    for ratio in args.mask_ratio or []:
        if not 0 <= ratio < 1:
            raise UserError(f"-mask_ratio {ratio}: must be at least 0 and below 1")
    if args.num < 1:
        raise UserError(f"-num {args.num}: must be at least 1")
    if args.mask not in ("random", "block") and args.mask_ratio:
        raise UserError("-mask_ratio: a drawn mask has its own; leave it out")
    given = [*args.images, args.run, args.mask]
    for folder in filter(Path.is_dir, map(Path, args.images)):
        given += sources.find_images(folder)
    return inputs.new_file(args.out, ".png", ".html", inputs=given)


def main(argv: list[str] | None = None) -> Path:
    """Write the picture or the page, and return its path."""
    parser = Parser(prog="python -m tools.visualise", description=__doc__)
    inputs.add_flags(parser)
    parser.add_argument("images", nargs="*", help="image files and folders, instead of a data set")
    parser.add("num", "number of images at most (default: 8)", type=int, default=8)
    parser.add("mask_ratio", "instead of the model's own; a page may have several", type=finite, nargs="+")
    parser.add("mask", "random (default), block, or a picture that is white where it hides", default="random")
    parser.add("same_mask", "hide the same patches in every image", action="store_true")
    parser.add("seed", "chooses images and masks", type=inputs.natural, default=0)
    parser.add("attention", "draw attention, too", action="store_true")
    parser.add("layer", "whose heads are drawn (default: -1, the last)", type=int, default=-1)
    parser.add("out", ".png or .html file to write", default="reconstruction.png")
    args = parser.parse_intermixed_args(argv)  # images may follow the flags
    out = _check(args)
    device.set_device()
    config = inputs.read_config(args)
    if args.images:
        images = named_images(config, args.images, args.num)
    else:
        images = draw_images(config, args.num, args.seed, args.split)
    pictures = []
    if network_of(config) == "autoencoder" or not args.attention:
        pictures = _reconstructions(*inputs.load_autoencoder(args.run, config), images, args)
    if args.attention:
        panels = draw_attention(inputs.load_encoder(args.run, config)[0], config, images, args.layer)
        caption = f"Columns: original, rollout over all layers, then each head of layer {args.layer} (class token)."
        pictures.append(("Attention", make_grid(panels), caption))
    if out.suffix.lower() == ".png":
        with atomic.replacing(out) as temporary:
            stack([picture for _, picture, _ in pictures]).save(temporary, format="PNG")
    else:
        sections = [(heading, pages.html_figure(picture, caption)) for heading, picture, caption in pictures]
        pages.write_page(out, f"What {Path(args.run).name} sees", sections)
    print(f"wrote {out}. {pictures[0][2]}")
    return out


if __name__ == "__main__":
    cli.run(main)
