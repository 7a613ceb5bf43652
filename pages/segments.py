"""Pictures of segmentation: image, truth, prediction and errors side by side, and a legend."""

import colorsys
import html as escaping
from collections.abc import Sequence

import numpy as np
from PIL import Image

from methods.segmenter import label_map
from pages import html
from pipeline.array_source import read_picture
from pipeline.sources import Source
from pipeline.whole_images import WholeImages

COLUMNS = ["image", "truth", "prediction", "errors"]
_SHOWN_PX = 320
_IGNORED, _WRONG, _RIGHT = (128, 128, 128), (220, 40, 40), (235, 235, 235)
_GOLDEN = 0.618034  # turns of the colour circle from one class to the next: neighbours differ


def palette(num_classes: int) -> np.ndarray:
    """Return a colour for each class, uint8 [K, 3]; the first one is dark."""
    colours = [
        colorsys.hsv_to_rgb(number * _GOLDEN % 1.0, (0.75, 0.5)[number // 8 % 2], (0.95, 0.7)[number // 4 % 2])
        for number in range(num_classes)
    ]
    colours[0] = (0.15, 0.15, 0.2)
    return np.round(255 * np.array(colours)).astype(np.uint8)


def colour(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return labels [H, W] in colours, uint8 [H, W, 3]; grey where there is none."""
    return np.where((labels < 0)[..., None], np.uint8(_IGNORED), colours[np.maximum(labels, 0)])


def paint(photo: np.ndarray, labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return a photo uint8 [H, W, 3] with the colours of its pixels' classes [H, W] laid over it, half and half."""
    return ((photo.astype(np.uint16) + colour(labels, colours)) // 2).astype(np.uint8)


def legend(labels: Sequence[int], names: Sequence[str], colours: np.ndarray) -> str:
    """Return the colours and the names of some classes as HTML."""
    shown = [(names[label], colours[label]) for label in labels]
    spans = "".join(
        f'<span style="--colour: rgb({r}, {g}, {b})">{escaping.escape(name)}</span>' for name, (r, g, b) in shown
    )
    return f'<p class="legend">{spans}</p>'


def draw(model, config, source: Source, indices: np.ndarray, words: Sequence[str] = ()) -> str:
    """Return rows of pictures of some images of a source, and a legend of the classes in them, as HTML.

    Args:
        words: after the name of each image, above its row; empty: without names.
    """
    colours, occurs = palette(config.MODEL.NUM_CLASSES), np.zeros(config.MODEL.NUM_CLASSES, bool)
    cells, captions = [], []
    for batch in WholeImages(config, source, print, indices=indices):
        truth = batch.masks[0].numpy()
        predicted = label_map(model, config, batch.images[0], truth.shape)
        errors = np.where((truth < 0)[..., None], np.uint8(_IGNORED), np.uint8(_WRONG))
        errors[(truth == predicted) & (truth >= 0)] = _RIGHT
        index = int(batch.host_indices[0])
        picture = np.asarray(read_picture(source, index, config.DATA.EXIF_TRANSPOSE))
        row = [picture, colour(truth, colours), colour(predicted, colours), errors]
        if len(words):
            captions.append(f"{source.describe(index)}: {words[list(indices).index(index)]}")
        cells.append([_shrink(panel, panel is not picture) for panel in row])
        occurs[np.unique(predicted)] = occurs[np.unique(truth[truth >= 0])] = True
    names = source.class_names or [f"class {number}" for number in range(len(colours))]
    grid = html.html_grid(COLUMNS, list(zip(*cells, strict=True)), captions)
    note = "Grey: of no class. Errors: red where the prediction is another class than the truth."
    return grid + legend(np.flatnonzero(occurs), names, colours) + html.html_paragraph(note)


def _shrink(pixels: np.ndarray, is_map: bool) -> np.ndarray:
    """Return a picture at the size that is shown; maps keep their colours."""
    image = Image.fromarray(pixels)
    factor = _SHOWN_PX / max(image.size)
    if factor >= 1:
        return pixels
    size = tuple(max(1, round(factor * side)) for side in image.size)
    return np.asarray(image.resize(size, Image.Resampling.NEAREST if is_map else Image.Resampling.BICUBIC))
