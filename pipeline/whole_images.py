"""Whole images with their masks, one at a time, each at its own size: what segmenters are used on."""

import concurrent.futures
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import paddle

from config import image_size_hw
from errors import UserError
from pipeline import augment
from pipeline.loading import Batch
from pipeline.mask_augment import fill_of, pad, resize_to_cover
from pipeline.sources import SKIP_ADVICE, Source, describe_unreadable, read_pair
from pipeline.transforms import eval_transform

_AHEAD = 4  # images that threads read meanwhile


class WholeImages:
    """Batches of one image: resized to cover DATA.IMAGE_SIZE, with the mask at its own size.

    Args:
        source: of the images; without masks, theirs have no class anywhere.
        note_bad: gets a line for each image that is skipped (DATA.BAD_IMAGES skip).
        indices: of the images; None: all.
    """

    def __init__(self, config, source: Source, note_bad: Callable[[str], None], indices: Sequence[int] | None = None):
        self.source, self._config, self._note_bad = source, config, note_bad
        self._indices = range(len(source)) if indices is None else [int(index) for index in indices]
        self._normalise = eval_transform(config).normalise

    def close(self) -> None:
        """Do nothing: the threads end with each iteration."""

    def __len__(self) -> int:
        return len(self._indices)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray] | str:
        """Return pixels [H, W, C] and labels [H', W'] of an image, or why there are none."""
        data = self._config.DATA
        try:
            image, labels = read_pair(self.source, index, data.IMAGE_CHANNELS, data.EXIF_TRANSPOSE)
        except Exception as error:  # damaged files raise nearly anything
            return describe_unreadable(self.source, index, error)
        size_hw = image_size_hw(self._config)
        image, resized = resize_to_cover((image, labels), size_hw)
        return pad(augment.as_pixels(image), resized, size_hw, fill_of(self._config))[0], labels

    def __iter__(self) -> Iterator[Batch]:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            indices = iter(self._indices)
            waiting = [(index, pool.submit(self._read, index)) for index in itertools.islice(indices, _AHEAD)]
            while waiting:
                index, future = waiting.pop(0)
                waiting += [(other, pool.submit(self._read, other)) for other in itertools.islice(indices, 1)]
                found = future.result()
                if isinstance(found, str):
                    if self._config.DATA.BAD_IMAGES == "error":
                        raise UserError(found + SKIP_ADVICE)
                    self._note_bad(found)
                    continue
                images = self._normalise(paddle.to_tensor(found[0][None].copy()))
                masks = paddle.to_tensor(found[1][None].copy())
                yield Batch((images,), np.full(1, -1), np.full(1, index), masks=masks)
