"""Write ported weights for a target, whole or not at all."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from config import default_type
from errors import UserError
from port_weights import engines, export
from storage import atomic, results, torch_file, weight_files
from storage.architecture import Architecture
from storage.stored_tensor import StoredTensor

Tensors = Mapping[str, StoredTensor]

_TORCH_SUFFIXES = (".pth", ".pt", ".th", ".bin", ".tar")
_SUFFIXES = {
    "paddle": (".pdparams", ".safetensors"),
    "official": _TORCH_SUFFIXES,
    "timm": (*_TORCH_SUFFIXES, ".safetensors"),
    "transformers": (),
    "maws": _TORCH_SUFFIXES,
    **dict.fromkeys(engines.ENGINES, ()),
}
TARGETS = tuple(_SUFFIXES)
_CONFIG_MARK = "# Builds the model of "


def is_directory(target: str) -> bool:
    """Return True if weights for a target are several files in a directory."""
    return not _SUFFIXES[target]


def check_destination(destination: Path, target: str) -> None:
    """Raise UserError if weights for a target cannot go there."""
    if target not in TARGETS:
        raise UserError(f"-to {target}: must be one of {', '.join(TARGETS)}")
    results.check_target(destination, "DST")
    if is_directory(target):
        if destination.is_file() or destination.suffix in {suffix for some in _SUFFIXES.values() for suffix in some}:
            raise UserError(f"{destination}: for {target}, name a directory")
        return
    suffixes = _SUFFIXES[target]
    if destination.suffix not in suffixes or destination.is_dir():
        others = "; -to chooses another target" if target == "paddle" else ""
        raise UserError(f"{destination}: for {target} weights, name a file that ends in {', '.join(suffixes)}{others}")
    config_file = destination.with_suffix(".yaml")
    if target == "paddle" and config_file.is_dir():
        raise UserError(f"{config_file}: is a directory; the model's YAML would go there")
    if target == "paddle" and config_file.exists():
        with open(config_file, encoding="utf-8", errors="replace") as file:
            if not file.readline().startswith(_CONFIG_MARK):
                raise UserError(f"{config_file}: exists, and is not from here; the model's YAML would go there")


def write(
    destination: Path, target: str, tensors: Tensors, architecture: Architecture, description: Mapping
) -> tuple[list[Path], list[str]]:
    """Write weights, and the YAML or config.json beside them.

    Args:
        tensors: under our names.
        description: kept in the file for target "paddle"; `batches_tracked` goes back to torch.

    Returns:
        The files written, and the official names of tensors for which the target has no place.
    """
    if target == "paddle":
        text = _config_text(destination, architecture, description)
        return _write_files(destination, tensors, description, destination.with_suffix(".yaml"), text), []
    if target == "transformers":
        renamed, config = export.to_transformers(tensors, architecture)
        text = json.dumps(config, indent=2) + "\n"
        return _write_files(
            destination / "model.safetensors", renamed, description, destination / "config.json", text
        ), []
    if target in engines.ENGINES:
        done = engines.ENGINES[target](dict(tensors), architecture)
        config_file = destination / done.config
        if config_file.exists() and config_file.read_bytes() != done.text.encode():
            raise UserError(f"{config_file}: exists, and is another one; write to another directory")
        origin = {"ported_from": description["ported_from"]}
        files = destination / done.weights, done.tensors, origin, destination / done.config, done.text
        return _write_files(*files), []
    left_out: list[str] = []
    if target == "timm":
        renamed, left_out = export.to_timm(tensors, architecture)
        encoder = dataclasses.replace(architecture, decoder=None, norm_pix_loss=None)
        description = {**description, "architecture": encoder.to_dict()}
    else:
        renamed = export.to_official(tensors)
        if architecture.probe:
            count = np.array(description.get("batches_tracked", 0), np.int64)
            renamed["head.0.num_batches_tracked"] = StoredTensor.of(count)
    with atomic.replacing(destination) as path:
        if destination.suffix == ".safetensors":
            weight_files.write_safetensors(path, renamed, description)
        else:
            weight_files.write_torch(path, renamed, "model" if target == "official" else "state_dict", description)
    return [destination], left_out


def _write_files(weights: Path, tensors: Tensors, description: Mapping, companion: Path, text: str) -> list[Path]:
    """Write weights and the text file that goes with them; both appear, or neither."""
    write_weights = _find_writer(weights)
    if weights.parent == companion.parent and weights.stem != companion.stem:  # fixed names in a directory
        weights.parent.mkdir(parents=True, exist_ok=True)
        results.claim(weights.parent, (weights.name, companion.name), "DST")
    with contextlib.ExitStack() as stack:
        weights_path = stack.enter_context(atomic.replacing(weights))  # appears last
        text_path = stack.enter_context(atomic.replacing(companion))
        text_path.write_text(text, encoding="utf-8")
        write_weights(weights_path, tensors, description)
    return [weights, companion]


def _find_writer(weights: Path):
    writers = {".safetensors": weight_files.write_safetensors, ".pth": _write_native_torch}
    return writers.get(weights.suffix, weight_files.write_pdparams)


def write_text_tower(destination: Path, tensors: Tensors, description: Mapping) -> list[Path]:
    """Write a text tower, which needs no YAML: LIT.TEXT_PRETRAINED takes it."""
    with atomic.replacing(destination) as path:
        _find_writer(destination)(path, tensors, description)
    return [destination]


def write_maws(destination: Path, tensors: Tensors) -> list[Path]:
    """Write a CLIP file as MAWS's are: a flat state dict of torch."""
    with atomic.replacing(destination) as path:
        torch_file.write(path, tensors)
    return [destination]


def _write_native_torch(path: Path, tensors: Tensors, description: Mapping) -> None:
    """Write what detectron2 reads as a checkpoint of its own."""
    weight_files.write_torch(path, tensors, "model", description)


def _config_text(weights: Path, architecture: Architecture, description: Mapping) -> str:
    """Return a YAML that builds the model; its first line marks it as ours."""
    values: dict = {}
    settings = (
        architecture.settings()
        | {"MODEL.TYPE": default_type(architecture.network)}
        | description.get("preprocessing", {})
    )
    for key, value in settings.items():
        *sections, leaf = key.split(".")
        node = values
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    origin = description["ported_from"]
    lines = [
        f"{_CONFIG_MARK}{weights.name}, {architecture.content}.",
        f"# Ported from {origin['file']} ({origin['family']}, sha256 {origin['sha256'][:16]}).",
    ]
    if not description.get("preprocessing"):
        lines.append(
            "# The file does not tell what its images were normalised by: check IMAGENET_MEAN and IMAGENET_STD."
        )
    lines.append(
        "# For Python and -eval. To train, take a recipe of configs/ as -cfg, and these weights as -pretrained."
    )
    return "\n".join(lines) + "\n" + yaml.safe_dump(values, sort_keys=False)
