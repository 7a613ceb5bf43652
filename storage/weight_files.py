"""Weight files of every kind, as named tensors that are read when needed. No Paddle here.

| file | written by |
|---|---|
| zip archive (`.pth .pt .th .bin .tar`) | torch, see `torch_file.py` |
| pickle (`.pdparams .pd`) | Paddle |
| `.safetensors` | transformers, timm |

A `.pdparams` of ours is Paddle's pickle, followed by a second pickle with a description, which Paddle's loader does not
read. A `.safetensors` keeps the same in its header.
"""

import collections
import dataclasses
import json
import math
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from errors import UserError, printable
from storage import safe_pickle, torch_file
from storage.architecture import Architecture
from storage.clip_architecture import ClipArchitecture, TextArchitecture
from storage.files import open_file
from storage.run_files import BEST, CONFIG_FILE, EMA_FILE, LATEST, MODEL_FILE
from storage.stored_tensor import StoredTensor, bits_dtype

FOREIGN_FILES = ("model.safetensors", "pytorch_model.bin")  # in a directory of transformers, or of timm on the hub
_PADDLE_NAME_TABLE = "StructuredToParameterName@@"  # what paddle.save adds to a flat state dict
_METADATA_KEY = "mae_paddle"
_WRAPPERS = ("model", "state_dict")  # under which training code keeps the weights in a larger file
_SAFETENSORS_DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_LARGEST_HEADER_BYTES = 100 << 20
_LONGEST_NAME = 300  # characters of a tensor name
_LONGEST_FILE_NAME = 250  # bytes, with room for a suffix below the usual limit of a file system


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """The content of a weight file.

    Attributes:
        path: the file.
        kind: "torch", "paddle" or "safetensors".
        tensors: by name, in the file's order.
        wrapper: entry of the file under which the tensors were, or None.
        others: names of the entries beside that one, and of values that are not tensors.
        nested: names of entries that hold tensors of their own.
        arguments: of the program that wrote the file, where it keeps them (the official code's `args`).
        metadata: the description in a file that this project wrote, else empty.
    """

    path: Path
    kind: str
    tensors: dict[str, StoredTensor]
    wrapper: str | None = None
    others: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()
    arguments: dict = dataclasses.field(default_factory=dict)
    metadata: dict = dataclasses.field(default_factory=dict)

    @property
    def architecture(self) -> Architecture | None:
        """Return the architecture recorded in a file, if this project wrote it."""
        return self._described(Architecture)

    @property
    def clip_architecture(self) -> ClipArchitecture | None:
        """Return the architecture of a CLIP model that is recorded in a file, if it is one of this project."""
        return self._described(ClipArchitecture)

    @property
    def text_architecture(self) -> TextArchitecture | None:
        """Return the architecture of a text tower that is recorded in a file, if it is one of this project."""
        return self._described(TextArchitecture)

    def _described(self, kind: type):
        values = self.metadata.get(kind.KEY)
        if values is None:
            return None
        try:
            return kind.from_dict(values)
        except (TypeError, KeyError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError(f"{self.path}: its own description is damaged: {error}") from error


def read(path: str | Path, entry: str | None = None) -> WeightFile:
    """Open a weight file; its kind follows from its first bytes, not from its name.

    Args:
        path: the file.
        entry: under which name it keeps the weights; None: "model", "state_dict", or none.

    Raises:
        UserError: if it cannot be read, is damaged, asks for code to be run, or holds no tensors.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open_file(path) as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if size == 0:
        raise UserError(f"{path}: the file is empty")
    if torch_file.is_torch_file(head):
        data = torch_file.read(path)
        description = data.pop(_METADATA_KEY, None) if isinstance(data, dict) else None
        return _unwrap(path, "torch", data, entry, description)
    header_bytes = int.from_bytes(head[:8], "little")
    looks_right = head[8:9] == b"{" and header_bytes < _LARGEST_HEADER_BYTES
    if looks_right or path.suffix == ".safetensors":
        return _read_safetensors(path, size, header_bytes)
    return _read_paddle(path, entry)


def resolve(path: str | Path) -> Path:
    """Find the weight file behind a path without its suffix, a checkpoint directory, or a run directory.

    Of a run directory, the `best` checkpoint is taken, or `latest` where nothing was evaluated. Where a checkpoint has
    averaged weights, those are taken: they were evaluated.
    """
    path = Path(path)
    if len(os.fsencode(path.name)) > _LONGEST_FILE_NAME - len(".safetensors"):
        raise UserError(f"{printable(path)}: no such file")
    if path.is_dir():
        candidates = [folder / name for folder in (path, path / BEST, path / LATEST) for name in (EMA_FILE, MODEL_FILE)]
    else:
        candidates = [path, *(path.with_name(path.name + suffix) for suffix in (".pdparams", ".safetensors"))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if any((path / name).is_file() for name in FOREIGN_FILES):
        raise UserError(f"{path}: a directory of transformers; convert it: python -m port_weights {path} NEW.pdparams")
    what = "holds no model.pdparams" if path.is_dir() else "no such file, with or without .pdparams"
    wanted = "expected a .pdparams or .safetensors file, or a checkpoint directory"
    name = f"; published weights: python -m zoo fetch {path}" if re.fullmatch(r"vit_\w+\.\w+", str(path)) else ""
    raise UserError(f"{path}: {what}; {wanted}{name}")


def config_beside(path: Path) -> Path:
    """Find the YAML that builds the model of a weight file: of the same name, or config.yaml in its directory."""
    for candidate in (path.with_suffix(".yaml"), path.with_name(CONFIG_FILE)):
        if candidate.is_file():
            return candidate
    raise UserError(f"{path}: no {path.stem}.yaml or config.yaml beside it tells how to build its model")


# ---- reading -----------------------------------------------------------------------------------


def _read_paddle(path: Path, entry: str | None) -> WeightFile:
    real = path.resolve()  # `best` and `latest` of a run that trains may point elsewhere meanwhile
    with open_file(real) as file:
        data = safe_pickle.load(file, str(path), stays=real)
        metadata = {}
        if file.read(1):  # a second pickle
            file.seek(-1, os.SEEK_CUR)
            metadata = safe_pickle.load(file, str(path))
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: something follows the weights that is not a description of them")
    return _unwrap(path, "paddle", data, entry, metadata.get(_METADATA_KEY))


def _unwrap(path: Path, kind: str, data: object, entry: str | None, description: object) -> WeightFile:
    """Find the state dict in the content of a pickle, and add its description."""
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a state dict, found {type(data).__name__}")
    wrapper = entry or next((name for name in _WRAPPERS if _has_tensors(data.get(name))), None)
    if entry is not None and not isinstance(data.get(entry), dict):
        dicts = [printable(name) for name, value in data.items() if isinstance(value, dict)]
        raise UserError(f"{path}: has no entry {entry!r} with weights; its entries: {', '.join(dicts) or 'none'}")
    inner = data if wrapper is None else data[wrapper]
    tensors, others = {}, [] if wrapper is None else [printable(name) for name in data if name != wrapper]
    for name, value in inner.items():
        if name == _PADDLE_NAME_TABLE:
            continue
        if isinstance(value, tuple) and len(value) == 2:  # paddle.save writes nested tensors as (auto name, array)
            value = value[1]
        if isinstance(value, np.ndarray):
            value = StoredTensor.of(value)
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            others.append(printable(name))
        else:
            tensors[_checked_name(name, path)] = value
    nested = tuple(printable(name) for name, value in inner.items() if _has_tensors(value))
    if not tensors:
        holds = f"; its entries: {', '.join(others[:8])}" if others else ""
        holds += advise_entry(path, nested) if nested else "; is this a weight file?"
        raise UserError(f"{path}: holds no tensors at its top{holds}" if nested else f"{path}: holds no tensors{holds}")
    arguments = data.get("args")
    arguments = dict(arguments) if isinstance(arguments, dict) else {}
    description = _parse_description(path, description)
    return WeightFile(path, kind, tensors, wrapper, tuple(others), nested, arguments, description)


def advise_entry(path: Path, nested: Sequence[str]) -> str:
    """Return advice on a file whose weights are in one of its entries."""
    return f"; weights are under {', '.join(nested[:8])}: python -m port_weights {path} NEW.pdparams -entry {nested[0]}"


def _has_tensors(entry: object) -> bool:
    return isinstance(entry, dict) and any(isinstance(v, (StoredTensor, np.ndarray, tuple)) for v in entry.values())


def _checked_name(name: str, path: Path) -> str:
    if not name.isprintable() or len(name) > _LONGEST_NAME:
        raise UserError(f"{path}: the name of a tensor holds control characters, or is too long: {printable(name, 40)}")
    return name


def _read_safetensors(path: Path, size: int, header_bytes: int) -> WeightFile:
    import safetensors

    if header_bytes > min(size - 8, _LARGEST_HEADER_BYTES):
        raise UserError(f"{path}: not a readable safetensors file: truncated, or not one at all")
    try:
        with safetensors.safe_open(path, framework="np"):  # checks offsets, shapes and the file's length
            pass
        with open_file(path) as file:
            file.seek(8)
            header = json.loads(file.read(header_bytes), object_pairs_hook=_unique_keys)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # safetensors has its own exception type
        raise UserError(f"{path}: not a readable safetensors file: {printable(error)}") from error
    metadata = header.pop("__metadata__", None) or {}
    tensors, others = {}, []
    for name, entry in header.items():
        dtype = _SAFETENSORS_DTYPES.get(entry["dtype"])
        if dtype is None:  # no weights, see `stored_tensor.FLOAT_DTYPES`
            others.append(printable(f"{name} ({entry['dtype']})"))
            continue
        shape, start = tuple(entry["shape"]), 8 + header_bytes + entry["data_offsets"][0]
        load = _range_reader(path.resolve(), start, shape, dtype)
        tensors[_checked_name(name, path)] = StoredTensor(shape, dtype, load)
    if not tensors:
        raise UserError(f"{path}: holds no tensors")
    description = _parse_description(path, metadata.get(_METADATA_KEY))
    return WeightFile(path, "safetensors", tensors, others=tuple(others), metadata=description)


def _range_reader(path: Path, start: int, shape: tuple[int, ...], dtype: str) -> Callable[[], np.ndarray]:
    return lambda: np.fromfile(path, bits_dtype(dtype), math.prod(shape), offset=start).reshape(shape)


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        name, _ = collections.Counter(name for name, _ in pairs).most_common(1)[0]
        raise UserError(f"two entries of the name {printable(name)!r}")
    return entries


def _parse_description(path: Path, text: object) -> dict:
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: its own description is damaged: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: its own description is damaged")
    return values


# ---- writing -----------------------------------------------------------------------------------


class _StreamingPickler(pickle.Pickler):
    """Pickle stored tensors as the arrays that they are, and keep none of them in memory."""

    def __init__(self, file):
        super().__init__(file, protocol=4)
        self.fast = True  # no memo, which would hold every array until the end

    def reducer_override(self, value: object) -> object:
        return value.read().__reduce__() if isinstance(value, StoredTensor) else NotImplemented


def read_nested(path: str | Path, wrapper: str) -> dict[str, np.ndarray | StoredTensor]:
    """Read what `write_nested` wrote; large tensors stay in the file until they are needed.

    Raises:
        UserError: if the file is damaged, or is something else.
    """
    path = Path(path)
    try:
        with open_file(path.resolve()) as file:
            content = safe_pickle.load(file, str(path), stays=path.resolve())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    found = content.get(wrapper) if isinstance(content, dict) else None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not the {wrapper} state of a run of this project")
    return found


def write_pdparams(path: str | Path, tensors: Mapping[str, StoredTensor], metadata: Mapping | None = None) -> None:
    """Write a flat state dict that plain `paddle.load` and `set_state_dict` read, and its description."""
    with open(path, "wb") as file:
        _StreamingPickler(file).dump({**tensors, _PADDLE_NAME_TABLE: {name: name for name in tensors}})
        if metadata:
            pickle.dump(_metadata_texts(metadata), file, protocol=4)


def write_nested(path: str | Path, wrapper: str, tensors: Mapping[str, StoredTensor]) -> None:
    """Write {wrapper: {name: array}} as a pickle that plain `paddle.load` reads."""
    with open(path, "wb") as file:
        _StreamingPickler(file).dump({wrapper: dict(tensors)})


def write_safetensors(path: str | Path, tensors: Mapping[str, StoredTensor], metadata: Mapping | None = None) -> None:
    """Write a `.safetensors` file; all tensors are in memory at once."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(tensor.read()).reshape(tensor.shape) for name, tensor in tensors.items()}
    try:  # transformers asks for a format
        save_file(arrays, path, metadata={"format": "pt", **_metadata_texts(metadata)})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def write_torch(path: str | Path, tensors: Mapping[str, StoredTensor], wrapper: str, metadata: Mapping) -> None:
    """Write a file that `torch.load` reads, with the weights under an entry `wrapper`."""
    torch_file.write(path, tensors, wrapper, _metadata_texts(metadata))


def _metadata_texts(metadata: Mapping | None) -> dict[str, str]:
    return {_METADATA_KEY: json.dumps(metadata)} if metadata else {}
