"""Published weights by name: `python -m zoo list`, and models that have them.

    from zoo import build_model
    model = build_model("vit_base_patch16", "mae", pretrained=True)

What there is stands in `zoo.yaml`. Files are downloaded into a cache (`download.py`), ported (`port_weights/`), and the
result is kept beside them. Converted weights keep the licence of their source.
"""

import dataclasses
import difflib
import functools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from arguments import Parser
from config import get_config, type_of
from errors import UserError
from port_weights import port
from storage.architecture import Architecture, Tower
from zoo import download

_TABLE = Path(__file__).parent / "zoo.yaml"
_FAMILIES = {  # what a port may call the files of a source
    "official MAE": ("official MAE", "MAWS"),
    "PaddleViT": ("PaddleViT",),
    "MAWS": ("MAWS",),
    "MAE-CT": ("MAE-CT",),
    "MAE-Lite": ("MAE-Lite",),
}
_PORT_VERSION = 1  # of the files that `fetch` makes; a new one makes them anew


@dataclasses.dataclass(frozen=True)
class Weights:
    """An entry of `zoo.yaml`; see there for what its keys mean."""

    name: str
    architecture: Architecture
    source: str
    page: str
    paper: str
    licence: str
    url: str
    content: str
    verified: str
    published: str
    file: str = ""
    md5: str = ""
    note: str = ""
    unsupported: str = ""

    @property
    def file_name(self) -> str:
        """Name of the file, as its project calls it."""
        return self.file or self.url.rpartition("/")[2]

    @property
    def num_parameters(self) -> int:
        """Number of elements in all tensors."""
        return sum(math.prod(shape) for shape in self.architecture.shapes().values())


@functools.cache
def table() -> dict[str, Weights]:
    """Return all entries by name."""
    content = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return {name: _entry(name, values, content) for name, values in content["weights"].items()}


def find(name: str, family: str | None = None) -> Weights:
    """Return the entry MODEL.FAMILY; raise UserError with what there is otherwise."""
    full_name = name if family is None else f"{name}.{family}"
    if full_name in table():
        return table()[full_name]
    for entry in table().values():  # the name of its file will do
        if name in (entry.file_name, entry.file_name.partition(".")[0]):
            return entry
    model = full_name.rpartition(".")[0] or full_name
    families = [known.rpartition(".")[2] for known in table() if known.rpartition(".")[0] == model]
    models = sorted({known.rpartition(".")[0] for known in table()})
    known = f"{model} has {', '.join(families)}" if families else f"the models are {', '.join(models)}"
    close = difflib.get_close_matches(full_name, table(), n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"no weights are called {full_name}: {hint}{known}")


def fetch(name: str, source: str | None = None, say: Callable[[str], None] = print) -> Path:
    """Download and port weights, or find them in the cache.

    Args:
        name: MODEL.FAMILY.
        source: a local file, or another address, to take the download from.
        say: gets the lines that tell what happens.

    Returns:
        The `.pdparams` file; a `.yaml` beside it builds the model.

    Raises:
        UserError: if the file cannot be had, is not the right one, or does not hold what the entry says.
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
    settings = weights.architecture.settings() | {"MODEL.TYPE": type_of(weights.architecture.network)}
    if num_classes is not None:
        if weights.architecture.decoder is not None:
            raise UserError(f"num_classes={num_classes}: {weights.name} is an autoencoder, which has no classifier")
        settings["MODEL.NUM_CLASSES"] = num_classes
    if image_size is not None:
        settings["DATA.IMAGE_SIZE"] = image_size if isinstance(image_size, int) else list(image_size)
    config = get_config(None, [word for setting in settings.items() for word in setting])
    model = (build_transformer if weights.architecture.decoder is None else build_mae_pretrain)(config)
    if pretrained:
        head = ("classifier.*",) if num_classes not in (None, weights.architecture.num_classes) else ()
        path = fetch(weights.name)
        checkpoint.load_weights(model, path, allow_missing=head, allow_unexpected=head, allow_mismatched=head)
    model.eval()
    return model


def _entry(name: str, values: dict, content: dict) -> Weights:
    values = dict(values)
    model = name.rpartition(".")[0]
    width, depth, heads, patch_px = content["models"][model]
    image_px = values.pop("image", 224)
    decoder = None
    if values["content"] == "autoencoder":
        decoder = content["decoders"][values["source"]]
        decoder = Tower(*(decoder[model] if isinstance(decoder, dict) else decoder))
    architecture = Architecture(
        encoder=Tower(width, depth, heads),
        patch_px=patch_px,
        grid_hw=(image_px // patch_px, image_px // patch_px),
        decoder=decoder,
        num_classes=values.pop("classes", 1000) if values["content"] == "classifier" else 0,
        global_pool=values.pop("pool", "token") == "mean",
        norm_pix_loss=values.pop("norm_pix", None),
    )
    values["published"] = str(values.get("published", "-"))
    return Weights(name, architecture, **content["sources"][values["source"]], **values)


# ---- command line ------------------------------------------------------------------------------


def _list(pattern: str) -> None:
    rows = [
        (
            name,
            f"{entry.num_parameters / 1e6:,.1f}",
            entry.content,
            entry.source,
            entry.licence,
            "not usable" if entry.unsupported else entry.verified,
            entry.published,
        )
        for name, entry in table().items()
        if pattern in name
    ]
    if not rows:
        raise UserError(f"no name contains {pattern!r}")
    rows.insert(0, ("NAME", "MILLION", "CONTENT", "SOURCE", "LICENCE", "VERIFIED", "PUBLISHED"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, number, *rest in rows:
        cells = [name.ljust(widths[0]), number.rjust(widths[1])]
        cells += [cell.ljust(width) for cell, width in zip(rest, widths[2:], strict=True)]
        print("  ".join(cells).rstrip())


def _info(name: str) -> None:
    entry = find(name)
    folder = download.folder_of(entry.url)
    lines = {
        "name": entry.name,
        "content": entry.architecture.content,
        "architecture": entry.architecture,
        "size": f"{entry.num_parameters:,} numbers, {entry.num_parameters * 4 / 2**20:,.0f} MiB in float32",
        "source": f"{entry.source}, {entry.page}, {entry.paper}",
        "licence": entry.licence,
        "published": entry.published,
        "verified": entry.verified,
        "note": entry.note,
        "unsupported": entry.unsupported,
        "url": entry.url,
        "md5": f"{entry.md5}... as published"
        if entry.md5
        else "none published; the SHA-256 sum is recorded on first use",
        "cache": f"{folder} ({'there' if download.is_cached(entry.url) else 'not there yet'})",
    }
    for title, value in lines.items():
        if value:
            print(f"{title:13} {value}")


def main(argv: Sequence[str] | None = None) -> int:
    """List, describe or fetch weights; return the exit code: 0, or 1 after an error."""
    parser = Parser(prog="python -m zoo", description="Published weights by name.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("list", help="what there is")
    command.add_argument("pattern", nargs="?", default="", help="part of the name")
    command = commands.add_parser("info", help="all about one of them")
    command.add_argument("name", metavar="NAME")
    command = commands.add_parser("fetch", help="download and port it; prints where it is")
    command.add_argument("name", metavar="NAME")
    command.add("from", "take the original file from there", dest="source", metavar="FILE_OR_URL")
    args = parser.parse_args(argv)
    try:
        if args.command == "list":
            _list(args.pattern)
        elif args.command == "info":
            _info(args.name)
        else:
            print(fetch(args.name, args.source, say=lambda line: print(line, file=sys.stderr)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
