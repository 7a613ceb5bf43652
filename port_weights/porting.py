"""Port a weight file: read it, recognise it, check every tensor, and write it whole or not at all."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from config import get_config, network_kind
from errors import UserError
from port_weights import cross_decoder, probe_heads, towers
from port_weights.families import recognise
from port_weights.infer import infer
from port_weights.recognised import (
    Recognised,
    check_tensors,
    drop_lower_decoder,
    encoder_heads,
    is_sincos,
    preprocessing_beside,
    recorded_preprocessing,
)
from port_weights.report import Report
from port_weights.writing import check_destination, is_directory, write
from storage import manifest, weight_files
from storage.architecture import OWN_NETWORKS, SELF, Architecture, of_config
from storage.files import read_json
from storage.stored_tensor import StoredTensor

_KNOWN_DECODERS = {512: 16}  # width: heads


def port(
    source: str | Path,
    destination: str | Path,
    *,
    target: str = "paddle",
    heads: tuple[int | None, int | None] = (None, None),
    grid_hw: tuple[int, int] | None = None,
    norm_pix_loss: bool | None = None,
    entry: str | None = None,
    head: str | Path | None = None,
    expected: Architecture | None = None,
) -> Report:
    """Convert a weight file.

    Args:
        source: a weight file of any known family; a directory of transformers; or a run or checkpoint of ours.
        destination: for "paddle" a `.pdparams` or `.safetensors` file, and a `.yaml` that builds the model goes beside
            it; for "official" a `.pth` file, for "timm" that or `.safetensors`, for "transformers" a directory.
        target: project whose names and layout to write.
        heads: attention heads of encoder and decoder; go before those of the file and of the table of known models.
        grid_hw: patches per column and per row, where the grid is not square.
        norm_pix_loss: whether the decoder predicts normalised pixels; None: as the file records.
        entry: under which name the file keeps the weights, where that is not "model" or "state_dict".
        head: published head of efficient probing to put on the encoder; for target "paddle".
        expected: the architecture that the file must have; its heads and normalised pixels are used.

    Raises:
        UserError: if the file is not understood, any tensor is missing, unexpected, mis-shaped or not finite, or the
            destination cannot be written. An older file there is unchanged then.
    """
    destination = Path(destination)
    check_destination(destination, target)
    path, config = _find_source(Path(source))
    if destination.resolve() == (path.resolve().parent if is_directory(target) else path.resolve()):
        raise UserError(f"{destination}: is the source itself; write to another place")
    file = weight_files.read(path, entry)
    if towers.has_text(file) and target in towers.TARGETS:
        return towers.port(file, config, destination, target, heads, expected)
    found = recognise(file, config, grid_hw)
    _ask_config_beside(path, found)
    if expected is not None:
        found.heads = (expected.encoder.heads, expected.decoder.heads if expected.decoder else None)
        found.heads_from, found.norm_pix_loss = "as zoo.yaml says", expected.norm_pix_loss
    tensors, architecture, heads_from = check(file, found, heads, norm_pix_loss)
    if expected is not None and expected.position_bias:  # published files differ in layer scale
        expected = dataclasses.replace(expected, layer_scale=architecture.layer_scale)
    if expected is not None and architecture != expected:
        found_words, expected_words = (f"{model.content}, {model}" for model in (architecture, expected))
        raise UserError(f"{path}: is {found_words}; expected {expected_words}")
    tensors, architecture, origin = _with_head(found, tensors, architecture, head, target)
    if not found.preprocessing:
        found.preprocessing = recorded_preprocessing(file)
    if found.family == "this project" and not found.preprocessing:
        found.preprocessing = preprocessing_beside(path)
    notes = _notes(file, found, architecture) + _notes_on_request(target, architecture, heads[1], norm_pix_loss)
    if architecture.decoder_sources:
        notes.append("no norm follows its encoder; alone, it gets one of ones and zeros, as in official finetuning")
    if architecture.decoder_kind != SELF and target not in ("paddle", "official"):
        tensors, architecture, without = cross_decoder.encoder_alone(tensors, architecture)
        notes.append(f"{len(without)} tensors of the cross decoder were left out: {target} has none")
    tensors = {name: _in_float32(tensor.checked(name, path)) for name, tensor in tensors.items()}
    digest = manifest.digests(path, "sha256")["sha256"]
    description = _description(file, found, architecture, digest)
    if origin:
        description["ported_from"]["head"] = origin
    written, left_out = write(destination, target, tensors, architecture, description)
    if left_out:
        notes.append(f"{len(left_out)} tensors of the decoder were left out: timm has no autoencoder")
    return Report(
        source=path,
        family=found.family,
        architecture=architecture,
        heads_from=heads_from,
        mapped=len(tensors),
        num_elements=sum(tensor.size for tensor in tensors.values()),
        dtypes=sorted({tensor.dtype for tensor in found.tensors.values()}),
        dropped=found.dropped,
        notes=notes,
        written=written,
        sha256=digest,
    )


def _with_head(
    found: Recognised, tensors: dict, architecture: Architecture, head: str | Path | None, target: str
) -> tuple[dict, Architecture, dict]:
    """Put a head on an encoder, if there is one; returns tensors, architecture, and the head's origin."""
    origin: dict[str, str] = {}
    if head is not None:
        tensors, architecture, dropped, notes, origin = probe_heads.attach(tensors, architecture, Path(head))
        found.dropped |= dropped
        found.notes += notes
    if target != "paddle" and architecture.channel_groups:
        raise UserError(f"-to {target}: has no place for patches of groups of channels; leave -to out")
    if target != "paddle" and architecture.network in OWN_NETWORKS:
        raise UserError(f"-to {target}: has no place for the head of this {architecture.content}; leave -to out")
    return tensors, architecture, origin


