"""A page in the browser: a photo's reconstruction, its classes, the encoder's attention, and zero-shot classes.

    pip install -r requirements/demo.txt
    python -m tools.demo output/quickstart/pretrain [-classifier output/quickstart/finetune] [-segmenter RUN]
        [-clip RUN] [-port 7860]

One photo, and a tab for each of: its reconstruction, the five most likely classes of `-classifier`, the pixels' classes
by `-segmenter`, the fit of texts by `-clip`, the encoder's attention. What is hidden is drawn by ratio and seed, or
painted on the photo. The server listens on this machine only (127.0.0.1), answers to no other name, opens no file but
those that were uploaded, takes photos up to 10 MB, keeps none of them for much longer than an hour, nor after its end,
and sends no telemetry.
"""

import runtime

runtime.prepare()

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import importlib.util
import logging
import tempfile
from pathlib import Path

from arguments import Parser
from errors import UserError
from launch import command_line
from pages import html
from pages.demo_models import Autoencoder, Classifier, Segmenter, ZeroShot
from pages.demo_page import Models, build_page
from pages.uploads import LARGEST_BYTES
from training import device

_HOSTS = ["127.0.0.1", "localhost"]  # a page of another name that leads here is somebody else's (DNS rebinding)


def main(argv: list[str] | None = None) -> None:
    """Serve the page until it is interrupted."""
    parser = Parser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("run", nargs="?", help="pretraining run, or weight file with a decoder and its YAML beside it")
    parser.add("classifier", "finetuning or probing run, or weight file", metavar="RUN")
    parser.add("segmenter", "segmentation run", metavar="RUN")
    parser.add("clip", "run of LiT, or CLIP file, for the zero-shot tab", metavar="RUN")
    parser.add("port", "to listen on (default: 7860)", type=int, default=7860)
    args = parser.parse_args(argv)
    if not 1 <= args.port <= 65535:
        raise UserError(f"-port {args.port}: must be from 1 to 65535")
    given = (args.run, args.classifier, args.segmenter, args.clip)
    if given == (None,) * len(given):
        raise UserError("a pretraining run, -classifier, -segmenter or -clip RUN is needed, or several of them")
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the page needs gradio: pip install -r requirements/demo.txt")
    device.set_device()
    kinds = zip((Autoencoder, Classifier, Segmenter, ZeroShot), given, strict=True)
    models = Models(*(None if weights is None else kind(weights) for kind, weights in kinds))
    with tempfile.TemporaryDirectory(prefix="mae-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        _serve(build_page(models, Path(uploads)), args.port)


def _serve(page, port: int) -> None:
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect

    logging.getLogger("httpx").setLevel(logging.WARNING)  # Gradio asks its own server for a page as it starts
    # The server logs a page that is closed during an upload as an error of its own.
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: not (record.exc_info and isinstance(record.exc_info[1], ClientDisconnect))
    )
    font = ["system-ui", "sans-serif"]  # Gradio's own come from a server
    theme = gradio.themes.Default(font=font, font_mono=["monospace"])
    try:
        page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=LARGEST_BYTES,
            theme=theme,
            css=html.GRID_STYLE,
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)]},
        )
    except OSError as error:
        raise UserError(f"-port {port} is taken, or not allowed here: choose another one") from error
    print(f"the page is at http://127.0.0.1:{port}; Ctrl-C ends it", flush=True)
    try:
        page.block_thread()
    finally:
        page.close(verbose=False)  # a server that still runs as Python ends may abort the process


if __name__ == "__main__":
    command_line.run(main)
