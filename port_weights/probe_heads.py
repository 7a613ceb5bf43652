"""A published head of efficient probing (arXiv 2506.10178), on the encoder that it was trained on."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from errors import UserError
from storage import manifest, weight_files
from storage.architecture import Architecture
from storage.files import read_json
from storage.stored_tensor import FLOAT_DTYPES, StoredTensor

_NAMES = {  # theirs: ours
    "0.cls_token": "pooler.queries",
    "0.v.weight": "pooler.value.weight",
    "1.running_mean": "classifier.0._mean",
    "1.running_var": "classifier.0._variance",
    "2.weight": "classifier.1.weight",
    "2.bias": "classifier.1.bias",
}
_COUNTER = "1.num_batches_tracked"
_TOKENS = {"ep": "patches", "ep_all": "all"}


class Attached(NamedTuple):
    """An encoder with a head.

    Attributes:
        tensors: under our names, in the architecture's order.
        architecture: of the attentive probe.
        dropped: tensors of the encoder's file that it does not have, with the reason.
        notes: what a user should know.
        origin: of the head, for the description.
    """

    tensors: dict[str, StoredTensor]
    architecture: Architecture
    dropped: dict[str, str]
    notes: list[str]
    origin: dict[str, str]


def attach(tensors: dict[str, StoredTensor], architecture: Architecture, path: Path) -> Attached:
    """Put the head of a file on an encoder.

    The head reads the tokens before the encoder's last norm, so that norm is left out, as are decoder and classifier.

    Args:
        tensors: of the encoder's file, under our names.
        architecture: of these.
        path: `ep_head.pth`; a config.json beside it says whether the head reads the class token, too.

    Raises:
        UserError: if the file is another one, or the head is for another width.
    """
    named = _read(path)
    queries, value = named["pooler.queries"], named["pooler.value.weight"]
    tokens, notes = _tokens(path)
    probe = dataclasses.replace(
        architecture.without_decoder(),
        global_pool=False,
        pool_after_norm=False,
        distill_head=False,
        probe=True,
        num_classes=named["classifier.1.weight"].shape[1],
        pooler="ep",
        pooler_queries=queries.shape[0],
        pooler_d_out=value.shape[0] // value.shape[1],
        pooler_tokens=tokens,
        pooler_normed=False,
    )
    shapes = probe.shapes()
    joined = {name: tensor for name, tensor in tensors.items() if name in shapes and name not in named} | named
    wrong = [
        f"{name} is {list(joined[name].shape) if name in joined else 'missing'} instead of {list(shape)}"
        for name, shape in shapes.items()
        if name not in joined or joined[name].shape != shape
    ]
    if wrong:
        raise UserError(f"{path}: does not fit the encoder, {architecture}: {'; '.join(wrong[:3])}")
    reason = "not read by the head of efficient probing"
    return Attached(
        {name: joined[name] for name in shapes},
        probe,
        dict.fromkeys(tensors.keys() - shapes.keys() | (tensors.keys() & named.keys()), reason),
        notes,
        {"file": path.name, "sha256": manifest.digests(path, "sha256")["sha256"]},
    )


def _read(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a head under our names and in our layout."""
    file = weight_files.read(path)
    found = {name.removeprefix("head."): tensor for name, tensor in file.tensors.items()}
    is_double = len(found) < len(file.tensors)
    found.pop(_COUNTER, None)
    if set(found) != set(_NAMES) or is_double:
        shown = ", ".join(list(file.tensors)[:6])
        raise UserError(f"{path}: not a head of efficient probing ({', '.join(_NAMES)}); its tensors: {shown}")
    named = {_NAMES[name]: tensor.checked(name, path) for name, tensor in found.items()}
    queries, value, weight = (named[name] for name in ("pooler.queries", "pooler.value.weight", "classifier.1.weight"))
    axes = [len(tensor.shape) for tensor in (queries, value, weight)]
    is_sound = axes == [3, 2, 2] and queries.shape[0] == 1 and 0 not in (*queries.shape, *value.shape)
    if not is_sound or value.shape[0] % queries.shape[1] or value.shape[1] % value.shape[0]:
        shown = [list(tensor.shape) for tensor in (queries, value, weight)]
        raise UserError(f"{path}: {shown} are not the shapes of queries, value and classifier of efficient probing")
    for name, tensor in named.items():
        if tensor.dtype not in FLOAT_DTYPES:
            raise UserError(f"{path}: {name} is {tensor.dtype}, and weights are {', '.join(FLOAT_DTYPES)}")
    if (named["classifier.0._variance"].read_float32() < 0).any():
        raise UserError(f"{path}: 1.running_var holds negative values; the file is damaged")
    named["pooler.queries"] = _reshaped(queries, queries.shape[1:])
    return named | {name: named[name].transposed() for name in ("pooler.value.weight", "classifier.1.weight")}


def _tokens(path: Path) -> tuple[str, list[str]]:
    """Return which tokens a head reads, and a note where nothing tells it."""
    config = path.with_name("config.json")
    variant = read_json(config).get("cls_features") if config.is_file() else None
    if variant is None:
        note = "no config.json beside the head says which tokens it reads; taken as the patches (PROBE.TOKENS)"
        return "patches", [note]
    if not isinstance(variant, str) or variant not in _TOKENS:
        raise UserError(f"{config}: cls_features is {variant!r}; {' and '.join(_TOKENS)} are known here")
    return _TOKENS[variant], []


def _reshaped(tensor: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    def load() -> np.ndarray:
        return tensor.load().reshape(shape)

    return StoredTensor(shape, tensor.dtype, load)
