"""The demo in the browser: one photo, and a tab for each thing that the models say about it."""

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from errors import UserError
from measures import image_sets
from pages.demo_models import CANVAS_PX, Autoencoder, Classifier, Segmenter, ZeroShot, read_painted
from pages.uploads import photo_reader, read_upload, with_message
from pipeline.sources import read_image

_KEPT_SECS = 3600
_SHOWN_PX = 224  # at least, of an image of the run
_PHOTOS = {"temple": "china.jpg", "flower": "flower.jpg"}  # in scikit-learn, under CC BY 2.0
_CREDIT = (
    "Example photos: [temple](https://www.flickr.com/photos/danielbuechele/6061409035) by danielbuechele, "
    "[flower](https://www.flickr.com/photos/vultilion/6056698931) by vultilion, "
    "[CC BY 2.0](https://creativecommons.org/licenses/by/2.0/)."
)
_TEXTS = {
    "en": ["a cat", "a dog", "a ship"],
    "fr": ["un chat", "un chien", "un bateau"],
    "de": ["eine Katze", "ein Hund", "ein Schiff"],
    "es": ["un gato", "un perro", "un barco"],
    "hi": ["एक बिल्ली", "एक कुत्ता", "एक जहाज"],
    "zh": ["一只猫", "一只狗", "一艘船"],
}


class Models(NamedTuple):
    """What the page shows; each may be left out."""

    autoencoder: Autoencoder | None = None
    classifier: Classifier | None = None
    segmenter: Segmenter | None = None
    zero_shot: ZeroShot | None = None

    @property
    def config(self):
        """Return the configuration of the first one, whose images are the examples."""
        return next(model for model in self if model is not None).config


