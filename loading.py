"""Batches of augmented images, from worker processes.

What an image looks like after augmentation depends on (seed, epoch, image index) alone: not on the number of
workers, on ranks, or on what was loaded before. Order and batches are a function of (seed, epoch).
"""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import paddle
from PIL import Image, ImageOps

from datasets import PIL_MODES, ArrayImages, FileImages
from errors import UserError, one_line
from samplers import EvalSampler, TrainSampler
from workers import WorkerPool

Transform = Callable[[Image.Image, np.random.Generator], np.ndarray]
_MOST_BAD_IN_A_ROW = 100
SKIP_ADVICE = "; -opts DATA.BAD_IMAGES skip goes on without it"


def read_image(source: FileImages | ArrayImages, index: int, channels: int) -> Image.Image:
    """Decode an image of a source, upright, as 8-bit grey (1 channel), RGB (3) or RGBA (4)."""
    image, mode = source.image(index), PIL_MODES[channels]
    with contextlib.suppress(Exception):  # pixels that are whole are worth more than a damaged note on how to turn them
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257.0).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels have mode {image.mode}, whose range is unknown; save it with 8 or 16 bits")
    elif "transparency" in image.info and mode == "RGB":
        image = image.convert("RGBA")  # else Pillow warns of palettes
    return image if image.mode == mode else image.convert(mode)


def why_unreadable(source: FileImages | ArrayImages, index: int, channels: int) -> str | None:
    """Say why an image cannot be decoded; None if it can."""
    try:
        read_image(source, index, channels)
        return None
    except Exception as error:  # damaged files raise nearly anything
        return _describe_unreadable(source, index, error)


def _describe_unreadable(source: FileImages | ArrayImages, index: int, error: Exception) -> str:
    return f"{source.describe(index)}: cannot be read as an image ({one_line(error)})"


class _Reader:
    """Reads and transforms the images behind the keys (epoch, index) that the samplers deal. Without Paddle."""

    def __init__(self, source, transform: Transform, channels: int, seed: int, bad_images: str, replaces: bool):
        self._source, self._transform, self._channels, self._seed = source, transform, channels, seed
        self._bad_images, self._replaces = bad_images, replaces

    def sample(self, key: tuple[int, int]) -> tuple[np.ndarray | None, int, list[str]]:
        """Return an image's array (None: left out), its label, and what was wrong with which image."""
        epoch, index = key
        notes = []
        for other in range(index, index + _MOST_BAD_IN_A_ROW):
            other %= len(self._source)
            try:
                image = read_image(self._source, other, self._channels)
                array = self._transform(image, np.random.default_rng([self._seed, epoch, index]))
                return array, int(self._source.labels[other]), notes
            except Exception as error:
                notes.append(_describe_unreadable(self._source, other, error))
            if self._bad_images == "error":
                raise UserError(notes[0] + SKIP_ADVICE)
            if not self._replaces:
                return None, -1, notes
        raise UserError(f"{notes[0]}, and neither can the {_MOST_BAD_IN_A_ROW - 1} after it")

    def fill(self, keys: list[tuple[int, int]], out: np.ndarray) -> tuple[list[int], list[str]]:
        """Write a batch to `out` [B, ...]; returns the labels of what is there, and notes."""
        labels, notes = [], []
        for key in keys:
            array, label, some = self.sample(key)
            notes += some
            if array is not None:
                out[len(labels)] = array
                labels.append(label)
        return labels, notes


class Loader:
    """Batches `[images [B, C, H, W] float32, labels [B] int64]` of a source.

    Args:
        sampler: a `TrainSampler`, or an `EvalSampler`.
        num_workers: processes that load; 0: load here.
        bad_images: "error", or "skip": training takes the next image that can be read in the place of one that
            cannot, so that batches keep their size; evaluation leaves it out.
        note_bad: gets a line for each image that was skipped, once.
    """

    def __init__(
        self,
        source: FileImages | ArrayImages,
        transform: Transform,
        sampler: TrainSampler | EvalSampler,
        *,
        channels: int = 3,
        seed: int = 0,
        num_workers: int = 0,
        bad_images: str = "error",
        note_bad: Callable[[str], None] = lambda note: None,
    ):
        self.source, self.sampler = source, sampler
        self._note_bad, self._noted = note_bad, set()
        self._reader = _Reader(source, transform, channels, seed, bad_images, isinstance(sampler, TrainSampler))
        self._num_workers = num_workers
        self._pool: WorkerPool | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[paddle.Tensor]]:
        if self._pool is None:
            self._pool = self._start()
        for images, (labels, notes) in self._pool.run(self.sampler):
            for note in notes:
                if note not in self._noted:
                    self._noted.add(note)
                    self._note_bad(note)
            if labels:
                yield [paddle.to_tensor(images[: len(labels)]), paddle.to_tensor(labels, "int64")]

    def _start(self) -> WorkerPool:
        """Start the workers, with room for batches of what the transform makes of the first image."""
        samples = (self._reader.sample(key)[0] for keys in self.sampler for key in keys)
        first = next((sample for sample in samples if sample is not None), None)
        if first is None:
            raise UserError(f"{self.source.origin}: none of its images can be read")
        return WorkerPool(self._reader.fill, self._num_workers, (self.sampler.batch_size, *first.shape), first.dtype)

    def epoch(self, epoch: int, first_update: int = 0, images_done: int | None = None) -> Iterator[list[paddle.Tensor]]:
        """Iterate the micro-steps of an epoch, from an update on; see `TrainSampler.set_position`."""
        self.sampler.set_position(epoch, first_update, images_done)
        return iter(self)
