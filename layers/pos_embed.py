"""Fixed 2-D sine-cosine position tables, and their change of grid.

Shapes: N patches = grid height x grid width in row-major order, D width.
"""

import math

import numpy as np

from errors import UserError


def sincos_table(dim: int, grid_hw: tuple[int, int], source_grid_hw: tuple[int, int] | None = None) -> np.ndarray:
    """Build the 2-D sine-cosine table that MAE uses (arXiv 2111.06377, Appendix A.1).

    The first half of the channels encodes the column, the second half the row; each half is
    [sin | cos] of position / 10000^(i / (D/4)). The class token's row is zero. Computed in
    float64, returned in float32, as the official code does.

    Args:
        dim: D, divisible by 4.
        grid_hw: patches per column and per row.
        source_grid_hw: the grid on which positions are counted, where it is another: the centres of the patches keep
            their places in the image. Nearly what bicubic interpolation of that grid's table gives, and exact.

    Returns:
        [1, 1 + N, D] float32.
    """
    if dim % 4:
        raise UserError(f"a 2-D sine-cosine table needs a width divisible by 4, not {dim}")
    height, width = grid_hw
    frequencies = 10000.0 ** -(np.arange(dim // 4, dtype=np.float64) / (dim // 4))  # [D/4]
    steps = [whole / own for whole, own in zip(source_grid_hw or grid_hw, grid_hw, strict=True)]
    centres = [(np.arange(own) + 0.5) * step - 0.5 for own, step in zip((height, width), steps, strict=True)]
    rows, columns = np.meshgrid(*centres, indexing="ij")  # [H, W]
    halves = []
    for position in (columns, rows):
        angles = position.reshape(-1, 1) * frequencies  # [N, D/4]
        halves += [np.sin(angles), np.cos(angles)]
    table = np.concatenate([np.zeros((1, dim)), np.concatenate(halves, axis=1)])  # [1 + N, D]
    return table[None].astype(np.float32)


def position_table(dim: int, grid_hw: tuple[int, int], num_groups: int = 0, is_decoder: bool = False) -> np.ndarray:
    """Build the table of positions of a model, whose channels may be in groups (SatMAE, arXiv 2207.08051).

    With groups, a part of the width is the sine-cosine code of the group's number: a third of an encoder's, at most
    256, and a quarter of a decoder's, as in the published models. A decoder's class token has the number behind the
    last group's, an encoder's zeros.

    Returns:
        [1, 1 + N, D], or [1, 1 + G * N, D] with G groups, one after another.
    """
    if num_groups == 0:
        return sincos_table(dim, grid_hw)
    width = dim // 4 if is_decoder else min(256, dim // 3)
    width = max(4, width - width % 4)
    places = sincos_table(dim - width, grid_hw)[0]  # [1 + N, .]
    angles = np.arange(num_groups + 1)[:, None] * 10000.0 ** -(np.arange(width // 2) / (width // 2))
    codes = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)  # [G + 1, width]
    first = np.concatenate([places[0], codes[-1] if is_decoder else np.zeros(width, np.float32)])
    rows = [np.concatenate([places[1:], np.tile(code, (len(places) - 1, 1))], axis=1) for code in codes[:-1]]
    return np.concatenate([first[None], *rows])[None]


def square_grid(num_patches: int) -> tuple[int, int]:
    """Return the square grid of `num_patches`, or raise UserError if there is none."""
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise UserError(f"a position table of {num_patches} patches has no square grid; its grid must be stated")
    return side, side


def resize_table(
    table: np.ndarray, grid_hw: tuple[int, int], source_grid_hw: tuple[int, int] | None = None, num_groups: int = 1
) -> np.ndarray:
    """Interpolate a position table to another grid (bicubic, align_corners=False); keep the class row.

    Args:
        table: [1, 1 + N, D], or [1, 1 + G * N, D].
        grid_hw: the wanted grid.
        source_grid_hw: the table's own grid; None: square.
        num_groups: G, see `position_table`.

    Returns:
        [1, 1 + G * grid height * grid width, D] float32.
    """
    import paddle  # here, because what only looks at weight files does without
    import paddle.nn.functional as F

    num_patches = (table.shape[1] - 1) // num_groups
    source = source_grid_hw or square_grid(num_patches)
    if source[0] * source[1] != num_patches:
        raise UserError(f"a grid of {source[0]}x{source[1]} does not fit a position table of {num_patches} patches")
    if tuple(source) == tuple(grid_hw):
        return table
    dim = table.shape[2]
    patches = (
        paddle.to_tensor(table[:, 1:].astype(np.float32)).reshape([num_groups, *source, dim]).transpose([0, 3, 1, 2])
    )
    patches = F.interpolate(patches, size=list(grid_hw), mode="bicubic", align_corners=False)  # [1, D, H, W]
    patches = patches.transpose([0, 2, 3, 1]).reshape([1, -1, dim]).numpy()
    return np.concatenate([table[:, :1].astype(np.float32), patches], axis=1)
