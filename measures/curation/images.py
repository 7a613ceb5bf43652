"""The images of all splits of a set, under one number each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

import datasets
from errors import UserError, one_name
from pipeline import name_lists
from pipeline.left_out import no_images
from pipeline.sources import Source
from pipeline.wrapped_sources import Subset
from training import loaders


class Images:
    """The images of some splits, one split after the other.

    Args:
        sources: the splits by name, train first.

    Attributes:
        sources: as given.
        split: [N] place of each image's split in `splits`.
        labels: [N] int64, -1 where an image has none, or several.
        class_names: of the labels; None without names.
    """

    def __init__(self, sources: dict[str, Source]):
        self.sources, self.splits = sources, list(sources)
        lengths = [len(source) for source in sources.values()]
        self.firsts = np.cumsum([0, *lengths])
        self.split = np.repeat(np.arange(len(lengths)), lengths)
        self.labels = np.concatenate([source.single_labels(strict=False) for source in sources.values()])
        self.class_names = next(iter(sources.values())).class_names

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def place(self, number: int) -> tuple[Source, int]:
        """Return the source of an image, and its index there."""
        split = int(self.split[number])
        return self.sources[self.splits[split]], int(number - self.firsts[split])

    def name(self, number: int) -> str:
        """Return the name of an image as lists have it."""
        source, index = self.place(number)
        return name_lists.as_line(source.name(index))

    def split_name(self, number: int) -> str:
        """Return the split of an image."""
        return self.splits[int(self.split[number])]

    def label_name(self, label: int) -> str:
        """Return the name of a label; "" for none."""
        has_name = self.class_names is not None and 0 <= label < len(self.class_names)
        return one_name(self.class_names[label]) if has_name else str(label) if label >= 0 else ""

    def subset(self, split: str, chosen: np.ndarray) -> Subset:
        """Return those of some images (numbers, ascending) that are of one split."""
        number = self.splits.index(split)
        return Subset(self.sources[split], chosen[self.split[chosen] == number] - self.firsts[number])

    def digest(self) -> str:
        """Return a SHA-256 of what the images are: their names, and sizes and times of their files."""
        return name_lists.digest_lines(self._state())

    def _state(self):
        for split, source in self.sources.items():
            yield name_lists.as_line(f"{split} {source.origin}")
            for index, line in enumerate(source.content()):
                path = source.path(index) if len(source) > index else None
                yield name_lists.as_line(f"{line} {_state_of(path)}")


def _open(config, split: str) -> Source:
    """Open a split with its labels, or without where it has none; files are found missing when they are read."""
    try:
        return loaders.open_source(config, split, "label")
    except UserError:
        return loaders.open_source(config, split, "none")


def _holds(source: Source, train: Source) -> bool:
    """Return True if a split is not one of its own: where a folder val is missing, all files are taken for it."""
    if source.path(0) is None or train.path(0) is None:
        return name_lists.digest(source) == name_lists.digest(train)
    own, other = Path(source.origin).resolve(), Path(train.origin).resolve()
    return own == other or own in other.parents


def _state_of(path: Path | None) -> str:
    try:
        about = None if path is None else path.stat()
    except OSError:
        return "missing"
    return "" if about is None else f"{about.st_size} {about.st_mtime_ns}"


def open_splits(config, splits: Sequence[str] | None) -> tuple[Images, list[str]]:
    """Open the splits of a configuration's data set, with labels where they have some.

    Args:
        splits: names; None: train, and val where there is one.

    Returns:
        the images, and notes on what is not looked at.
    """
    whole = datasets.open_class_folders(config.DATA.DATA_PATH) if config.DATA.DATASET == "folder" else None
    if whole is not None:
        if splits is not None and "val" in splits:
            raise UserError(f"-splits: {whole.origin} has folders of classes and no splits; leave the flag out")
        if len(whole) == 0:
            raise no_images(whole.origin, whole.notes)
        return Images({"train": whole}), [*whole.notes, f"{whole.origin}: has no splits; all is looked at as train"]
    sources, notes = {}, []
    for split in ("train", "val") if splits is None else sorted(set(splits)):
        try:
            source = _open(config, split)
        except UserError as error:
            if splits is not None or split == "train":
                raise
            notes.append(f"val is not looked at: {error}")
            continue
        if len(source) == 0 and (splits is not None or split == "train"):
            raise no_images(source.origin, source.notes)
        if len(source) == 0:
            notes.append(f"{source.origin}: val has no images")
        elif splits is None and sources and _holds(source, sources["train"]):
            notes.append(f"{source.origin}: has no val split; all is looked at as train")
        else:
            sources[split] = source
            repeats = len(source) - len(set(map(hash, source.names())))
            what = "images have a name that another has, too; each line of a list takes one of them, in order"
            notes += [f"{split}: {repeats:,} {what}"] * bool(repeats)
            notes += [*source.notes, *([f"{split}{source.limited_by}"] * bool(source.limited_by))]
    if any((source.label_lists().lengths > 1).any() for source in sources.values() if source.has_labels_in_memory):
        notes.append("images with several labels: labels are not looked at")
    return Images(sources), notes
