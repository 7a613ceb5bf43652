"""Sources that change a part of another source, and hand on everything else."""

import numpy as np
from PIL import Image

from pipeline.decoding import PIL_MODES
from pipeline.sources import Source

_HANDED_ON = (
    *("labels", "captions", "order", "origin", "class_names", "notes", "limited_by"),
    *("is_encoded", "holds_arrays", "has_masks", "has_labels_in_memory"),
    *("describe", "path", "name", "names", "content", "order_among", "alternative"),
    *("image", "read", "numbers", "mask", "lost", "missing", "missing_masks", "check_channels"),
)


class Wrapper(Source):
    """All of another source; subclasses change a part.

    Args:
        source: everything that a subclass does not change is taken from it.
    """

    def __init__(self, source: Source):
        self._source = source
        for name in _HANDED_ON:
            setattr(self, name, getattr(source, name))

    def use_class_names(self, class_names: list[str]) -> None:
        """Give the images, or the pixels of their masks, the labels of another order of names."""
        if not self.has_masks:
            super().use_class_names(class_names)
            return
        self._source.use_class_names(class_names)
        self.class_names = class_names

    def count_classes(self) -> int:
        """Return the number of classes: that of the names, or of the whole source."""
        is_named = self.class_names is not None and not self.has_masks
        return super().count_classes() if is_named else self._source.count_classes()

    def summary(self) -> str:
        """Return a line with the numbers of images and classes."""
        return f"{len(self):,} images with masks" if self.has_masks else super().summary()


class LabelsOnly(Wrapper):
    """A source whose images are not read: only label, caption and index of each are used."""

    def __init__(self, source: Source):
        super().__init__(source)
        self.is_encoded = False
        self.lost = lambda index: None
        self.image = lambda index: Image.new(PIL_MODES[3], (1, 1))  # one pixel in the place of an image


class Subset(Wrapper):
    """Some images of a source, in any order; one may be there several times.

    Args:
        indices: of the images in the source, [N].
    """

    def __init__(self, source: Source, indices: np.ndarray):
        super().__init__(source)
        self.indices, self.order = np.asarray(indices), None
        self.labels = source.labels.take(self.indices)
        self.captions = None if source.captions is None else source.captions.take(self.indices)

        self.describe = lambda index: source.describe(self.indices[index])
        self.path = lambda index: source.path(self.indices[index])
        self.name = lambda index: source.name(int(self.indices[index]))
        self.names = lambda indices=None: source.names(self.indices if indices is None else self.indices[indices])
        self.content = self.names
        self.image = lambda index: source.image(self.indices[index])
        self.read = lambda index: source.read(self.indices[index])
        self.numbers = lambda index: source.numbers(self.indices[index])
        self.lost = lambda index: source.lost(self.indices[index])
        self.mask = lambda index: source.mask(self.indices[index])
        self.missing = lambda: np.flatnonzero(np.isin(self.indices, source.missing())).tolist()
        self.missing_masks = lambda indices=None: source.missing_masks(
            self.indices if indices is None else self.indices[indices]
        )
        self.alternative = lambda index, attempt: (index + attempt) % len(self)
