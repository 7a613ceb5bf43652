"""Classes of photos by any classifier or segmenter of this project, or by a CLIP model with texts.

from tools.predict import load, predict
model = load("output/finetune")
for found in predict(model, ["cat.jpg", "dog.jpg"]):
print(found.file, found.classes[0], found.probabilities[0])

Of a segmenter, the probability of a class is its share of the pixels, and `segment(model, photos)` has their classes.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import paddle
from PIL import Image

from clip import load_clip
from config import get_config, network_kind, replaced
from errors import UserError
from measures import image_sets
from measures.classification import class_probabilities
from methods import load_models, zero_shot
from methods.segmenter import label_map
from pipeline import array_source, decoding, sources
from pipeline.decoding import is_image_name
from pipeline.file_images import FileImages
from pipeline.folders import find_images
from pipeline.image_lists import LIST_SUFFIXES, ListedImages
from pipeline.left_out import LeftOut
from pipeline.shard_index import shard_split
from pipeline.sources import Source
from pipeline.web_shards import WebShards
from pipeline.whole_images import WholeImages
from pipeline.wrapped_sources import Subset
from storage import weight_files
from storage.architecture import CLASSIFIERS, SEGMENTER

Images = str | Path | Image.Image | Sequence[str | Path] | Sequence[Image.Image]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A classifier of photos or of their pixels, with what its outputs mean.

    Attributes:
        network: from images [B, C, H, W] to logits [B, K]; of a segmenter, [B, K, rows, columns].
        config: of the network; says how images are prepared.
        class_names: of the K classes.
    """

    network: Callable[[paddle.Tensor], paddle.Tensor]
    config: object
    class_names: list[str]

    @property
    def is_multi_label(self) -> bool:
        """True if the probabilities of the classes are independent of each other (TRAIN.MULTI_LABEL)."""
        return network_kind(self.config) in CLASSIFIERS and self.config.TRAIN.MULTI_LABEL

    @property
    def is_segmenter(self) -> bool:
        """True if it classifies pixels."""
        return network_kind(self.config) == SEGMENTER


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The likeliest classes of a photo.

    Attributes:
        file: path of the photo, or its name in a shard or list.
        classes: names, the likeliest first; empty for a photo that cannot be read.
        probabilities: of these classes; of a segmenter, their shares of the pixels.
        error: why the photo cannot be read; empty if it can.
    """

    file: str
    classes: list[str]
    probabilities: list[float]
    error: str = ""


def load(path: str | Path, config=None, texts: Sequence[str] = ()) -> Classifier:
    """Load a classifier.

    Args:
        path: a run, a checkpoint, or a weight file with its YAML beside it.
        config: None: the one beside the weights.
        texts: classes of a CLIP model, each a name or a sentence.

    Raises:
        UserError: if there is no classifier in the weights, or texts are missing or given in vain.
    """
    config = config or get_config(weight_files.config_beside(weight_files.resolve(path)))
    if network_kind(config) != "clip":
        if texts:
            raise UserError(f"-texts: {path} has classes of its own; texts are for a CLIP model")
        kind = load_models.load_segmenter if network_kind(config) == SEGMENTER else load_models.load_classifier
        network, config = kind(path, config)
        return Classifier(network, config, image_sets.class_names(config))
    if not texts:
        raise UserError(f"{path}: a CLIP model has no classes of its own; give them with -texts")
    clip = load_clip(path)
    vectors = zero_shot.class_vectors(clip, list(texts))

    def logits(images: paddle.Tensor) -> paddle.Tensor:
        return clip.logit_scale.exp() * paddle.matmul(clip.encode_images(images), vectors, transpose_y=True)

    return Classifier(logits, config, list(texts))


def predict(model: Classifier | str | Path, images: Images, topk: int = 5) -> list[Prediction]:
    """Return the likeliest classes of photos, or, of a segmenter, those that cover the most of them.

    Args:
        model: from `load`, or what it takes.
        images: a folder, a file, a list file, a folder of shards, or a picture of PIL; or several files or pictures.
        topk: classes of each.
    """
    model = model if isinstance(model, Classifier) else load(model)
    return list(itertools.chain.from_iterable(predict_batches(model, _open(images, model.config), topk)))


def segment(model: Classifier, images: Images) -> Iterator[tuple[str, np.ndarray | None]]:
    """Yield the name of each photo and the class of each of its pixels, int16 [H, W]; None for an unreadable one."""
    source = _open(images, model.config)
    for index, labels in label_maps(model, source):
        yield _name(source, index), labels


def _open(images: Images, config) -> Source:
    given = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
    are_pictures = {isinstance(one, Image.Image) for one in given}
    if len(are_pictures) > 1:
        raise UserError("images: has both files and pictures of PIL; give all as one of them")
    is_drawn = True in are_pictures
    return array_source.as_configured(config, sources.Pictures(given)) if is_drawn else open_photos(given, config)


def open_photos(paths: Sequence[str | Path], config=None) -> Source:
    """Open photos without labels.

    Args:
        paths: photos, and folders in which all photos are taken; or one list file, or one folder of shards.
        config: of the model, whose DATA.PIXELS says how files are read; None: as photos.

    Raises:
        UserError: if one of them does not exist, is of another kind, or holds no photo.
    """
    paths = [Path(path) for path in paths]
    decoding.allow_arrays(config is not None and config.DATA.PIXELS == "array")
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
    if len(paths) == 1 and paths[0].suffix.lower() in LIST_SUFFIXES:
        source = ListedImages(paths[0], "none", list_outside=True)
    elif len(paths) == 1 and paths[0].is_dir() and _shards_in(paths[0]):
        source = _open_shards(paths[0])
    else:
        source = _open_files(paths)
    if len(source) == 0:
        raise UserError(f"{source.origin}: no photo there")
    return source if config is None else array_source.as_configured(config, source)


def _shards_in(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir() if file.suffix.lower() == ".tar"]


def _open_shards(folder: Path) -> WebShards:
    splits = sorted({shard_split(name) for name in _shards_in(folder)})
    if len(splits) > 1:
        raise UserError(f"{folder}: has shards of the splits {' and '.join(splits)}; move those of one into a folder")
    return WebShards(folder, splits[0], "none", bad="skip")


def _open_files(paths: list[Path]) -> FileImages:
    left_out, found = LeftOut(), []
    for path in paths:
        if path.is_dir():
            found += find_images(path, left_out)
        elif is_image_name(path.name):
            found.append(str(path))
        else:
            kinds = "a photo, or alone: a list (.txt, .tsv, .jsonl) or a folder of shards"
            raise UserError(f"{path}: is not {kinds}")
    origin = paths[0] if len(paths) == 1 else Path("the photos")
    return FileImages(found, np.full(len(found), -1, np.int64), origin, notes=left_out.notes(origin))


def label_maps(model: Classifier, source: Source, first: int = 0) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yield number and classes of the pixels, int16 [H, W], of each photo; None for one that cannot be read."""
    config, done = replaced(model.config, "DATA.BAD_IMAGES", "skip"), first
    for batch in WholeImages(config, source, lambda note: None, range(first, len(source))):
        index = int(batch.host_indices[0])
        yield from ((other, None) for other in range(done, index))
        yield index, label_map(model.network, config, batch.images[0], batch.masks.shape[1:])
        done = index + 1
    yield from ((other, None) for other in range(done, len(source)))


