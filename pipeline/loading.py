"""Batches of augmented images, from worker processes.

What a view of an image looks like depends on (seed, epoch, image index, view) alone: not on the number of workers, on
ranks, or on earlier images. Order and batches are a function of (seed, epoch).
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import paddle
from PIL import Image

from errors import UserError
from pipeline import fast_jpeg
from pipeline.device_copy import to_device
from pipeline.labels import stack_labels
from pipeline.samplers import EvalSampler, TrainSampler
from pipeline.sources import SKIP_ADVICE, Source, describe_unreadable, read_image, read_pair
from pipeline.transforms import Transform
from pipeline.workers import WorkerPool

_MOST_BAD_IN_A_ROW = 100
_PROGRESS_SECS = 30.0


@dataclasses.dataclass(frozen=True)
class Batch:
    """B images of a data set, with labels, indices and captions.

    Attributes:
        views: [B, C, H, W] float32 for each view that the transform makes of an image.
        host_labels: [B] int64; or [B, L] for a set with several labels per image, padded with -1. -1: no label.
        host_indices: [B] int64, of the images in their source.
        captions: B texts; None for a set without.
        masks: labels of pixels, [B, H, W] int16, -1: of no class; None where the transform takes none.
    """

    views: tuple[paddle.Tensor, ...]
    host_labels: np.ndarray
    host_indices: np.ndarray
    captions: list[str] | None = None
    masks: paddle.Tensor | None = None

    @functools.cached_property
    def labels(self) -> paddle.Tensor:
        """`host_labels` on the device, copied when they are first used."""
        return to_device([self.host_labels])[0]

    @functools.cached_property
    def indices(self) -> paddle.Tensor:
        """`host_indices` on the device, likewise."""
        return to_device([self.host_indices])[0]

    @property
    def images(self) -> paddle.Tensor:
        """The first view, [B, C, H, W]."""
        return self.views[0]

    def __len__(self) -> int:
        return self.views[0].shape[0]


class Sample(NamedTuple):
    """An image of a batch: its views, its index in the source, its label or labels, and its caption."""

    views: list[np.ndarray]
    index: int
    label: int | Sequence[int]
    caption: str | None


class Filled(NamedTuple):
    """What belongs to the images of a batch: their indices, labels [B] or [B, L], captions, and notes on bad images."""

    indices: list[int]
    labels: np.ndarray | None
    captions: list[str] | None
    notes: list[str]


class Reader:
    """Reads and transforms the images behind the keys (epoch, index[, repeat]) of the samplers. Without Paddle.

    All randomness of a view follows from (seed, epoch, index, repeat, view).

    Args:
        views: functions (image, generator) -> array, see `transforms.Transform`.
        replaces: an image that cannot be read is replaced by the next one; else it is left out.
        fast: read JPEGs by `fast_jpeg`.
        with_captions: read captions, where the source has them.
        takes_masks: there is one view, which takes a pair of image and mask, and returns a pair of arrays.
    """

    def __init__(
        self,
        source: Source,
        views: Sequence[Callable],
        channels: int,
        seed: int,
        bad_images: str,
        replaces: bool,
        fast: bool,
        upright: bool,
        with_captions: bool = False,
        takes_masks: bool = False,
    ):
        self._takes_masks = takes_masks
        self._captions = source.captions if with_captions else None
        self._source, self._views, self._channels, self._seed = source, views, channels, seed
        self._bad_images, self._replaces, self._fast, self._upright = bad_images, replaces, fast, upright
        self._last: tuple[int, object] = (-1, None)  # repeats of an image follow each other

    def sample(self, key: tuple[int, ...]) -> tuple[Sample | None, list[str]]:
        """Return an image (None: it is left out), and notes on images that cannot be read."""
        index, notes = key[1], []
        for attempt in range(_MOST_BAD_IN_A_ROW):
            other = self._source.alternative(index, attempt) if attempt else index
            try:
                if self._takes_masks:
                    pair = read_pair(self._source, other, self._channels, self._upright)
                    views = list(self._views[0](pair, self._generator(key, 0)))
                else:
                    image = self._open(other)
                    views = [view(image, self._generator(key, n)) for n, view in enumerate(self._views)]
                caption = None if self._captions is None else self._captions[other]
                return Sample(views, other, self._source.labels[other], caption), notes
            except Exception as error:
                notes.append(describe_unreadable(self._source, other, error))
            if self._bad_images == "error":
                raise UserError(notes[0] + SKIP_ADVICE)
            if not self._replaces:
                return None, notes
        raise UserError(f"{notes[0]}, and neither can the {_MOST_BAD_IN_A_ROW - 1} after it")

    def _generator(self, key: tuple[int, ...], view: int) -> np.random.Generator:
        if view == 0:
            return np.random.default_rng([self._seed, *key])
        epoch, index, repeat = (*key, 0)[:3]
        return np.random.default_rng([self._seed, epoch, index, repeat, view])

    def _open(self, index: int) -> Image.Image | fast_jpeg.LazyJpeg:
        if self._last[0] != index:
            image = None
            if self._fast:
                image = fast_jpeg.open_jpeg(self._source.read(index), self._channels, self._upright)
            if image is None:
                image = read_image(self._source, index, self._channels, self._upright)
            self._last = (index, image)
        return self._last[1]

    def fill(self, keys: list[tuple[int, ...]], out: np.ndarray) -> "Filled":
        """Write a batch to `out` [B], whose fields are the views; return what belongs to its images."""
        samples, notes = [], []
        for key in keys:
            sample, some = self.sample(key)
            notes += some
            if sample is not None:
                for name, array in zip(out.dtype.names, sample.views, strict=True):
                    out[name][len(samples)] = array
                samples.append(sample)
        texts = None if self._captions is None else [sample.caption for sample in samples]
        labels = stack_labels([sample.label for sample in samples]) if samples else None
        return Filled([sample.index for sample in samples], labels, texts, notes)


class Loader:
    """Batches of a source.

    Args:
        source: of the images.
        transform: a `Transform`; or (image, generator) -> array, whose batches are passed on as they are.
        sampler: a `TrainSampler`, or an `EvalSampler`.
        num_workers: processes that load; 0: load here.
        upright: turn photos upright by their EXIF orientation.
        fast_decode: read JPEGs by `fast_jpeg`, where the transform can.
        bad_images: "error", or "skip": training takes the next image that can be read in the place of one that
            cannot, so that batches keep their size; evaluation leaves it out.
        note_bad: gets a line for each image that was skipped, once.
        with_captions: batches have the captions of the images.
        stages: (first epoch, `Transform`) in the place of `transform`, where it changes between epochs.

    Attributes:
        waited_secs: time that was spent waiting for images to be loaded.
    """

    def __init__(
        self,
        source: Source,
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
        with_captions: bool = False,
        stages: Sequence[tuple[int, Transform]] = (),
    ):
        self.source, self.sampler = source, sampler
        self._note_bad, self._noted = note_bad, set()
        is_split = isinstance(transform, Transform)
        fast = fast_decode and is_split and transform.takes_jpegs and source.is_encoded
        if fast:
            fast_jpeg.check_installed()
        is_training = isinstance(sampler, TrainSampler)
        self._takes_masks = is_split and transform.takes_masks
        options = {"with_captions": with_captions, "takes_masks": self._takes_masks}
        others = (channels, seed, bad_images, is_training, fast, upright)
        self._reader_of = lambda views: Reader(source, views, *others, **options)
        self._num_workers, self._stages = num_workers, stages
        self._pool: WorkerPool | None = None
        self._transform: Transform | Callable | None = None
        self._use(transform)
        self.waited_secs = 0.0

    def _use(self, transform: Transform | Callable) -> None:
        """Make batches by a transform from now on, in new worker processes if it is another one."""
        if transform is self._transform:
            return
        self.close()
        self._transform, is_split = transform, isinstance(transform, Transform)
        self._reader = self._reader_of(transform.views if is_split else (transform,))
        self._normalise = transform.normalise if is_split else lambda images: images

    def close(self) -> None:
        """End the worker processes; the next batch starts new ones."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        if self._pool is None:
            self._pool = self._start()
        if self._pool is None:
            return
        for arrays, filled in self._timed(self._pool.run(self.sampler)):
            for note in filled.notes:
                if note not in self._noted:
                    self._noted.add(note)
                    self._note_bad(note)
            if filled.indices:
                yield self._batch(arrays[: len(filled.indices)], filled)

    def _timed(self, results: Iterator) -> Iterator:
        """Yield results, and count the time until each is there, without what becomes of it on the device."""
        while True:
            started = time.monotonic()
            result = next(results, None)
            self.waited_secs += time.monotonic() - started
            if result is None:
                return
            yield result

    def _batch(self, arrays: np.ndarray, filled: Filled) -> Batch:
        views = to_device([arrays[name] for name in arrays.dtype.names])
        masks = views.pop() if self._takes_masks else None
        labels, indices = np.asarray(filled.labels, np.int64), np.asarray(filled.indices, np.int64)
        return Batch(tuple(map(self._normalise, views)), labels, indices, filled.captions, masks)

    def _start(self) -> WorkerPool | None:
        """Start the workers, with room for batches of what the transform makes of the first image."""
        samples = (self._reader.sample(key)[0] for keys in self.sampler for key in keys)
        first = next((sample.views for sample in samples if sample is not None), None)
        if first is None:  # this rank has no share of a small val split, or none of it can be read
            return None
        fields = [(f"view{number}", array.dtype, array.shape) for number, array in enumerate(first)]
        dtype = np.dtype(fields, align=True)
        return WorkerPool(self._reader.fill, self._num_workers, (self.sampler.batch_size,), dtype)

    def epoch(self, epoch: int, first_update: int = 0, images_done: int | None = None) -> Iterator[Batch]:
        """Iterate the micro-steps of an epoch, from an update on; see `TrainSampler.set_position`."""
        begun = [transform for first_epoch, transform in self._stages if first_epoch <= epoch]
        if begun:
            self._use(begun[-1])
        self.sampler.set_position(epoch, first_update, images_done)
        return iter(self)


def _print(line: str) -> None:
    print(line, flush=True)


def with_progress(
    batches: Iterable[Batch], total: int, what: str, say: Callable[[str], None] = _print
) -> Iterator[Batch]:
    """Yield batches, and say every half minute how many of all images are done."""
    done, said_at = 0, time.monotonic()
    for batch in batches:
        yield batch
        done += len(batch)
        if time.monotonic() - said_at >= _PROGRESS_SECS:
            said_at = time.monotonic()
            say(f"{what}: {done:,} of {total:,} images")
