"""Draw what the patches of an encoder have in common: their features' principal components as colours.

    python -m tools.pca RUN photos/ -out pca.html [-joint] [-layer 9] [-image_size 448]

Red, green and blue are the first three components of the patches' features. They are those of each image by itself, or,
with `-joint`, of all images together, so that a colour means the same in each. A second column has them over the photo.
Images are those named, or drawn from the val split of the run's data set, or of the one that -dataset and -data_path
name. A larger `-image_size` gives more patches; the encoder's position table is interpolated.
"""

import runtime

runtime.prepare()

from pathlib import Path

import numpy as np
import paddle

from arguments import Parser
from errors import UserError
from launch import command_line, tool_flags
from layers.patch_embedding import on_grid
from measures.extraction import extract
from measures.patch_colours import colours
from methods import load_models
from pages import drawing, html
from pipeline.folders import find_images
from storage import atomic, results
from training import device

_COLUMNS = ["original", "components", "over the image"]


def draw(model, config, images: np.ndarray, layer: int | None, joint: bool) -> list[np.ndarray]:
    """Return a uint8 array [B, H, W, 3] for each column.

    Args:
        images: [B, C, H, W], normalised.
        layer: of which the patches are, behind the encoder's last norm; None: the last one.
        joint: components of all images together.
    """
    tokens = [_patches(model, image, layer) for image in images]  # one at a time: large images have many tokens
    shown = np.split(colours(np.concatenate(tokens)), len(tokens)) if joint else list(map(colours, tokens))
    rows, columns = model.patch_embedding.grid_hw
    patch_px = model.patch_embedding.patch_size
    grids = np.stack(shown).reshape(len(images), rows, columns, 3)
    maps = grids.repeat(patch_px, axis=1).repeat(patch_px, axis=2)
    pictures = drawing.as_uint8(drawing.to_pixels(config, images))
    pictures = np.broadcast_to(pictures[..., :3], maps.shape)
    return [pictures, maps, ((pictures.astype(np.uint16) + maps) // 2).astype(np.uint8)]


def _patches(model, image: np.ndarray, layer: int | None) -> np.ndarray:
    """Return the features [N, D] of one image's patches."""
    layer = len(model.encoder.layers) if layer is None else layer
    tokens = extract(model, paddle.to_tensor(image[None]), [layer], "tokens", norm=True)[layer]
    return on_grid(tokens[:, 1:], len(model.architecture.channel_groups))[0].astype("float32").numpy()


def main(argv: list[str] | None = None) -> Path:
    """Write the picture or the page, and return its path."""
    parser = Parser(prog="python -m tools.pca", description=__doc__)
    tool_flags.add_flags(parser)
    parser.add_argument("images", nargs="*", help="image files and folders, instead of a data set")
    parser.add("num", "number of images at most (default: 8)", type=int, default=8)
    parser.add("seed", "chooses images of a data set", type=tool_flags.natural, default=0)
    parser.add("joint", "components of all images together", action="store_true")
    parser.add("layer", "block, counted from 1; -1 is the last (default)", type=int)
    parser.add("out", ".png or .html file to write", default="pca.html")
    args = parser.parse_intermixed_args(argv)  # images may follow the flags
    if args.num < 1:
        raise UserError(f"-num {args.num}: must be at least 1")
    given = [*args.images, *tool_flags.list_inputs(args)]
    for folder in filter(Path.is_dir, map(Path, args.images)):
        given += find_images(folder)
    out = results.new_file(args.out, ".png", ".html", inputs=given)
    device.set_device()
    model, config = load_models.load_encoder(args.run, tool_flags.read_config(args))
    if args.images:
        images, names = drawing.named_images(config, args.images, args.num)
    else:
        images, names = drawing.draw_images(config, args.num, args.seed, args.split), []
    panels = draw(model, config, images, args.layer, args.joint)
    if out.suffix.lower() == ".png":
        with atomic.replacing(out) as temporary:
            drawing.make_grid(panels, _COLUMNS).save(temporary, format="PNG")
    else:
        about = "of all images together" if args.joint else "of each image by itself"
        note = f"Red, green and blue: the first three principal components of the patches' features, {about}."
        grid = html.html_grid(_COLUMNS, panels, names) + html.html_paragraph(note)
        html.write_page(out, f"Patches of {Path(args.run).name}", [("", grid)])
    print(f"wrote {out}")
    return out


if __name__ == "__main__":
    command_line.run(main)
