"""Learned biases of attention scores by relative position (BEiT, arXiv 2106.08254; SimMIM, arXiv 2111.09886).

Shapes: H x W patches per column and per row, T = 1 + H W tokens with the class token first, A heads. A table has one
row for each of the (2H - 1)(2W - 1) differences between two patches, and then three rows: from the class token to a
patch, from a patch to the class token, and from the class token to itself.
"""

import functools

import numpy as np

_CLASS_ROWS = 3


def num_rows(grid_hw: tuple[int, int]) -> int:
    """Return the number of rows of a table."""
    height, width = grid_hw
    return (2 * height - 1) * (2 * width - 1) + _CLASS_ROWS


@functools.cache
def position_index(grid_hw: tuple[int, int]) -> np.ndarray:
    """Return the row of a table for each pair (query, key), [T, T] int64."""
    height, width = grid_hw
    rows, columns = (places.flatten() for places in np.mgrid[0:height, 0:width])
    row_step = rows[:, None] - rows[None] + height - 1
    column_step = columns[:, None] - columns[None] + width - 1
    num = num_rows(grid_hw)
    index = np.empty((1 + height * width, 1 + height * width), np.int64)
    index[1:, 1:] = row_step * (2 * width - 1) + column_step
    index[0, :], index[:, 0], index[0, 0] = num - 3, num - 2, num - 1
    return index


def resize_bias_table(table: np.ndarray, grid_hw: tuple[int, int], source_grid_hw: tuple[int, int]) -> np.ndarray:
    """Interpolate a table to another grid (bicubic, align_corners=False), as timm does; the last three rows stay.

    Args:
        table: [rows, A].
        grid_hw: the wanted grid.
        source_grid_hw: the table's own.

    Returns:
        [rows, A] float32.
    """
    import paddle  # here, because what only looks at weight files does without
    import paddle.nn.functional as F

    if tuple(source_grid_hw) == tuple(grid_hw):
        return table
    source, wanted = ([2 * side - 1 for side in hw] for hw in (source_grid_hw, grid_hw))
    planes = paddle.to_tensor(table[:-_CLASS_ROWS].astype(np.float32)).t().reshape([1, -1, *source])  # [1, A, h, w]
    planes = F.interpolate(planes, size=wanted, mode="bicubic", align_corners=False)
    patches = planes.reshape([planes.shape[1], -1]).t().numpy()
    return np.concatenate([patches, table[-_CLASS_ROWS:].astype(np.float32)])
