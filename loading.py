"""Batches of augmented images, from worker processes.

What an image looks like after augmentation depends on (seed, epoch, image index) alone: not on the number of
workers, on ranks, or on what was loaded before. Order and batches are a function of (seed, epoch).
"""

from collections.abc import Callable, Iterator

import numpy as np
import paddle
from PIL import Image

from datasets import PIL_MODES, ArrayImages, FileImages
from errors import UserError, one_line
from samplers import EvalSampler, TrainSampler

Transform = Callable[[Image.Image, np.random.Generator], np.ndarray]
_MOST_BAD_IN_A_ROW = 100


def read_image(source: FileImages | ArrayImages, index: int, channels: int) -> Image.Image:
    """Decode an image of a source, as 8-bit grey (1 channel), RGB (3) or RGBA (4)."""
    image, mode = source.image(index), PIL_MODES[channels]
    if image.mode.startswith("I;16"):  # Pillow would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257.0).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels have mode {image.mode}, whose range is unknown; save it with 8 or 16 bits")
    return image if image.mode == mode else image.convert(mode)


class _Samples(paddle.io.Dataset):
    """Source and transform behind the keys (epoch, index) that the samplers deal.

    A sample is (array or None, label, what was wrong with which image); an error is a text. An exception in a worker
    would only say "Blocking queue is killed".
    """

    def __init__(self, source, transform: Transform, channels: int, seed: int, bad_images: str, replaces: bool):
        super().__init__()
        self._source, self._transform, self._channels, self._seed = source, transform, channels, seed
        self._bad_images, self._replaces = bad_images, replaces

    def __getitem__(self, key: tuple[int, int]):
        epoch, index = key
        notes = []
        for other in range(index, index + _MOST_BAD_IN_A_ROW):
            other %= len(self._source)
            try:
                image = read_image(self._source, other, self._channels)
                array = self._transform(image, np.random.default_rng([self._seed, epoch, index]))
                return array, self._source.labels[other], notes
            except Exception as error:
                notes.append(f"{self._source.describe(other)}: cannot be read as an image ({one_line(error)})")
            if self._bad_images == "error":
                return f"{notes[0]}; -opts DATA.BAD_IMAGES skip goes on without it"
            if not self._replaces:
                return None, -1, notes
        return f"{notes[0]}, and neither can the {_MOST_BAD_IN_A_ROW - 1} after it"

    def __len__(self) -> int:
        return len(self._source)


def _collate(samples: list) -> list[np.ndarray]:
    """Return [images, labels, notes as UTF-8]; [text as UTF-8] after an error; [nothing, notes] if no image is left."""
    for sample in samples:
        if isinstance(sample, str):
            return [np.frombuffer(sample.encode(), np.uint8)]
    text = "\n".join(note for _, _, notes in samples for note in notes)
    notes = np.frombuffer(text.encode() or b" ", np.uint8)
    good = [(array, label) for array, label, _ in samples if array is not None]
    if not good:
        return [np.zeros(1, np.uint8), notes]
    return [np.stack([array for array, _ in good]), np.array([label for _, label in good], np.int64), notes]


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
        self._loader = paddle.io.DataLoader(
            _Samples(source, transform, channels, seed, bad_images, isinstance(sampler, TrainSampler)),
            batch_sampler=sampler,
            collate_fn=_collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            return_list=True,
        )

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[paddle.Tensor]]:
        for batch in self._loader:
            if len(batch) == 1:
                raise UserError(bytes(batch[0].numpy()).decode())
            *batch, notes = batch
            if notes.shape[0] > 1:
                self._note(bytes(notes.numpy()).decode().splitlines())
            if len(batch) == 2:
                yield batch

    def _note(self, notes: list[str]) -> None:
        for note in notes:
            if note not in self._noted:
                self._noted.add(note)
                self._note_bad(note)

    def epoch(self, epoch: int, first_update: int = 0, images_done: int | None = None) -> Iterator[list[paddle.Tensor]]:
        """Iterate the micro-steps of an epoch, from an update on; see `TrainSampler.set_position`."""
        self.sampler.set_position(epoch, first_update, images_done)
        return iter(self)
