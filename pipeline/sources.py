"""The one interface of data sets: a `Source` is one split, with what is known of each image.

A new kind of data set is a subclass of `Source`, and a line in `datasets._open`. What changes a part of another
source (a subset, labels alone) is a subclass of `wrapped_sources.Wrapper`, which hands on everything else.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from errors import UserError, abridge, one_line
from pipeline.decoding import PIL_MODES, as_mode, decode, lost_as_photo
from pipeline.labels import PerImage, RaggedLists
from pipeline.left_out import no_images
from pipeline.pixel_array import PixelArray

SKIP_ADVICE = "; -opts DATA.BAD_IMAGES skip continues without it"
LABELLED = ("label", "labels", "label set")  # kinds of needs of `datasets.open_source` that are labels
_MOST_CLASSES = 1_000_000  # a larger label is a mistake, and would take the memory of so large a classifier


class Source:
    """The images of one split.

    Attributes:
        labels: [N] int64, -1 where there is none; or N lists of labels.
        origin: file or folder that lists the images, for messages.
        class_names: in label order; None for a set without.
        captions: N texts; None for a set without.
        notes: lines on what is there and is not used, and why.
        is_encoded: `read` returns the encoded image.
        order: (seed, epoch) -> order of an epoch's images, see `samplers.TrainSampler`; None: all at random.
        has_labels_in_memory: False for a set whose labels are read image by image.
        holds_arrays: `image` returns an array of its own numbers, [H, W, C], for DATA.PIXELS array.
        has_masks: `mask` returns a label for each pixel.
        limited_by: " (list of names, and how many images of how many)" for messages; "": these are all of the split.
    """

    labels: np.ndarray | RaggedLists | PerImage
    origin: str | Path
    class_names: list[str] | None = None
    captions: PerImage | None = None
    notes: Sequence[str] = ()
    limited_by = ""
    is_encoded = False
    order: Callable | None = None
    has_labels_in_memory = True
    has_masks = holds_arrays = False

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self, index: int) -> str:
        """Name an image in a message."""
        return f"{self.origin} image {index}"

    def path(self, index: int) -> Path | None:
        """Return the file that an image alone is in; None where it has none."""
        return None

    def name(self, index: int) -> str:
        """Return the name of an image within the split, wherever its files are: what lists of images hold."""
        return str(index)

    def names(self, indices: np.ndarray | None = None) -> Iterator[str]:
        """Yield the names of images, of all or at these indices."""
        return map(self.name, range(len(self)) if indices is None else indices.tolist())

    def content(self) -> Iterator[str]:
        """Yield lines that say which images these are, in order: the name of each, or of shards that of each shard."""
        return self.names()

    def order_among(self, indices: np.ndarray) -> Callable | None:
        """Return `order` for some of the images, [n] ascending; None where any order will do."""
        return None

    def image(self, index: int) -> Image.Image:
        """Return a decoded image, of any mode."""
        return decode(self.read(index))

    def read(self, index: int) -> bytes:
        """Return the encoded image, where `is_encoded`."""
        raise NotImplementedError

    def numbers(self, index: int) -> np.ndarray:
        """Return the numbers in an image's file, [H, W, C], with DATA.PIXELS array."""
        raise NotImplementedError

    def mask(self, index: int) -> np.ndarray:
        """Return the labels of an image's pixels, int16 [H, W], where `has_masks`; -1: of no class."""
        raise NotImplementedError

    def lost(self, index: int) -> str | None:
        """Return what reading an image leaves out or does not apply; None: nothing."""
        return lost_as_photo(self.read(index)) if self.is_encoded else None

    def missing(self) -> list[int]:
        """Return the images that are not there, where that can be seen without reading them."""
        return []

    def missing_masks(self, indices: np.ndarray | None = None) -> list[str]:
        """Return the files of masks that are not there, of all images or at these indices."""
        return []

    def alternative(self, index: int, attempt: int) -> int:
        """Return the image to take in the place of one that cannot be read, at an attempt from 1 on."""
        return (index + attempt) % len(self)

    # ---- labels

    def label_lists(self) -> RaggedLists:
        """Return the labels of all images as lists; a set that is read image by image reads all of its index."""
        return RaggedLists.of(self.labels)

    @property
    def largest_label(self) -> int:
        """The largest label; -1 without any."""
        return int(self.label_lists().flat.max(initial=-1))

    @property
    def has_labels(self) -> bool:
        """True if some image has a label."""
        return self.largest_label >= 0

    def single_labels(self, strict: bool = True) -> np.ndarray:
        """Return one label per image, [N] int64.

        Args:
            strict: an image with another number of labels is an error; False: no image of the set has a label then.

        Raises:
            UserError: naming the first such image.
        """
        lists = self.label_lists()
        odd = np.flatnonzero(lists.lengths != 1)
        if len(odd) and strict:
            count = lists.lengths[odd[0]]
            several = "; for several labels per image: -opts TRAIN.MULTI_LABEL True" if count > 1 else ""
            raise UserError(f"{self.describe(odd[0])}: has {count} labels, and here each image must have one{several}")
        return np.full(len(self), -1, np.int64) if len(odd) else lists.flat

    def use_class_names(self, class_names: list[str]) -> None:
        """Give the images the labels that their classes have in another order of names.

        Raises:
            UserError: if there are images of a class that has none of these names.
        """
        labels = self.single_labels()
        label_of = {name: label for label, name in enumerate(class_names)}
        table = np.array([label_of.get(name, -1) for name in self.class_names] or [-1], np.int64)
        found = np.unique(labels[labels >= 0])
        unknown = [self.class_names[label] for label in found.tolist() if table[label] < 0]
        if unknown:
            raise UserError(
                f"{self.origin}: has images of classes that were not trained: {abridge(unknown, 8)}; the classes are "
                f"{abridge(class_names, 20)} (DATA.CLASS_NAMES)"
            )
        self.labels, self.class_names = np.where(labels >= 0, table[labels], labels), class_names

    def count_classes(self) -> int:
        """Return the number of classes: that of the names, or one more than the largest label.

        Raises:
            UserError: if there are no labels.
        """
        if self.class_names is not None:
            return len(self.class_names)
        largest = self.largest_label
        if largest < 0:
            raise UserError(f"{self.origin}: has no labels; MODEL.NUM_CLASSES cannot follow them")
        if largest >= _MOST_CLASSES:
            raise UserError(f"{self.origin}: has the label {largest:,}; at most {_MOST_CLASSES - 1:,}")
        return largest + 1

    def summary(self) -> str:
        """Return a line with the numbers of images and classes."""
        with_captions = "" if self.captions is None else " with captions"
        labels, counts = np.unique(self.label_lists().flat, return_counts=True)
        if not len(labels) or labels[0] < 0:
            return f"{len(self):,} images{with_captions or ' without labels'}"
        return f"{len(self):,} images of {len(labels):,} classes, {counts.min():,} to {counts.max():,} each"

    # ---- checks

    def check(self, *, num_classes: int | None, channels: int, is_val: bool = False) -> list[str]:
        """Check the split before anything is trained on it.

        Args:
            num_classes: labels must be below this; None: labels are not used.
            channels: of the images that the model takes.
            is_val: a class without images is a warning, not an error.

        Returns:
            Warnings: what is not used, and what may be a mistake.

        Raises:
            UserError: naming missing files, labels out of range, and empty classes.
        """
        self.check_channels(channels)
        if len(self) == 0:
            raise no_images(self.origin, self.notes)
        problems, notes, missing = [], list(self.notes), self.missing()
        if missing:
            named = abridge([self.describe(index) for index in missing[:5]], 5, total=len(missing))
            windows = "; is this a list from Windows? / is needed for each backslash" if "\\" in named else ""
            problems.append(f"{len(missing)} files are missing: {named}{windows}")
        masks = self.missing_masks()
        if masks:
            problems.append(f"{len(masks)} masks are missing: {abridge(masks, 5)}")
        if self.largest_label >= _MOST_CLASSES:
            problems.append(f"has the label {self.largest_label:,}; at most {_MOST_CLASSES - 1:,}")
        if num_classes is not None and not problems:
            own_problems, own_notes = self._check_labels(num_classes, is_val)
            problems, notes = problems + own_problems, notes + own_notes
        if problems:
            raise UserError(f"{self.origin}: " + "; ".join(problems))
        return notes

    def check_channels(self, channels: int) -> None:
        """Raise UserError unless the images can be read with this number of channels."""
        if channels not in PIL_MODES:
            raise UserError(f"DATA.IMAGE_CHANNELS={channels}: image files are read with 1, 3 or 4 channels")

    def _check_labels(self, num_classes: int, is_val: bool) -> tuple[list[str], list[str]]:
        """Return problems and warnings of labels that must be from 0 to num_classes - 1."""
        problems, notes, lists = [], [], self.label_lists()
        labels, owners = lists.flat, lists.owners
        bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
        named = [f"{self.describe(owners[i])} has {labels[i]}" for i in bad[:5]]
        if named:
            count = len(bad)
            where = f"from 0 to {num_classes - 1} (MODEL.NUM_CLASSES={num_classes})"
            problems.append(f"{count} labels are not {where}: {abridge(named, 5, total=count)}")
        if not len(labels):
            problems.append("none of its images has a label")
        without = int((lists.lengths == 0).sum())
        notes += [f"{self.origin}: {without:,} images have no label: they are of none of the classes"] * bool(without)
        empty = np.setdiff1d(np.arange(num_classes), labels)
        if self.class_names is not None:
            folders = [self.class_names[i] for i in empty if i < len(self.class_names)]
            if folders:
                what = f"{len(folders)} classes have no images: {abridge(folders, 5)}"
                (notes if is_val else problems).append(f"{self.origin}: {what}" if is_val else what)
            empty = empty[empty >= len(self.class_names)]
        if len(empty) and not problems:
            notes.append(
                f"{self.origin}: {len(empty)} of MODEL.NUM_CLASSES={num_classes} classes have no images: "
                f"{abridge([str(label) for label in empty], 5)}; is MODEL.NUM_CLASSES right?"
            )
        return problems, notes