def _notes_on_request(
    target: str, architecture: Architecture, decoder_heads: int | None, norm_pix_loss: bool | None
) -> list[str]:
    notes = []
    if architecture.decoder is None and (norm_pix_loss is not None or decoder_heads is not None):
        notes.append("-norm_pix_loss and the second number of -heads are for a decoder, and there is none")
    if architecture.pool_after_norm and architecture.num_classes:
        how = (
            "build it with global_pool='avg', fc_norm=False" if target == "timm" else "which its classifier does not do"
        )
        if target in ("timm", "official"):
            notes.append(f"the classifier reads the mean of the normalised patches; {how}")
    if target == "timm" and architecture.encoder.width != 64 * architecture.encoder.heads:
        notes.append(f"build timm's model with num_heads={architecture.encoder.heads}")
    return notes


def _description(
    file: weight_files.WeightFile, found: Recognised, architecture: Architecture, digest: str
) -> dict[str, object]:
    """Return what a ported file records of itself: its architecture, its origin, how its images were normalised."""
    origin = {"file": file.path.name, "sha256": digest, "family": found.family}
    description = {"architecture": architecture.to_dict(), "ported_from": origin} | _batches_tracked(file)
    return description | ({"preprocessing": found.preprocessing} if found.preprocessing else {})


# ---- reading and checking ----------------------------------------------------------------------


def _find_source(source: Path) -> tuple[Path, Mapping]:
    """Return the weight file of a path, and transformers' config beside it."""
    path = None
    if source.is_dir():
        if (source / "model.safetensors.index.json").is_file():
            raise UserError(
                f"{source}: its weights are in several files; save them in one with transformers' save_pretrained"
            )
        files = [source / name for name in weight_files.FOREIGN_FILES if (source / name).is_file()]
        path = files[0] if files else None
    path = path or weight_files.resolve(source)
    if path.suffix not in (".safetensors", ".bin"):
        return path, {}
    config: dict = {}
    for name in ("config.json", "preprocessor_config.json"):
        if path.with_name(name).is_file():
            config |= read_json(path.with_name(name))
    kind = f"{config.get('model_type')} {config.get('architecture')}"
    return path, config if "vit" in kind or "roberta" in kind else {}


def _ask_config_beside(path: Path, found: Recognised) -> None:
    """Take heads, grid and normalised pixels from the YAML beside weights that do not record them."""
    if found.family != "PaddleViT MAE":
        return
    try:
        config_file = weight_files.config_beside(path)
        config = get_config(config_file)
        beside = of_config(config, network_kind(config))
    except UserError:
        return
    shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
    if beside.shapes() == shapes:
        beside = drop_lower_decoder(found, beside)
        found.heads = (beside.encoder.heads, beside.decoder.heads if beside.decoder else None)
        found.heads_from = f"as {config_file.name} beside it says"
        found.norm_pix_loss, found.grid_hw = beside.norm_pix_loss, beside.grid_hw
        found.decoder_sources, found.channel_groups = beside.decoder_sources or None, beside.channel_groups
        found.pool_after_norm, found.norm_eps = beside.pool_after_norm, beside.norm_eps