def build_page(models: Models, uploads: Path):
    """Build the Gradio page, with a tab for what there is.

    Args:
        uploads: directory in which Gradio keeps uploaded files.
    """
    import gradio

    options = {"analytics_enabled": False, "delete_cache": (_KEPT_SECS // 6, _KEPT_SECS)}
    with gradio.Blocks(title="Masked autoencoder", **options) as page, gradio.Row():
        with gradio.Column(scale=1, min_width=260):
            photo = _add_photo(gradio, models, uploads)
        with gradio.Column(scale=4):
            if models.autoencoder is not None:
                with gradio.Tab("Reconstruction"):
                    _add_reconstruction(gradio, models.autoencoder, photo, uploads)
            if models.classifier is not None:
                with gradio.Tab("Classification"):
                    _add_classification(gradio, models.classifier, photo)
            if models.segmenter is not None:
                with gradio.Tab("Segmentation"):
                    _add_segmentation(gradio, models.segmenter, photo)
            if models.zero_shot is not None:
                with gradio.Tab("Zero-shot"):
                    _add_zero_shot(gradio, models.zero_shot, photo)
            if models.autoencoder is not None:
                with gradio.Tab("Attention"):
                    _add_attention(gradio, models.autoencoder, photo)
    return page


def _add_photo(gradio, models: Models, uploads: Path):
    """Add the photo that all tabs are about, and examples; uploads are opened by our own readers."""
    photo = gradio.Image(type="filepath", sources=["upload", "clipboard"], label="Photo", elem_id="photo")
    photo.preprocess = photo_reader(gradio, uploads)
    gradio.Markdown("Upload or paste a photo, or take an example:")
    with gradio.Row():
        for name, file in _PHOTOS.items():
            path = str(resources.files("sklearn.datasets") / "images" / file)
            _answer(gradio, [gradio.Button(name, size="sm", min_width=80).click], lambda path=path: path, [], photo)
        draw = _image_drawer(models.config)
        if draw is not None:
            button = gradio.Button("the run's images", size="sm", min_width=80, elem_id="own-image")
            _answer(gradio, [button.click], draw, [], photo)
    gradio.Markdown(_CREDIT)
    return photo


def _image_drawer(config) -> Callable[[], Image.Image] | None:
    """Return a function that draws an image of the run's val split; None if that cannot be opened here."""
    try:
        source = image_sets.open_any_images(config, "val")
    except (UserError, OSError):
        return None
    rng = np.random.default_rng(0)

    def draw() -> Image.Image:
        image = read_image(source, int(rng.integers(len(source))), config.DATA.IMAGE_CHANNELS)
        factor = max(1, -(-_SHOWN_PX // max(image.size)))
        return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)

    return draw


def _answer(gradio, events: list, function: Callable, inputs: list, outputs, name: str | bool = False) -> None:
    """Let events call a function whose errors become messages on the page; `name` makes it part of the interface."""
    gradio.on(events, with_message(gradio, function), inputs, outputs, api_name=name, show_progress="minimal")


def _about_photo(function: Callable) -> Callable:
    """Return a function of a photo and more that gives None while there is no photo."""
    return lambda photo, *values: None if photo is None else function(photo, *values)


def _add_reconstruction(gradio, autoencoder: Autoencoder, photo, uploads: Path) -> None:
    gradio.Markdown(
        f"A model that is {autoencoder.model.architecture}. It fills in what is likely there, without knowing what "
        "it is, and no finer than its patches."
    )
    with gradio.Row():
        ratio = gradio.Slider(0.05, 0.95, autoencoder.model.mask_ratio, step=0.05, label="Hidden", elem_id="ratio")
        seed = gradio.Number(0, label="Seed", precision=0, elem_id="seed")
        kind = gradio.Radio(["random", "block"], value="random", label="Patches")
    pictures = gradio.HTML(elem_id="pictures")
    strip = gradio.HTML(elem_id="strip")
    sketch = _add_sketch(gradio, uploads)

    def reconstruct(photo, mask_ratio, seed, kind):
        return autoencoder.reconstruct(photo, mask_ratio, _natural(seed), kind)

    def draw_strip(photo, seed, kind):
        return autoencoder.draw_strip(photo, _natural(seed), kind)

    def reconstruct_painted(photo, layers):
        return autoencoder.reconstruct_painted(photo, read_painted(layers))

    changes = [photo.change, seed.submit, kind.change]
    given = [photo, ratio, seed, kind]
    _answer(gradio, [*changes, ratio.release], _about_photo(reconstruct), given, pictures, "reconstruct")
    _answer(gradio, changes, _about_photo(draw_strip), [photo, seed, kind], strip)
    _answer(gradio, [sketch.apply], _about_photo(reconstruct_painted), [photo, sketch], pictures, "reconstruct_painted")
    _answer(gradio, [photo.change], _about_photo(autoencoder.canvas), [photo], sketch)


def _natural(seed: float | None) -> int:
    if seed is None or not 0 <= seed < 2**31:
        raise UserError("The seed must be an integer from 0.")
    return int(seed)


def _add_sketch(gradio, uploads: Path):
    """Add the photo as the model sees it, to be painted on."""

    def read_layers(payload) -> list[bytes]:
        """Return the encoded layers of the sketch, which came before the request, or were uploaded as files."""
        if payload is not None and payload.id is not None:
            payload = sketch.blob_storage.pop(payload.id, None)
        layers = [] if payload is None else payload.layers or []
        return [layer if isinstance(layer, bytes) else read_upload(layer.path, uploads) for layer in layers if layer]

    with gradio.Accordion("Or paint what to hide, and press ✓", open=False):
        sketch = gradio.Sketchpad(
            show_label=False,
            canvas_size=(CANVAS_PX, CANVAS_PX),
            fixed_canvas=True,
            transforms=(),
            layers=False,
            brush=gradio.Brush(default_size=48, colors=["#ff2d95"], color_mode="fixed"),
            elem_id="sketch",
        )
    sketch.preprocess = with_message(gradio, read_layers)
    return sketch


def _add_classification(gradio, classifier: Classifier, photo) -> None:
    gradio.Markdown(f"It knows {len(classifier.names):,} classes, and takes any photo for some of them.")
    classes = gradio.Label(label="Taken for", elem_id="classes")
    _answer(gradio, [photo.change], _about_photo(classifier.classify), [photo], classes, "classify")


def _add_segmentation(gradio, segmenter: Segmenter, photo) -> None:
    gradio.Markdown(f"It knows {len(segmenter.names):,} classes, and takes any pixel for one of them.")
    maps = gradio.HTML(elem_id="maps")
    _answer(gradio, [photo.change], _about_photo(segmenter.paint), [photo], maps, "segment")


def _add_attention(gradio, autoencoder: Autoencoder, photo) -> None:
    gradio.Markdown(
        "Where the class token reads: over all layers, and in each head of the last. It explains no decision."
    )
    heads = gradio.HTML(elem_id="heads")
    _answer(gradio, [photo.change], _about_photo(autoencoder.attend), [photo], heads)


def _add_zero_shot(gradio, zero_shot: ZeroShot, photo) -> None:
    languages = zero_shot.config.LIT.LANGUAGES
    gradio.Markdown(
        "How well each text fits, beside the other texts only. Write in the languages that the model has learned: "
        f"it was made for {', '.join(languages)} (`LIT.LANGUAGES`)."
    )
    lines = [line for language in languages for line in _TEXTS.get(language, [])]
    texts = gradio.Textbox("\n".join(lines), lines=6, max_lines=20, label="A text in each line", elem_id="zs-texts")
    button = gradio.Button("Compare", elem_id="zs-button")
    bars = gradio.Label(label="Probability of each text", num_top_classes=50, elem_id="zs-bars")
    _answer(gradio, [photo.change, button.click], _about_photo(zero_shot.classify), [photo, texts], bars, "compare")
