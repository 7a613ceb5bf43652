"""The models behind the demo page: what they answer about one photo."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle
from PIL import Image

from clip import load_clip
from config import get_config
from errors import UserError
from measures import image_sets, prediction
from measures.classification import class_probabilities
from methods import load_models
from pages import drawing, html, reconstruction, segments
from pipeline import array_source
from pipeline.decoding import as_mode, decode
from pipeline.file_images import FileImages
from pipeline.sources import read_image
from pipeline.transforms import eval_transform
from storage import weight_files

STRIP_RATIOS = (0.25, 0.5, 0.75, 0.9)
CANVAS_PX = 448
_MOST_LAYERS = 8
_MOST_TEXTS, _LONGEST_TEXT = 50, 500


class Autoencoder:
    """Reconstructions of a masked autoencoder, and the attention of its encoder.

    Args:
        weights: a pretraining run, or a file with a decoder.
    """

    def __init__(self, weights: str):
        self.model, self.config = load_models.load_autoencoder(weights)
        self.encoder, _ = load_models.load_encoder(weights)

    def reconstruct(self, photo: str, mask_ratio: float, seed: int, kind: str) -> str:
        """Return a grid of `reconstruction.COLUMNS` and its caption, as HTML; `kind` is "random" or "block"."""
        noise = reconstruction.draw_noise_for(self.model, 1, seed, kind)
        return self._draw(photo, mask_ratio, noise)

    def reconstruct_painted(self, photo: str, painted: np.ndarray) -> str:
        """Do the same for a painted mask: uint8 [H, W], above 127 where patches are to be hidden."""
        grid_hw = self.model.patch_embedding.grid_hw
        small = Image.fromarray(painted).resize(grid_hw[::-1], Image.Resampling.BOX)
        noise, mask_ratio = reconstruction.mask_to_noise(np.asarray(small) > 127, "the painted mask")
        return self._draw(photo, mask_ratio, noise)

    def _draw(self, photo: str, mask_ratio: float, noise: np.ndarray) -> str:
        return reconstruction.reconstruct(
            self.model, self.config, read_photo(self.config, photo), mask_ratio, noise
        ).to_html()

    def draw_strip(self, photo: str, seed: int, kind: str) -> str:
        """Return what is seen and what is reconstructed at each of STRIP_RATIOS, as HTML.

        Ratios that keep no patch of a small image are left out.
        """
        images = read_photo(self.config, photo)
        grid_hw = self.model.patch_embedding.grid_hw
        noise = reconstruction.draw_noise_for(self.model, 1, seed, kind)
        ratios = [ratio for ratio in STRIP_RATIOS if int(grid_hw[0] * grid_hw[1] * (1 - ratio)) >= 1]
        panels = []
        for ratio in ratios:
            _, masked, _, filled, _ = reconstruction.reconstruct(self.model, self.config, images, ratio, noise).panels
            panels.append(np.concatenate([masked, filled]))
        return html.html_grid([f"{ratio:.0%} hidden" for ratio in ratios], panels, ["masked", "reconstruction"])

    def attend(self, photo: str) -> str:
        """Return attention rollout, and what the class token attends to in each head of the last layer, as HTML."""
        panels = drawing.draw_attention(self.encoder, self.config, read_photo(self.config, photo))[1:]
        names = ["rollout", *(f"head {number}" for number in range(1, len(panels)))]
        return html.html_row((panel[0], name, "") for panel, name in zip(panels, names, strict=True))

    def canvas(self, photo: str) -> Image.Image:
        """Return what the model sees of a photo, enlarged to a square of CANVAS_PX to paint on."""
        pixels = drawing.as_uint8(drawing.to_pixels(self.config, read_photo(self.config, photo)))[0]
        return Image.fromarray(pixels.squeeze()).convert("RGB").resize((CANVAS_PX,) * 2, Image.Resampling.NEAREST)


class Classifier:
    """The most likely classes of a photo.

    Args:
        weights: a run of finetuning or of a probe, or a file of a classifier.
    """

    def __init__(self, weights: str):
        self.model, self.config = load_models.load_classifier(weights)
        self.names = image_sets.class_names(self.config)

    def classify(self, photo: str) -> dict[str, float]:
        """Return the probabilities of the five most likely classes."""
        images = paddle.to_tensor(read_photo(self.config, photo))
        (row,) = class_probabilities(self.model, images, is_multi_label=self.config.TRAIN.MULTI_LABEL)
        return {self.names[index]: float(row[index]) for index in np.argsort(-row, kind="stable")[:5]}


class Segmenter:
    """The classes of a photo's pixels.

    Args:
        weights: a segmentation run.
    """

    def __init__(self, weights: str):
        network, self.config = load_models.load_segmenter(weights)
        self.names = image_sets.class_names(self.config)
        self._model = prediction.Classifier(network, self.config, self.names)

    def paint(self, photo: str) -> str:
        """Return the photo, its classes, and both laid over each other, with a legend, as HTML."""
        source, data = FileImages([Path(photo)], np.array([-1]), Path(photo).parent), self.config.DATA
        ((_, labels),) = prediction.label_maps(self._model, source)
        if labels is None:
            raise UserError(f"{Path(photo).name} cannot be read as an image")
        pixels = np.asarray(array_source.read_picture(source, 0, data.EXIF_TRANSPOSE))
        colours = segments.palette(len(self.names))
        panels = [pixels, segments.paint(pixels, labels, colours), segments.colour(labels, colours)]
        grid = html.html_grid(["photo", "classes over it", "classes"], [[panel] for panel in panels])
        return grid + segments.legend(np.unique(labels), self.names, colours)


class ZeroShot:
    """A CLIP model.

    Args:
        weights: run of LiT, or a CLIP file with its YAML.
    """

    def __init__(self, weights: str):
        self.clip = load_clip(weights)
        self.config = get_config(weight_files.config_beside(weight_files.resolve(weights)))
        if self.clip.tokenizer is None:
            self.clip.tokenize("")  # says where a tokenizer comes from

    def classify(self, photo: str, lines: str) -> dict[str, float]:
        """Return the probability of each text for a photo.

        Args:
            lines: one text per line.

        Raises:
            UserError: if there is no text, or too many, or the photo cannot be read.
        """
        texts = list(dict.fromkeys(line.strip() for line in (lines or "").splitlines() if line.strip()))
        if not texts:
            raise UserError("Write a text in each line.")
        if len(texts) > _MOST_TEXTS or max(map(len, texts)) > _LONGEST_TEXT:
            raise UserError(f"At most {_MOST_TEXTS} texts of {_LONGEST_TEXT} characters are taken.")
        try:
            probabilities = self.clip.classify(photo, texts)[0].tolist()
        except UserError as error:
            raise UserError(str(error).replace(str(Path(photo).parent), "")) from error
        return dict(zip(texts, probabilities, strict=True))


def read_photo(config, photo: str) -> np.ndarray:
    """Read a photo as a batch [1, C, H, W], as evaluation sees it."""
    source = array_source.as_configured(config, FileImages([Path(photo)], np.array([-1]), Path(photo).parent))
    try:
        image = read_image(source, 0, config.DATA.IMAGE_CHANNELS, config.DATA.EXIF_TRANSPOSE)
        return eval_transform(config)(image, np.random.default_rng(0))[None]
    except Exception as error:  # whatever was uploaded
        raise UserError(f"{Path(photo).name} cannot be read as an image ({error})") from error


def read_painted(layers: Sequence[bytes]) -> np.ndarray:
    """Return the painted mask, uint8 [H, W], 255 where the brush was.

    Raises:
        UserError: if a layer cannot be read as a picture, or there are too many.
    """
    if len(layers) > _MOST_LAYERS:
        raise UserError(f"the painted mask has {len(layers)} layers; at most {_MOST_LAYERS} are taken")
    alphas = [np.zeros((CANVAS_PX, CANVAS_PX), np.uint8)]
    for layer in layers:
        try:
            image = as_mode(decode(layer, ["PNG", "WEBP"]), channels=4)
            alphas.append(np.asarray(image.resize((CANVAS_PX, CANVAS_PX)))[..., 3])
        except Exception as error:  # whatever was sent
            raise UserError(f"the painted mask cannot be read ({error})") from error
    return np.max(alphas, axis=0)
