"""Draw what a masked autoencoder sees and what it makes of it.

    python -m tools.visualise RUN -data_path DIR [-dataset NAME] [-num 8] [-mask_ratio 0.75] [-seed 0] [-out FILE.png]

RUN is a pretraining run, one of its checkpoints, or a ported file with its YAML; images come from the val split of its
own data set unless -dataset and -data_path name another one. Columns: original, masked, reconstruction, reconstruction
with the visible patches put back. Models trained on normalised pixels predict each patch up to its mean and contrast;
those are taken from the original patch.
"""

import runtime

runtime.prepare()

from pathlib import Path

import numpy as np
import paddle
from PIL import Image

import checkpoint
import cli
import loading
import mae
import recipes
import weight_files
from arguments import Parser
from config import get_config
from errors import UserError

_GREY = 0.5
_GAP_PX = 2


def load_pretrained(path: str | Path) -> tuple[mae.MAEPretrain, object]:
    """Load a model and its config from a pretraining run, a checkpoint, or a file with its YAML beside it."""
    weights = weight_files.resolve(path)
    config = get_config(weight_files.config_beside(weights))
    model = mae.build_mae_pretrain(config)
    checkpoint.load_weights(model, weights)
    model.eval()
    return model, config


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


def draw_panels(
    model: mae.MAEPretrain, config, images: np.ndarray, seed: int = 0, mask_ratio: float | None = None
) -> list[np.ndarray]:
    """Return four uint8 arrays [B, H, W, C]: original, masked, reconstruction, reconstruction + visible."""
    tensor = paddle.to_tensor(images)
    noise = np.random.default_rng(seed).random((len(images), model.patch_embedding.num_patches), dtype=np.float32)
    reconstruction, hidden = reconstruct(model, tensor, paddle.to_tensor(noise), mask_ratio)
    mean, std = (np.reshape(values, (1, -1, 1, 1)) for values in (config.DATA.IMAGENET_MEAN, config.DATA.IMAGENET_STD))
    original, reconstruction, hidden = images * std + mean, reconstruction.numpy() * std + mean, hidden.numpy()
    panels = (
        original,
        original * (1 - hidden) + _GREY * hidden,
        reconstruction,
        original * (1 - hidden) + reconstruction * hidden,
    )
    return [np.round(np.clip(panel, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1) for panel in panels]


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


def val_images(config, num_images: int, seed: int = 0) -> np.ndarray:
    """Return images [B, C, H, W] drawn from the val split of a config's data set, as evaluation sees them."""
    source = recipes.open_split(config, "val", print)
    rng, transform = np.random.default_rng(seed), recipes.eval_transform(config)
    chosen = rng.permutation(len(source))[:num_images]
    return np.stack([transform(loading.read_image(source, index, config.DATA.IMAGE_CHANNELS), rng) for index in chosen])


def main(argv: list[str] | None = None) -> Path:
    """Write the picture, and return its path."""
    parser = Parser(prog="python -m tools.visualise", description=__doc__)
    parser.add_argument("run", help="pretraining run, checkpoint directory, or ported file")
    parser.add("dataset", "instead of the run's own")
    parser.add("data_path", "instead of the run's own")
    parser.add("num", "number of images", type=int, default=8)
    parser.add("mask_ratio", "instead of the model's own", type=float)
    parser.add("seed", "chooses images and masks", type=int, default=0)
    parser.add("out", "PNG file to write", default="reconstruction.png")
    args = parser.parse_args(argv)
    out = Path(args.out)
    if out.suffix.lower() != ".png" or not out.parent.is_dir():
        raise UserError(f"-out {out}: must be a .png file in a directory that exists")
    if args.num < 1:
        raise UserError(f"-num {args.num}: must be at least 1")
    if args.mask_ratio is not None and not 0 <= args.mask_ratio < 1:
        raise UserError(f"-mask_ratio {args.mask_ratio}: must be at least 0 and below 1")
    model, config = load_pretrained(args.run)
    overrides = {"DATA.DATASET": args.dataset, "DATA.DATA_PATH": args.data_path}
    overrides = [word for key, value in overrides.items() if value is not None for word in (key, value)]
    config = get_config(weight_files.config_beside(weight_files.resolve(args.run)), overrides)
    panels = draw_panels(model, config, val_images(config, args.num, args.seed), args.seed, args.mask_ratio)
    make_grid(panels).save(out)
    print(f"wrote {out}: original, masked, reconstruction, reconstruction with the visible patches")
    return out


if __name__ == "__main__":
    cli.run(main)
