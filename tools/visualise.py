"""Draw the reconstructions of a masked autoencoder, and the attention of an encoder.

    python -m tools.visualise RUN -out FILE.png [-data_path DIR] [-num 8] [-mask_ratio 0.75] [-seed 0]
    python -m tools.visualise RUN photo.jpg folder/ -out page.html -mask_ratio 0.5 0.75 0.9 -attention

RUN is a pretraining run, one of its checkpoints, or a ported file with its YAML. Images are those named, or drawn from
the val split of the run's data set, or of the one that -dataset and -data_path name. Columns: original, masked,
prediction of every patch, reconstruction (the prediction with the visible patches put back), means of the hidden
patches. What is predicted where a patch was visible carries no loss. Several ratios stand side by side, a row for each
image. A .html page has names and captions, in one file. Models trained on normalised pixels predict each patch up to
its mean and contrast; those are taken from the original patch, and the page says so.

`-mask` chooses what is hidden: random patches, `block`s of 4 x 4 patches, or a picture of your own that is white where
a patch is to be hidden. `-same_mask` hides the same patches in every image. `-channels` draws a row in grey for each
channel of arrays. `-attention` adds maps of the encoder: each
head of `-layer` (the last one), and rollout over all layers; any weights have these, also without a decoder.
"""

import runtime

runtime.prepare()

from pathlib import Path

import numpy as np
from PIL import Image

from arguments import Parser, finite
from config import network_kind, replaced
from errors import UserError
from launch import command_line, tool_flags
from methods import load_models
from pages import html
from pages.drawing import draw_attention, draw_images, make_grid, named_images, stack
from pages.reconstruction import COLUMNS, draw_noise_for, mask_to_noise, reconstruct, side_by_side
from pipeline.decoding import as_mode, open_file
from pipeline.folders import find_images
from storage import atomic, results
from training import device


def read_mask(path: str, grid_hw: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Read a drawn mask: a picture that is white where a patch is to be hidden.

    Returns:
        noise: [1, N], and the mask ratio that hides what was drawn.
    """
    try:
        picture = as_mode(open_file(path), channels=1)
    except (UserError, ValueError) as error:
        raise UserError(f"-mask {path}: neither random nor block, nor a picture ({error})") from error
    drawn = np.asarray(picture.resize(grid_hw[::-1], Image.Resampling.BOX))
    return mask_to_noise(drawn > 127, f"-mask {path}")


def _reconstructions(model, config, images: np.ndarray, args) -> tuple[str, list[str], list[np.ndarray], str]:
    """Return heading, columns, their images and caption, for the mask ratios or for the drawn mask."""
    grid_hw = model.patch_embedding.grid_hw
    if args.mask in ("random", "block"):
        noise = draw_noise_for(model, len(images), args.seed, args.mask, args.same_mask)
        ratios = args.mask_ratio or [model.mask_ratio]
    else:
        noise, ratio = read_mask(args.mask, grid_hw)
        noise, ratios = noise.repeat(len(images), axis=0), [ratio]
    drawn = {ratio: reconstruct(model, config, images, ratio, noise) for ratio in ratios}
    if len(drawn) > 1:
        return ("Reconstructions", *side_by_side(drawn))
    ((ratio, result),) = drawn.items()
    return f"{ratio:.0%} hidden", COLUMNS, result.panels, result.caption


def _by_channel(model, config, images: np.ndarray, args) -> tuple[str, list[str], list[np.ndarray], str]:
    """Do `_reconstructions` for each channel in grey; an image has a row for each."""
    if config.DATA.PIXELS == "photo":
        raise UserError("-channels: is for arrays (DATA.PIXELS); the channels of a photo are its colours")
    shown = [replaced(config, "DATA.SHOW_BANDS", [channel]) for channel in range(config.DATA.IMAGE_CHANNELS)]
    drawn = [_reconstructions(model, own, images, args) for own in shown]
    heading, columns, _, caption = drawn[0]
    panels = [np.stack(own, axis=1).reshape(-1, *own[0].shape[1:]) for own in zip(*(d[2] for d in drawn), strict=True)]
    return heading, columns, panels, f"A row for each of {len(drawn)} channels. {caption}"


def _of_rows(names: list[str], panels: list[np.ndarray]) -> list[str]:
    """Return the name of each row; an image may have several."""
    repeats = len(panels[0]) // max(1, len(names))
    return [name for name in names for _ in range(repeats)]


def _check(args) -> Path:
    for ratio in args.mask_ratio or []:
        if not 0 <= ratio < 1:
            raise UserError(f"-mask_ratio {ratio}: must be at least 0 and below 1")
    if args.num < 1:
        raise UserError(f"-num {args.num}: must be at least 1")
    if args.mask not in ("random", "block") and args.mask_ratio:
        raise UserError("-mask_ratio: a drawn mask has its own; leave it out")
    given = [*args.images, *tool_flags.list_inputs(args), args.mask]
    for folder in filter(Path.is_dir, map(Path, args.images)):
        given += find_images(folder)
    return results.new_file(args.out, ".png", ".html", inputs=given)


def main(argv: list[str] | None = None) -> Path:
    """Write the picture or the page, and return its path."""
    parser = Parser(prog="python -m tools.visualise", description=__doc__)
    tool_flags.add_flags(parser)
    parser.add_argument("images", nargs="*", help="image files and folders, instead of a data set")
    parser.add("num", "number of images at most (default: 8)", type=int, default=8)
    parser.add("mask_ratio", "instead of the model's own; a page may have several", type=finite, nargs="+")
    parser.add("mask", "random (default), block, or a picture that is white where it hides", default="random")
    parser.add("same_mask", "hide the same patches in every image", action="store_true")
    parser.add("seed", "chooses images and masks", type=tool_flags.natural, default=0)
    parser.add("channels", "of arrays: a grey row for each channel", action="store_true")
    parser.add("attention", "draw attention, too", action="store_true")
    parser.add("layer", "layer, the heads of which are drawn (default: -1, the last)", type=int, default=-1)
    parser.add("out", ".png or .html file to write", default="reconstruction.png")
    args = parser.parse_intermixed_args(argv)  # images may follow the flags
    out = _check(args)
    device.set_device()
    config = tool_flags.read_config(args)
    names: list[str] = []
    if args.images:
        images, names = named_images(config, args.images, args.num)
    else:
        images = draw_images(config, args.num, args.seed, args.split)
    pictures = []
    if network_kind(config) == "autoencoder" or not args.attention:
        draw = _by_channel if args.channels else _reconstructions
        pictures.append(draw(*load_models.load_autoencoder(args.run, config), images, args))
    if args.attention:
        panels = draw_attention(load_models.load_encoder(args.run, config)[0], config, images, args.layer)
        columns = ["original", "rollout", *(f"head {number}" for number in range(1, len(panels) - 1))]
        caption = f"Rollout over all layers, then what the class token attends to in each head of layer {args.layer}."
        pictures.append(("Attention", columns, panels, caption))
    if out.suffix.lower() == ".png":
        with atomic.replacing(out) as temporary:
            stack([make_grid(panels, columns) for _, columns, panels, _ in pictures]).save(temporary, format="PNG")
    else:
        sections = [
            (heading, html.html_grid(columns, panels, _of_rows(names, panels)) + html.html_paragraph(caption))
            for heading, columns, panels, caption in pictures
        ]
        html.write_page(out, f"What {Path(args.run).name} sees", sections)
    print(f"wrote {out}. {pictures[0][3]}")
    return out


if __name__ == "__main__":
    command_line.run(main)