def check(
    file: weight_files.WeightFile, found: Recognised, heads: tuple[int | None, int | None], norm_pix_loss: bool | None
) -> tuple[dict[str, StoredTensor], Architecture, str]:
    """Infer the architecture, and hold every tensor against it; returns the tensors in its order."""
    shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
    try:
        encoder_heads, encoder_from = _encoder_heads(found, shapes, heads[0])
        decoder_heads, decoder_from = _decoder_heads(found, shapes, heads[1])
        pixels = norm_pix_loss if norm_pix_loss is not None else found.norm_pix_loss
        parts = (found.decoder_sources, found.channel_groups)
        architecture = infer(shapes, encoder_heads, decoder_heads, found.grid_hw, pixels, *parts)
        architecture = dataclasses.replace(architecture, pool_after_norm=found.pool_after_norm, norm_eps=found.norm_eps)
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from error
    if file.architecture is not None and file.architecture.network in OWN_NETWORKS:  # whose options no shape shows
        architecture = dataclasses.replace(file.architecture, encoder=architecture.encoder)
    expected = architecture.shapes()
    check_tensors(file, f"{found.family} ViT", found.tensors, expected)
    for part, tower in (("encoder", architecture.encoder), ("decoder", architecture.decoder)):
        if tower is not None and (tower.heads < 1 or tower.width % tower.heads):
            raise UserError(f"{file.path}: {tower.heads} heads do not divide the {part}'s width of {tower.width}")
    recorded = file.architecture
    if recorded is not None and recorded.decode_layer is not None:
        recorded = recorded.without_decoder()
    if recorded is not None and recorded.shapes() != {name: shapes[name] for name in expected}:
        raise UserError(f"{file.path}: the architecture recorded in the file does not match its tensors")
    source = encoder_from + (f"; decoder {decoder_from}" if architecture.decoder else "")
    return {name: found.tensors[name] for name in expected}, architecture, source


def _encoder_heads(found: Recognised, shapes: Mapping, given: int | None) -> tuple[int, str]:
    if given is None and found.heads[0] is not None:
        return found.heads[0], found.heads_from
    heads, known = encoder_heads(shapes, given, found.heads[0])
    if given is not None:
        return given, "as -heads says" + (f", although {known} are known for it" if known != given else "")
    return heads, "as the known model of this width and depth has"


def _decoder_heads(found: Recognised, shapes: Mapping, given: int | None) -> tuple[int | None, str]:
    if "mask_token" not in shapes:
        return None, ""
    if given is not None:
        return given, "as -heads says"
    if found.heads[1] is not None:
        return found.heads[1], found.heads_from
    width = shapes["mask_token"][-1]
    if width in _KNOWN_DECODERS:
        return _KNOWN_DECODERS[width], "as the known decoder of this width has"
    raise UserError(
        f"a decoder {width} wide, but its number of attention heads is not visible in the shapes, and no decoder of "
        "this width is known here; say it with -heads ENCODER,DECODER"
    )


def _notes(file: weight_files.WeightFile, found: Recognised, architecture: Architecture) -> list[str]:
    notes = list(found.notes)
    table = found.tensors["encoder_position_embedding"]
    rows, columns = architecture.grid_hw
    if found.grid_hw is None and not is_sincos(table, architecture.grid_hw):
        notes.append(f"the grid {rows}x{columns} is taken as square; -grid ROWS,COLUMNS says otherwise")
    if file.wrapper is not None:
        notes.append(f"the weights were the file's entry {file.wrapper!r}")
    if any(tensor.dtype != "float32" for tensor in found.tensors.values()):
        notes.append("written in float32, which holds every value exactly")
    if architecture.decoder is not None and architecture.norm_pix_loss is None:
        notes.append(
            "the file does not tell whether the decoder predicts normalised pixels; taken as normalised, as in the "
            "official pretraining files (the mae_visualize files are not: -norm_pix_loss False)"
        )
    return notes


def _in_float32(tensor: StoredTensor) -> StoredTensor:
    return StoredTensor(tensor.shape, "float32", tensor.read_float32)


def _batches_tracked(file: weight_files.WeightFile) -> dict[str, int]:
    """Return torch's count of batches of a linear probe's batch norm, so that it can go back."""
    for name, tensor in file.tensors.items():
        if re.search(r"(^|\.)head\.0\.num_batches_tracked$", name) and tensor.size == 1:
            return {"batches_tracked": int(tensor.read().reshape(()))}
    count = file.metadata.get("batches_tracked")
    return {"batches_tracked": count} if type(count) is int else {}
