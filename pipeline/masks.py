"""Masks of segmentation: what their pixels hold, and which class a value or a colour stands for. No Paddle here."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from errors import UserError, abridge, one_line
from pipeline.decoding import decode
from storage.files import read_file

IGNORED = -1  # label of pixels that belong to no class
MOST_CLASSES = 32_767
# JPEG and WebP change values at the edges of what was drawn.
FORMATS = ("PNG", "TIFF", "BMP", "GIF")  # Pillow rescales PGM
_UNKNOWN = -2
_PNG_DEPTH, _PNG_COLOUR = 24, 25  # bytes of the header
_TIFF_BITS = 258  # number of the tag
_VALUES = 1 << 16

Value = int | tuple[int, int, int]


def read_values(data: bytes) -> np.ndarray:
    """Return what the pixels of an encoded mask hold: integers [H, W], or colours uint8 [H, W, 3].

    A picture with a palette holds its indices, 16-bit grey its 16 bits, and black and white 0 and 1.

    Raises:
        ValueError: if it is a JPEG or a WebP file, or its pixels are neither integers nor colours.
    """
    if data[:3] == b"\xff\xd8\xff" or data[8:12] == b"WEBP":
        raise ValueError("is a JPEG or WebP file, which blurs labels: save masks as PNG")
    image = decode(data, FORMATS)
    if image.mode in ("RGB", "RGBA"):
        return np.asarray(image)[..., :3]
    if image.mode in ("1", "P", "L", "LA", "PA") or image.mode.startswith("I"):
        values = np.asarray(image)
        values = values[..., 0] if values.ndim == 3 else values
        return _undo_scale(image, data, values).astype(np.int64)
    raise ValueError(f"has pixels of mode {image.mode}; masks hold integers, a palette or colours")


def _undo_scale(image: Image.Image, data: bytes, values: np.ndarray) -> np.ndarray:
    """Return grey values of 2 or 4 bits, which Pillow spreads over 0 to 255, as they are in a PNG or TIFF file."""
    depth = 8
    if image.format == "PNG" and data[_PNG_COLOUR] == 0:
        depth = data[_PNG_DEPTH]
    elif image.format == "TIFF" and image.mode == "L":
        depth = image.tag_v2.get(_TIFF_BITS, (8,))[0]
    return values // (255 // (2**depth - 1)) if depth in (2, 4) else values


def read_mask(path: str | Path, colours: Sequence[tuple[int, int, int]] | None = None) -> np.ndarray:
    """Read a mask file as integers [H, W].

    Args:
        colours: of the classes, whose places they stand for; None: the file holds integers.

    Raises:
        ValueError: naming the file, and what is wrong with it.
    """
    triples = [tuple(colour) for colour in colours or ()]
    if any(len(triple) != 3 for triple in triples) or len(set(triples)) < len(triples):
        raise UserError(f"colours={colours}: must be different (red, green, blue)")
    try:
        values = read_values(read_file(path))
        if colours is not None:
            return Codes({triple: label for label, triple in enumerate(triples)}).apply(values).astype(np.int64)
        values = without_colours(values)
        if values.ndim == 3:
            raise ValueError("holds colours; the argument `colours` says what they stand for")
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: {one_line(error) if isinstance(error, OSError) else error}") from error
    return values


def without_colours(values: np.ndarray) -> np.ndarray:
    """Return grey that was saved as RGB as integers [H, W]; anything else as it is."""
    is_grey = values.ndim == 3 and (values == values[..., :1]).all()
    return values[..., 0].astype(np.int64) if is_grey else values


class Codes:
    """Which label a value or a colour of a mask stands for.

    Args:
        labels: by value or (red, green, blue).
        ignored: values or colours that are of no class.
        names: of the classes, in label order; None: unknown.
    """

    def __init__(self, labels: Mapping[Value, int], ignored: Sequence[Value] = (), names: list[str] | None = None):
        if max(labels.values(), default=0) >= MOST_CLASSES:
            raise UserError(f"masks with {max(labels.values()) + 1:,} classes; at most {MOST_CLASSES:,} are taken")
        self.names, self._of_value = names, {**dict.fromkeys(ignored, IGNORED), **labels}
        self._table = np.full(_VALUES, _UNKNOWN, np.int16)
        for value, label in self._of_value.items():
            if isinstance(value, int):
                self._table[value] = label

    @classmethod
    def of_range(
        cls,
        num_classes: int,
        ignored: Sequence[int] = (255,),
        zero_is_other: bool = False,
        names: list[str] | None = None,
    ) -> "Codes":
        """Return the usual codes: the value is the label, or, where 0 is "other" and of no class, the label plus 1."""
        if zero_is_other:
            return cls({label + 1: label for label in range(num_classes)}, [0, *ignored], names)
        return cls({label: label for label in range(num_classes) if label not in ignored}, ignored, names)

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return max(self._of_value.values(), default=-1) + 1

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Return labels int16 [H, W], IGNORED where there is none, of integers [H, W] or colours [H, W, 3].

        Raises:
            ValueError: naming values and colours that stand for nothing.
        """
        has_table = any(isinstance(value, tuple) for value in self._of_value)
        values = values if has_table else without_colours(values)
        if values.ndim == 3:
            return self._apply_colours(values)
        if values.size and not 0 <= values.min() <= values.max() < _VALUES:
            raise ValueError(f"holds values from {values.min()} to {values.max()}; masks hold 0 to {_VALUES - 1:,}")
        labels = self._table[values]
        if (labels == _UNKNOWN).any():
            self._refuse([str(value) for value in np.unique(values[labels == _UNKNOWN])], "values")
        return labels

    def _apply_colours(self, colours: np.ndarray) -> np.ndarray:
        packed = (colours.astype(np.int64) * [1 << 16, 1 << 8, 1]).sum(axis=-1)
        found, places = np.unique(packed, return_inverse=True)
        triples = [(int(code) >> 16, int(code) >> 8 & 255, int(code) & 255) for code in found]
        unknown = [str(triple) for triple in triples if triple not in self._of_value]
        if unknown:
            self._refuse(unknown, "colours")
        return np.array([self._of_value[triple] for triple in triples], np.int16)[places].reshape(packed.shape)

    def _refuse(self, unknown: list[str], what: str) -> None:
        known = [str(value) for value in self._of_value]
        raise ValueError(
            f"holds {len(unknown)} {what} that stand for no class: {abridge(unknown, 6)}; those that do: "
            f"{abridge(known, 6)}. classes.json says what stands for what, DATA.MASK_IGNORE what to ignore"
        )

    def renumbered(self, names: list[str]) -> "Codes":
        """Return codes whose labels are the places of these names.

        Raises:
            ValueError: naming classes that are not among them.
        """
        places = {name: place for place, name in enumerate(names)}
        unknown = [name for name in self.names if name not in places]
        if unknown:
            raise ValueError(f"has classes that were not trained: {abridge(unknown, 8)}")
        ignored = [value for value, label in self._of_value.items() if label == IGNORED]
        labels = {value: places[self.names[label]] for value, label in self._of_value.items() if label != IGNORED}
        return Codes(labels, ignored, names)


def resize_mask(labels: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize labels int16 [H, W] by the nearest pixel."""
    image = Image.fromarray(labels.astype(np.int32), "I")
    return np.asarray(image.resize(size_hw[::-1], Image.Resampling.NEAREST)).astype(np.int16)