class ArrayImages(Source):
    """Images in memory: uint8 [N, H, W] or [N, H, W, C], with labels [N] int64."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, origin: str, class_names: list[str] | None = None):
        self.images, self.labels, self.origin, self.class_names = images, labels, origin, class_names

    def image(self, index: int) -> Image.Image:
        """Return an image."""
        return Image.fromarray(self.images[index])


class Pictures(Source):
    """Decoded pictures, of any size and mode, without labels."""

    def __init__(self, pictures: Sequence[Image.Image], origin: str = "pictures"):
        self._pictures, self.origin = pictures, origin
        self.labels = np.full(len(pictures), -1, np.int64)

    def image(self, index: int) -> Image.Image:
        """Return a picture."""
        return self._pictures[index]


# ---- decoding -----------------------------------------------------------------------------------


class BadMask(ValueError):
    """A mask cannot be used; the message says which and why, after the name of its image."""


def read_image(source: Source, index: int, channels: int, upright: bool = True) -> Image.Image:
    """Decode an image of a source as 8-bit grey (1 channel), RGB (3) or RGBA (4); an array stays as it is.

    Args:
        upright: apply the EXIF orientation (DATA.EXIF_TRANSPOSE).
    """
    image = source.image(index)
    return image if isinstance(image, PixelArray) else as_mode(image, channels, upright)


def read_pair(source: Source, index: int, channels: int, upright: bool = True) -> tuple[Image.Image, np.ndarray]:
    """Decode an image, see `read_image`, and its mask, int16 [H, W]; raise BadMask if their sizes differ.

    Of a source without masks, no pixel has a class.
    """
    image = read_image(source, index, channels, upright)
    labels = source.mask(index) if source.has_masks else np.full((image.height, image.width), -1, np.int16)
    if labels.shape != (image.height, image.width):
        raise BadMask(
            f"its mask has {labels.shape[1]} x {labels.shape[0]} pixels, the image {image.width} x {image.height}"
            + (" after its EXIF orientation, which masks do not have (DATA.EXIF_TRANSPOSE)" if upright else "")
        )
    return image, labels


def why_unreadable(source: Source, index: int, channels: int) -> str | None:
    """Return why an image cannot be decoded; None if it can."""
    try:
        read_image(source, index, channels)
        return None
    except Exception as error:  # damaged files raise nearly anything
        return describe_unreadable(source, index, error)


def describe_lost(source: Source, indices: Sequence[int]) -> list[str]:
    """Return lines on what reading some images leaves out, each with the first such image and their number."""
    found: dict[str | None, list[int]] = {}
    for index in indices:
        try:
            lost = source.lost(index)
        except ValueError as error:
            lost = str(error) if source.is_encoded else None
        except Exception:  # damaged files raise nearly anything, which is said elsewhere
            lost = None
        found.setdefault(lost, []).append(index)
    found.pop(None, None)
    looked_at = f"of {len(indices):,} that were looked at"
    return [f"{source.describe(own[0])}, {len(own):,} {looked_at}: {lost}" for lost, own in found.items()]


def describe_unreadable(source: Source, index: int, error: Exception) -> str:
    """Return a message that names an image which cannot be decoded, and the reason."""
    why = str(error) if isinstance(error, BadMask) else f"cannot be read as an image ({one_line(error)})"
    return f"{source.describe(index)}: {why}"
