"""What `zoo.yaml` lists: published weights, each with its architecture, source and licence."""

import dataclasses
import difflib
import functools
import math
from pathlib import Path

import yaml

from errors import UserError
from storage.architecture import SELF, Architecture, Tower
from storage.clip_architecture import ClipArchitecture, TextArchitecture

_TABLE = Path(__file__).parent / "zoo.yaml"


@dataclasses.dataclass(frozen=True)
class Weights:
    """An entry of `zoo.yaml`, which describes the keys."""

    name: str
    architecture: Architecture | ClipArchitecture
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


@dataclasses.dataclass(frozen=True)
class Companion:
    """A file that some weights need besides, such as a tokenizer."""

    name: str
    url: str
    about: str
    licence: str
    file: str = ""


@functools.cache
def companions() -> dict[str, Companion]:
    """Return the files of `zoo.yaml` that are not weights, by name."""
    return {name: Companion(name, **values) for name, values in _content()["files"].items()}


@functools.cache
def table() -> dict[str, Weights]:
    """Return all entries by name."""
    content = _content()
    return {name: _entry(name, values, content) for name, values in content["weights"].items()}


def find(name: str, family: str | None = None) -> Weights:
    """Return the entry MODEL.FAMILY; raise UserError with similar names otherwise."""
    full_name = name if family is None else f"{name}.{family}"
    full_name = _our_name(full_name)
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


def _our_name(full_name: str) -> str:
    """Return our name where one is MAWS's, such as vit_b16_ft_in1k.maws."""
    names, (model, _, family) = _content()["maws_names"], full_name.rpartition(".")
    for short, ours in names["models"].items():
        suffix_and_type = f"{model.removeprefix(short)}.{family}"
        if model.startswith(short) and suffix_and_type in names["families"]:
            return f"{ours}.{names['families'][suffix_and_type]}"
    return full_name


def _content() -> dict:
    return yaml.safe_load(_TABLE.read_text(encoding="utf-8"))


def _entry(name: str, values: dict, content: dict) -> Weights:
    values = dict(values)
    model = name.rpartition(".")[0]
    width, depth, heads, patch_px = content["models"][model]
    heads, kind = values.pop("heads", heads), values.pop("decoder_kind", SELF)
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
        decoder_kind=kind,
        decoder_sources=() if kind == SELF else tuple(range(depth + 1)),
        num_classes=values.pop("classes", 1000) if values["content"] == "classifier" else 0,
        global_pool=values.pop("pool", "token") == "mean",
        norm_pix_loss=values.pop("norm_pix", None),
        position_bias=values.pop("position_bias", False),
    )
    if values["content"] == "clip":
        text = TextArchitecture(Tower(*content["texts"][values.pop("text")]))
        architecture = ClipArchitecture(architecture, text, values.pop("embed"))
    values["published"] = str(values.get("published", "-"))
    return Weights(name, architecture, **content["sources"][values["source"]], **values)
