"""Batches of augmented images, from worker processes.

What an image looks like after augmentation depends on (seed, epoch, image index) alone: not on the number of
workers, on ranks, or on what was loaded before. Order and batches are a function of (seed, epoch).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import paddle
from PIL import Image, ImageOps

import fast_jpeg
from datasets import PIL_MODES, Images
from encoded_images import EncodedImages
from errors import UserError, one_line
from samplers import EvalSampler, TrainSampler
from workers import WorkerPool

_MOST_BAD_IN_A_ROW = 100
SKIP_ADVICE = "; -opts DATA.BAD_IMAGES skip goes on without it"


@dataclasses.dataclass(frozen=True)
class Transform:
    """What becomes of an image: one half per image, in worker processes, and one per batch, on the device.

    Attributes:
        pixels: (image, generator) -> uint8 [H, W, C]; four times less to move than float32.
        mean: per channel, of pixels in [0, 1].
        std: likewise.
        takes_jpegs: `pixels` begins with a crop, so it takes a `fast_jpeg.LazyJpeg`, too.
    """

    pixels: Callable[[Image.Image, np.random.Generator], np.ndarray]
    mean: Sequence[float]
    std: Sequence[float]
    takes_jpegs: bool = False

    def normalise(self, images: paddle.Tensor) -> paddle.Tensor:
        """Turn uint8 [B, H, W, C] into float32 [B, C, H, W], on the tensor's device."""
        scale, shift = self._scale_and_shift
        return images.transpose([0, 3, 1, 2]).astype("float32") * scale + shift

    @functools.cached_property
    def _scale_and_shift(self) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Return what uint8 is multiplied by, and what is added then, [1, C, 1, 1]; on the device once."""
        std = np.asarray(self.std, np.float64)
        values = (1.0 / (255.0 * std), -np.asarray(self.mean, np.float64) / std)
        scale, shift = (paddle.to_tensor(value.reshape(1, -1, 1, 1).astype(np.float32)) for value in values)
        return scale, shift

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """Return one image as the model takes it, float32 [C, H, W]."""
        return self.normalise(paddle.to_tensor(self.pixels(image, rng)[None].copy()))[0].numpy()


def read_image(source: Images, index: int, channels: int, upright: bool = True) -> Image.Image:
    """Decode an image of a source as 8-bit grey (1 channel), RGB (3) or RGBA (4).

    Args:
        upright: turn it as its EXIF note says (DATA.EXIF_TRANSPOSE).
    """
    image, mode = source.image(index), PIL_MODES[channels]
    if upright:
        with contextlib.suppress(Exception):  # whole pixels are worth more than a damaged note on how to turn them
            ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257.0).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels have mode {image.mode}, whose range is unknown; save it with 8 or 16 bits")
    elif "transparency" in image.info and mode == "RGB":
        image = image.convert("RGBA")  # else Pillow warns of palettes
    return image if image.mode == mode else image.convert(mode)


def why_unreadable(source: Images, index: int, channels: int) -> str | None:
    """Say why an image cannot be decoded; None if it can."""
    try:
        read_image(source, index, channels)
        return None
    except Exception as error:  # damaged files raise nearly anything
        return describe_unreadable(source, index, error)


def describe_unreadable(source: Images, index: int, error: Exception) -> str:
    """Say which image cannot be decoded, and why."""
    return f"{source.describe(index)}: cannot be read as an image ({one_line(error)})"


class Reader:
    """Reads and transforms the images behind the keys (epoch, index[, repeat]) of the samplers. Without Paddle."""

    def __init__(
        self,
        source: Images,
        pixels: Callable,
        channels: int,
        seed: int,
        bad_images: str,
        replaces: bool,
        fast: bool,
        upright: bool,
    ):
        self._source, self._pixels, self._channels, self._seed = source, pixels, channels, seed
        self._bad_images, self._replaces, self._fast, self._upright = bad_images, replaces, fast, upright
        self._last: tuple[int, object] = (-1, None)  # repeats of an image follow each other

    def sample(self, key: tuple[int, ...]) -> tuple[np.ndarray | None, int, list[str]]:
        """Return an image's array (None: left out), its label, and what was wrong with which image."""
        index, notes = key[1], []
        for other in range(index, index + _MOST_BAD_IN_A_ROW):
            other %= len(self._source)
            try:
                image = self._open(other)
                array = self._pixels(image, np.random.default_rng([self._seed, *key]))
                return array, int(self._source.labels[other]), notes
            except Exception as error:
                notes.append(describe_unreadable(self._source, other, error))
            if self._bad_images == "error":
                raise UserError(notes[0] + SKIP_ADVICE)
            if not self._replaces:
                return None, -1, notes
        raise UserError(f"{notes[0]}, and neither can the {_MOST_BAD_IN_A_ROW - 1} after it")

    def _open(self, index: int) -> Image.Image | fast_jpeg.LazyJpeg:
        if self._last[0] != index:
            image = None
            if self._fast:
                image = fast_jpeg.open_jpeg(self._source.read(index), self._channels, self._upright)
            if image is None:
                image = read_image(self._source, index, self._channels, self._upright)
            self._last = (index, image)
        return self._last[1]

    def fill(self, keys: list[tuple[int, ...]], out: np.ndarray) -> tuple[list[int], list[str]]:
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
        transform: a `Transform`; or (image, generator) -> array, whose batches are passed on as they are.
        sampler: a `TrainSampler`, or an `EvalSampler`.
        num_workers: processes that load; 0: load here.
        upright: turn photos as their EXIF notes say.
        fast_decode: read JPEGs by `fast_jpeg`, where the transform can.
        bad_images: "error", or "skip": training takes the next image that can be read in the place of one that
            cannot, so that batches keep their size; evaluation leaves it out.
        note_bad: gets a line for each image that was skipped, once.
    """

    def __init__(
        self,
        source: Images,
        transform: Transform | Callable[[Image.Image, np.random.Generator], np.ndarray],
        sampler: TrainSampler | EvalSampler,
        *,
        channels: int = 3,
        seed: int = 0,
        num_workers: int = 0,
        upright: bool = True,
        fast_decode: bool = False,
        bad_images: str = "error",
        note_bad: Callable[[str], None] = lambda note: None,
    ):
        self.source, self.sampler = source, sampler
        self._note_bad, self._noted = note_bad, set()
        is_split = isinstance(transform, Transform)
        pixels = transform.pixels if is_split else transform
        fast = fast_decode and is_split and transform.takes_jpegs and isinstance(source, EncodedImages)
        if fast:
            fast_jpeg.check_installed()
        self._normalise = transform.normalise if is_split else lambda images: images
        is_training = isinstance(sampler, TrainSampler)
        self._reader = Reader(source, pixels, channels, seed, bad_images, is_training, fast, upright)
        self._num_workers = num_workers
        self._pool: WorkerPool | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[paddle.Tensor]]:
        if self._pool is None:
            self._pool = self._start()
        if self._pool is None:
            return
        for images, (labels, notes) in self._pool.run(self.sampler):
            for note in notes:
                if note not in self._noted:
                    self._noted.add(note)
                    self._note_bad(note)
            if labels:
                images = self._normalise(paddle.to_tensor(images[: len(labels)]))
                yield [images, paddle.to_tensor(labels, "int64")]

    def _start(self) -> WorkerPool | None:
        """Start the workers, with room for batches of what the transform makes of the first image."""
        samples = (self._reader.sample(key)[0] for keys in self.sampler for key in keys)
        first = next((sample for sample in samples if sample is not None), None)
        if first is None:  # this rank has no share of a small val split, or none of it can be read
            return None
        return WorkerPool(self._reader.fill, self._num_workers, (self.sampler.batch_size, *first.shape), first.dtype)

    def epoch(self, epoch: int, first_update: int = 0, images_done: int | None = None) -> Iterator[list[paddle.Tensor]]:
        """Iterate the micro-steps of an epoch, from an update on; see `TrainSampler.set_position`."""
        self.sampler.set_position(epoch, first_update, images_done)
        return iter(self)
