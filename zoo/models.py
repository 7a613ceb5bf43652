"""Published weights by name: downloaded, ported, and built into models."""

from collections.abc import Callable
from pathlib import Path

from config import default_type, get_config
from errors import UserError
from pipeline import captions
from port_weights import port
from storage import weight_files
from storage.clip_architecture import ClipArchitecture
from zoo import download
from zoo.entries import Companion, Weights, companions, find, table

_FAMILIES = {  # what a port may call the files of a source
    "official MAE": ("official MAE", "MAWS"),
    "PaddleViT": ("PaddleViT",),
    "MAWS": ("MAWS",),
    "MAE-CT": ("MAE-CT",),
    "MAE-Lite": ("MAE-Lite",),
    "CrossMAE": ("CrossMAE", "official MAE"),  # finetuned, its names are MAE's
}
_MOST_COMPANION_BYTES = 256 << 20
_PORT_VERSION = 2  # version of the files that `fetch` makes; they are made again when it changes


def fetch(name: str, source: str | None = None, say: Callable[[str], None] = print) -> Path:
    """Download and port weights, or find them in the cache.

    Args:
        name: MODEL.FAMILY, or that of a file such as xlmr_tokenizer.
        source: a local file, or another address, to take the download from.
        say: gets the lines for the user.

    Returns:
        The `.pdparams` file, beside which a `.yaml` builds the model; or the file as it is.

    Raises:
        UserError: if the file cannot be downloaded, has another sum, or does not hold the weights of the entry.
    """
    if name in companions():
        return _fetch_companion(companions()[name], source, say)
    weights = find(name)
    name = weights.name
    if weights.unsupported:
        raise UserError(f"{name} cannot be used here: {weights.unsupported}")
    folder = download.cache_folder(weights.url) / f"port{_PORT_VERSION}"
    ported = folder / f"{name}.pdparams"

    def port_file(file: Path) -> None:
        report = port(file, ported, expected=weights.architecture)
        say(str(report))
        if not any(word in report.family for word in _FAMILIES[weights.source]):
            say(f"warning: the file looks like one of {report.family}, and {name} is of {weights.source}")
        if not weights.md5:
            say(f"warning: no checksum is published, so the file is taken for {name} on trust")

    # Training code may keep two moments per weight and an average beside the weights, in float64 at most.
    most_bytes = (64 << 20) + 32 * weights.num_parameters
    options = {"md5_prefix": weights.md5, "most_bytes": most_bytes, "source": source}
    file = download.fetch(weights.url, weights.file_name, **options, check=port_file, say=say)
    if not ported.is_file():
        port_file(file)
    return ported


def _fetch_companion(wanted: Companion, source: str | None, say: Callable[[str], None]) -> Path:
    def check(file: Path) -> None:
        if file.suffix == ".model":
            captions.Tokenizer(file)

    options = {"most_bytes": _MOST_COMPANION_BYTES, "source": source, "check": check, "say": say}
    return download.fetch(wanted.url, wanted.file, **options)


def build_model(
    name: str,
    family: str | None = None,
    pretrained: bool = True,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
):
    """Build a model of `zoo.yaml`.

    Args:
        name: MODEL, for example "vit_base_patch16"; or MODEL.FAMILY, as `python -m zoo list` prints it.
        family: FAMILY, for example "mae" (where None is given), "mae_full" or "mae_finetuned".
        pretrained: load its weights, downloading them if need be; else they are random.
        num_classes: put a new head with this number of outputs on an encoder, or in place of a classifier's own.
        image_size: side, or height and width, in pixels; the position table is interpolated.

    Returns:
        A `VisionTransformer` in evaluation mode, a `MAEPretrain` where the weights have a decoder, or a `CLIP`.
    """
    import checkpoint  # the models need Paddle; the command line does not
    from mae import build_mae_pretrain
    from transformer import build_transformer

    weights = find(name, family or (None if name in table() else "mae"))
    if weights.unsupported:
        raise UserError(f"{weights.name} cannot be used here: {weights.unsupported}")
    if isinstance(weights.architecture, ClipArchitecture):
        return _build_clip(weights, pretrained, num_classes, image_size)
    if num_classes is not None and weights.architecture.decoder is not None:
        raise UserError(f"num_classes={num_classes}: {weights.name} is an autoencoder, which has no classifier")
    path = fetch(weights.name) if pretrained else None
    architecture = (weight_files.read(path).architecture if path else None) or weights.architecture
    settings = architecture.settings() | {"MODEL.TYPE": default_type(architecture.network)}
    if num_classes is not None:
        settings["MODEL.NUM_CLASSES"] = num_classes
    if image_size is not None:
        settings["DATA.IMAGE_SIZE"] = image_size if isinstance(image_size, int) else list(image_size)
    config = get_config(None, [word for setting in settings.items() for word in setting])
    model = (build_transformer if weights.architecture.decoder is None else build_mae_pretrain)(config)
    if pretrained:
        head = ("classifier.*",) if num_classes not in (None, weights.architecture.num_classes) else ()
        checkpoint.load_weights(model, path, allow_missing=head, allow_unexpected=head, allow_mismatched=head)
    model.eval()
    return model


def _build_clip(weights: Weights, pretrained: bool, num_classes: int | None, image_size: object):
    """Build a CLIP model, with its tokenizer if its weights are wanted."""
    from clip import build_clip, load_clip

    if num_classes is not None or image_size is not None:
        raise UserError(f"{weights.name} is a CLIP model: it has no classifier, and images of one size")
    if pretrained:
        return load_clip(fetch(weights.name), fetch("xlmr_tokenizer"))
    settings = weights.architecture.settings() | {"MODEL.TYPE": default_type(weights.architecture.network)}
    model = build_clip(get_config(None, [word for setting in settings.items() for word in setting]))
    model.eval()
    return model
