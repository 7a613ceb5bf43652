"""A page in the browser: a photo's reconstruction, its classes, the encoder's attention, and zero-shot classes.

    pip install -r requirements/demo.txt
    python -m tools.demo output/quickstart/pretrain [-classifier output/quickstart/finetune] [-clip RUN] [-port 7860]

The first weights are an autoencoder; a classifier adds its five most likely classes, a CLIP model a tab where a photo
is compared with texts in any language. The photo's hidden patches are
drawn by ratio and seed, or painted by hand. The server listens on this machine only (127.0.0.1), answers to no other
name, opens no file but those that were uploaded, takes photos up to 10 MB, keeps none of them for much longer than an
hour, nor after its end, and sends no telemetry.
"""

import runtime

runtime.prepare()

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import paddle
from PIL import Image

from arguments import Parser
from errors import UserError
from launch import command_line
from measures import image_sets
from measures.classification import class_probabilities
from methods import load_models
from pages import drawing
from pages.uploads import LARGEST_BYTES, photo_reader, read_upload, with_message
from pages.zero_shot_tab import ZeroShot, add_zero_shot
from pipeline import sources
from pipeline.decoding import as_mode, decode
from pipeline.file_images import FileImages
from pipeline.transforms import eval_transform
from training import device

_HOSTS = ["127.0.0.1", "localhost"]  # a page of another name that leads here is somebody else's (DNS rebinding)
_MOST_LAYERS = 8
_KEPT_SECS = 3600
_SHOWN_PX = 448  # at least, of each picture
_CANVAS_PX = 256


class Demo:
    """The models behind the page.

    Args:
        autoencoder: weights with a decoder.
        classifier: weights of a classifier, or None; its images may have another size.
    """

    def __init__(self, autoencoder: str, classifier: str | None = None):
        self.model, self.config = load_models.load_autoencoder(autoencoder)
        self.encoder, _ = load_models.load_encoder(autoencoder)
        self.classifier, self.classifier_config, self.names = None, None, []
        if classifier is not None:
            self.classifier, self.classifier_config = load_models.load_classifier(classifier)
            self.names = image_sets.class_names(self.classifier_config)

    def reconstruct(
        self, photo: str, mask_ratio: float, seed: int, kind: str, drawn: np.ndarray | None
    ) -> list[Image.Image]:
        """Return pictures: one for each of `drawing.COLUMNS`.

        Args:
            drawn: uint8 [H, W]; above 127 where patches are to be hidden. None, or all black: by ratio and seed.
        """
        images = _read(self.config, photo)
        grid_hw = self.model.patch_embedding.grid_hw
        noise = drawing.draw_noise(1, grid_hw, seed, kind)
        if drawn is not None and drawn.any():
            small = Image.fromarray(drawn).resize(grid_hw[::-1], Image.Resampling.BOX)
            noise, mask_ratio = drawing.mask_to_noise(np.asarray(small) > 127, "the painted mask")
        panels = drawing.draw_panels(self.model, self.config, images, mask_ratio=mask_ratio, noise=noise)
        return [_enlarge(panel[0]) for panel in panels]

    def classify(self, photo: str) -> dict[str, float]:
        """Return the probabilities of the five most likely classes."""
        config = self.classifier_config
        images = paddle.to_tensor(_read(config, photo))
        (row,) = class_probabilities(self.classifier, images, is_multi_label=config.TRAIN.MULTI_LABEL)
        return {self.names[index]: float(row[index]) for index in np.argsort(-row, kind="stable")[:5]}

    def attend(self, photo: str) -> list[Image.Image]:
        """Return pictures of attention rollout, and of each head of the encoder's last layer."""
        panels = drawing.draw_attention(self.encoder, self.config, _read(self.config, photo))
        return [_enlarge(panel[0]) for panel in panels[1:]]


def _read(config, photo: str) -> np.ndarray:
    """Read a photo as a batch [1, C, H, W]."""
    source = FileImages([Path(photo)], np.array([-1]), Path(photo).parent)
    try:
        image = sources.read_image(source, 0, config.DATA.IMAGE_CHANNELS, config.DATA.EXIF_TRANSPOSE)
        return eval_transform(config)(image, np.random.default_rng(0))[None]
    except Exception as error:  # whatever was uploaded
        raise UserError(f"{Path(photo).name} cannot be read as an image ({error})") from error


def painted(layers: list[bytes]) -> np.ndarray | None:
    """Return the painted mask, uint8 [H, W], 255 where the brush was; None if there is no layer."""
    if len(layers) > _MOST_LAYERS:
        raise UserError(f"the painted mask has {len(layers)} layers; at most {_MOST_LAYERS} are taken")
    alphas = []
    for layer in layers:
        try:
            image = as_mode(decode(layer, ["PNG", "WEBP"]), channels=4)
            alphas.append(np.asarray(image.resize((_CANVAS_PX, _CANVAS_PX)))[..., 3])
        except Exception as error:  # whatever was sent
            raise UserError(f"the painted mask cannot be read ({error})") from error
    return np.max(alphas, axis=0) if alphas else None


