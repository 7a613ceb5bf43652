"""Published weights by name: downloaded, ported, and built into models."""

from collections.abc import Callable
from pathlib import Path

from config import get_config, type_of
from errors import UserError
from port_weights import port
from storage import weight_files
from zoo import download
from zoo.entries import find, table

_FAMILIES = {  # what a port may call the files of a source
    "official MAE": ("official MAE", "MAWS"),
    "PaddleViT": ("PaddleViT",),
    "MAWS": ("MAWS",),
    "MAE-CT": ("MAE-CT",),
    "MAE-Lite": ("MAE-Lite",),
}
_PORT_VERSION = 1  # of the files that `fetch` makes; a new one makes them anew


def fetch(name: str, source: str | None = None, say: Callable[[str], None] = print) -> Path:
    """Download and port weights, or find them in the cache.

    Args:
        name: MODEL.FAMILY.
        source: a local file, or another address, to take the download from.
        say: gets the lines for the user.

    Returns:
        The `.pdparams` file; a `.yaml` beside it builds the model.

    Raises:
        UserError: if the file cannot be downloaded, has another sum, or does not hold the weights of the entry.
    """
    weights = find(name)
    name = weights.name
    if weights.unsupported:
        raise UserError(f"{name} cannot be used here: {weights.unsupported}")
    folder = download.folder_of(weights.url) / f"port{_PORT_VERSION}"
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
        num_classes: put a new head of so many outputs on an encoder, or in place of a classifier's own.
        image_size: side, or height and width, in pixels; the position table is interpolated.

    Returns:
        A `VisionTransformer` in evaluation mode, or a `MAEPretrain` where the weights have a decoder.
    """
    import checkpoint  # the models need Paddle; the command line does not
    from mae import build_mae_pretrain
    from transformer import build_transformer

    weights = find(name, family or (None if name in table() else "mae"))
    if weights.unsupported:
        raise UserError(f"{weights.name} cannot be used here: {weights.unsupported}")
    if num_classes is not None and weights.architecture.decoder is not None:
        raise UserError(f"num_classes={num_classes}: {weights.name} is an autoencoder, which has no classifier")
    path = fetch(weights.name) if pretrained else None
    architecture = (weight_files.read(path).architecture if path else None) or weights.architecture
    settings = architecture.settings() | {"MODEL.TYPE": type_of(architecture.network)}
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