def predict_batches(
    model: Classifier,
    source: Source,
    topk: int,
    first: int = 0,
    keep_map: Callable[[int, np.ndarray], None] = lambda index, labels: None,
) -> Iterator[list[Prediction]]:
    """Yield the predictions of each batch, in the source's order; also of photos that cannot be read.

    Args:
        first: photo to begin with, the first of a batch.
        keep_map: gets number and classes of the pixels of each photo of a segmenter, before its prediction comes.
    """
    if not model.is_segmenter:
        yield from _classify_batches(model, source, topk, first)
        return
    for index, labels in label_maps(model, source, first):
        if labels is None:
            yield [_unreadable(source, index, model.config.DATA.IMAGE_CHANNELS)]
            continue
        keep_map(index, labels)
        shares = np.bincount(labels.ravel(), minlength=len(model.class_names)) / labels.size
        best = [column for column in np.argsort(-shares, kind="stable")[:topk] if shares[column] > 0]
        names = [model.class_names[column] for column in best]
        yield [Prediction(_name(source, index), names, [round(float(shares[column]), 6) for column in best])]


def _classify_batches(model: Classifier, source: Source, topk: int, first: int) -> Iterator[list[Prediction]]:
    config, names = replaced(model.config, "DATA.BAD_IMAGES", "skip"), model.class_names
    size, channels = config.DATA.BATCH_SIZE, config.DATA.IMAGE_CHANNELS
    notes: list[str] = []  # the same as the errors below
    loader = image_sets.open_loader(config, Subset(source, np.arange(first, len(source))), notes)
    done = first

    def fill(end: int, rows: dict[int, Prediction]) -> Iterator[list[Prediction]]:
        """Yield the batches before `end`, where photos without a row cannot be read."""
        nonlocal done
        while done < end:
            batch = range(done, min(done + size, end))
            yield [rows.get(index) or _unreadable(source, index, channels) for index in batch]
            done = batch.stop

    for batch in loader:
        probabilities = class_probabilities(model.network, batch.images, is_multi_label=model.is_multi_label)
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :topk]
        rows = {}
        for index, row, columns in zip((batch.host_indices + first).tolist(), probabilities, best, strict=True):
            values = [round(float(row[column]), 6) for column in columns]
            rows[index] = Prediction(_name(source, index), [names[column] for column in columns], values)
        start = first + (min(rows) - first) // size * size
        yield from fill(start, {})  # whole batches before it that cannot be read
        yield from fill(min(start + size, len(source)), rows)
    yield from fill(len(source), {})


def _name(source: Source, index: int) -> str:
    path = source.path(index)
    return source.describe(index) if path is None else str(path)


def _unreadable(source: Source, index: int, channels: int) -> Prediction:
    why = sources.why_unreadable(source, index, channels) or "cannot be prepared for the model"
    return Prediction(_name(source, index), [], [], why.removeprefix(f"{source.describe(index)}: "))
