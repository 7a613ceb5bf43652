"""Assignment of images to updates, ranks and micro-steps. NumPy only."""

from collections.abc import Callable, Iterator

import numpy as np

from errors import UserError


class TrainSampler:
    """Deal the images of an epoch to updates, ranks and micro-steps.

    Update u takes images u*E to (u+1)*E of the epoch's random order, where E = batch_size * accum_iter * ranks;
    every rank has a contiguous share of it, cut into micro-steps of `batch_size`. The last update of an epoch is
    smaller, and counts for less (see `update_share`), or left out with `drop_last`. So the same images make an update,
    however they are dealt. An epoch that began with another E continues with the images that are left.

    With `repeats`, an epoch takes a part of the images only, and each of them so often, one after the other: each time
    augmented each time, and decoded once (arXiv 1901.09335).

    Args:
        order: `(seed, epoch) -> order`, where `order[places]` gives the images at places [n] of an epoch's order; None:
            all images at random, see `random_order`. A set too large for that brings its own.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        accum_iter: int = 1,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        drop_last: bool = False,
        repeats: int = 1,
        order: Callable | None = None,
    ):
        self._order_at = order or (lambda seed, epoch: random_order(num_images, seed, epoch))
        self.num_images, self.batch_size, self.accum_iter = num_images, batch_size, accum_iter
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.images_per_update = batch_size * accum_iter * world_size
        self.drop_last, self.repeats = drop_last, repeats
        self.updates_per_epoch = self.updates_left(0)
        if self.updates_per_epoch == 0:
            raise UserError(
                f"{num_images} images are too few: an update takes {self.images_per_update} "
                f"(batch size {batch_size} x accumulation {accum_iter} x {world_size} processes)"
                f"; lower -batch_size or -accum_iter, or use fewer processes"
            )
        self._epoch, self._first_update, self._shift = 0, 0, 0

    def set_position(self, epoch: int, first_update: int = 0, images_done: int | None = None) -> None:
        """Make the next iteration start at an update of an epoch.

        Args:
            images_done: of the epoch, where it began with another number of images per update.
        """
        self._epoch, self._first_update = epoch, first_update
        self._shift = 0 if images_done is None else images_done - first_update * self.images_per_update

    def updates_left(self, images_done: int) -> int:
        """Return how many updates the rest of an epoch makes."""
        full, rest = divmod(self.num_images - images_done, self.images_per_update)
        return full + (0 if self.drop_last or rest < self.world_size else 1)

    def images_before(self, update: int) -> int:
        """Return how many images of the epoch go before an update."""
        return update * self.images_per_update + self._shift

    def update_size(self, update: int) -> int:
        """Return the number of images in an update, over all ranks."""
        return min(self.images_per_update, self.num_images - self.images_before(update))

    def update_share(self, update: int) -> float:
        """Return the size of the step that an update makes, where a full update makes one of 1.

        Every image weighs the same, so an update of n images counts n / E: the mean gradient of a few leftover images,
        at the full rate, would undo what an epoch on few images has learned. An epoch that is one update counts 1.
        """
        return self.update_size(update) / self.images_per_update if self.updates_per_epoch > 1 else 1.0

    def micro_sizes(self, update: int, rank: int | None = None) -> list[int]:
        """Return the sizes of a rank's micro-steps in an update; None: of this one's."""
        share = len(self._share(update, self.rank if rank is None else rank))
        return [min(self.batch_size, share - start) for start in range(0, share, self.batch_size)]

    def indices(self, update: int, rank: int) -> list[int]:
        """Return the images of one rank in an update of the epoch that is dealt."""
        order = self._order_at(self.seed, self._epoch)
        return order[self._places(update, rank) // self.repeats].tolist()

    def _places(self, update: int, rank: int) -> np.ndarray:
        """Return where in the epoch's order the images of one rank in an update are."""
        share = self._share(update, rank)
        return self.images_before(update) + np.arange(share.start, share.stop)

    def _share(self, update: int, rank: int) -> range:
        """Return the places of a rank's images in an update; the first ranks may have one more."""
        each, more = divmod(self.update_size(update), self.world_size)
        first = rank * each + min(rank, more)
        return range(first, first + each + (rank < more))

    def _key(self, index: int, place: int) -> tuple[int, ...]:
        return (self._epoch, index) if self.repeats == 1 else (self._epoch, index, place % self.repeats)

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        order = self._order_at(self.seed, self._epoch)
        for update in range(self._first_update, self.updates_per_epoch):
            places = self._places(update, self.rank)
            images = order[places // self.repeats].tolist()
            keys = [self._key(image, place) for image, place in zip(images, places.tolist(), strict=True)]
            for first in range(0, len(keys), self.batch_size):
                yield keys[first : first + self.batch_size]

    def __len__(self) -> int:
        return sum(len(self.micro_sizes(update)) for update in range(self._first_update, self.updates_per_epoch))


def random_order(num_images: int, seed: int, epoch: int) -> np.ndarray:
    """Return the images of an epoch in random order, [num_images]."""
    return np.random.default_rng([seed, epoch]).permutation(num_images)


class EvalSampler:
    """Deal every image to exactly one rank, without padding; ranks may differ by one image."""

    def __init__(self, num_images: int, batch_size: int, rank: int = 0, world_size: int = 1):
        self._indices = range(rank, num_images, world_size)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in range(0, len(self._indices), self.batch_size):
            yield [(0, index) for index in self._indices[first : first + self.batch_size]]

    def __len__(self) -> int:
        return -(-len(self._indices) // self.batch_size)