def _enlarge(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels.squeeze())
    factor = max(1, -(-_SHOWN_PX // max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def build_page(demo: Demo | None, uploads: Path, zero_shot: ZeroShot | None = None):
    """Build the Gradio page, with a tab for what there is.

    Args:
        demo: for masked autoencoding, or None.
        uploads: directory in which Gradio keeps uploaded files.
        zero_shot: for classification by texts, or None.
    """
    import gradio

    options = {"analytics_enabled": False, "delete_cache": (_KEPT_SECS // 6, _KEPT_SECS)}
    with gradio.Blocks(title="Masked autoencoder", **options) as page:
        if demo is not None:
            with gradio.Tab("Masked autoencoder"):
                _add_autoencoder(gradio, demo, uploads)
        if zero_shot is not None:
            with gradio.Tab("Zero-shot"):
                add_zero_shot(gradio, zero_shot, uploads)
    return page


def _add_autoencoder(gradio, demo: Demo, uploads: Path) -> None:
    """Add the tab of the autoencoder."""
    about = f"A model that is {demo.model.architecture}."
    cannot = "It fills in what is likely there, without knowing what it is, and no finer than its patches."
    gradio.Markdown(
        f"# Masked autoencoder\nHide patches of a photo, and see what the model makes of the rest. {about} {cannot}"
    )
    with gradio.Row():
        with gradio.Column(scale=1):
            given = _add_inputs(gradio, demo, uploads)
        with gradio.Column(scale=2):
            results = _add_outputs(gradio, demo)
    photo, ratio, seed, kind, sketch = given

    def respond(photo, mask_ratio, seed, kind, layers):  # Gradio names the endpoint and its values after these
        return _respond(gradio, demo, photo, mask_ratio, seed, kind, layers)

    gradio.on([photo.upload, ratio.release, seed.submit, kind.change, sketch.apply], respond, given, results)


def _add_inputs(gradio, demo: Demo, uploads: Path) -> list:
    """Add the inputs: photo, mask ratio, seed, kind of mask, sketch. Uploads are opened by our own readers."""

    def read_layers(payload) -> list[bytes]:
        """Return the encoded layers of the sketch, which came before the request, or were uploaded as files."""
        if payload is not None and payload.id is not None:
            payload = sketch.blob_storage.pop(payload.id, None)
        layers = [] if payload is None else (payload.layers or [])[: _MOST_LAYERS + 1]
        return [layer if isinstance(layer, bytes) else read_upload(layer.path, uploads) for layer in layers if layer]

    photo = gradio.Image(type="filepath", sources=["upload", "clipboard"], label="Photo", elem_id="photo")
    photo.preprocess = photo_reader(gradio, uploads)
    ratio = gradio.Slider(0.05, 0.95, demo.model.mask_ratio, step=0.05, label="Hidden", elem_id="ratio")
    seed = gradio.Number(0, label="Seed", precision=0, elem_id="seed")
    kind = gradio.Radio(["random", "block"], value="random", label="Patches")
    sketch = gradio.Sketchpad(
        label="Or paint what to hide",
        type="numpy",
        canvas_size=(_CANVAS_PX, _CANVAS_PX),
        brush=gradio.Brush(default_size=24, colors=["#000000"], color_mode="fixed"),
    )
    sketch.preprocess = with_message(gradio, read_layers)
    return [photo, ratio, seed, kind, sketch]


def _add_outputs(gradio, demo: Demo) -> list:
    """Add the outputs: reconstruction, classes, attention."""
    options = {"columns": 4, "format": "png", "height": "auto"}
    pictures = gradio.Gallery(label="Reconstruction", elem_id="pictures", **options)
    classes = gradio.Label(label="Taken for", visible=demo.classifier is not None, elem_id="classes")
    return [pictures, classes, gradio.Gallery(label="Attention of the class token", elem_id="heads", **options)]


def _respond(gradio, demo: Demo, photo, mask_ratio, seed, kind, layers) -> tuple:
    """Return pictures, classes and attention maps with their titles, for the outputs of the page."""
    if photo is None:
        raise gradio.Error("Upload a photo first.")
    if seed is None or not 0 <= seed < 2**31:
        raise gradio.Error("The seed must be an integer from 0.")
    try:
        drawn = painted(layers)
        pictures = demo.reconstruct(photo, mask_ratio, int(seed), kind, drawn)
        classes = demo.classify(photo) if demo.classifier is not None else None
        heads = demo.attend(photo)
    except UserError as error:
        raise gradio.Error(str(error)) from error
    heads = [(head, f"head {number}" if number else "rollout") for number, head in enumerate(heads)]
    return list(zip(pictures, drawing.COLUMNS, strict=True)), classes, heads


def main(argv: list[str] | None = None) -> None:
    """Serve the page until it is interrupted."""
    parser = Parser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("run", nargs="?", help="pretraining run, or weight file with a decoder and its YAML beside it")
    parser.add("classifier", "finetuning or probing run, or weight file", metavar="RUN")
    parser.add("clip", "run of LiT, or CLIP file, for the zero-shot tab", metavar="RUN")
    parser.add("port", "to listen on (default: 7860)", type=int, default=7860)
    args = parser.parse_args(argv)
    if not 1 <= args.port <= 65535:
        raise UserError(f"-port {args.port}: must be from 1 to 65535")
    if args.run is None and args.clip is None:
        raise UserError("a pretraining run, -clip RUN, or both are needed")
    if args.run is None and args.classifier is not None:
        raise UserError("-classifier goes with a pretraining run")
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio: pip install -r requirements/demo.txt")
    device.set_device()
    demo = None if args.run is None else Demo(args.run, args.classifier)
    zero_shot = None if args.clip is None else ZeroShot(args.clip)
    with tempfile.TemporaryDirectory(prefix="mae-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        _serve(build_page(demo, Path(uploads), zero_shot), args.port)


def _serve(page, port: int) -> None:
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    font = ["system-ui", "sans-serif"]  # Gradio's own come from a server
    theme = gradio.themes.Default(font=font, font_mono=["monospace"])
    try:
        page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            max_file_size=LARGEST_BYTES,
            theme=theme,
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)]},
        )
    except OSError as error:
        raise UserError(f"-port {port}: {error}") from error


if __name__ == "__main__":
    command_line.run(main)
