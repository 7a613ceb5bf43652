"""Read and write torch's weight files without torch, and without running anything that they name.

A file of `torch.save` (since torch 1.6) is a zip archive, uncompressed: `NAME/data.pkl` is a pickle of plain
containers in which every tensor is a reference to a range of `NAME/data/KEY`, its raw bytes.
"""

import collections
import io
import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from errors import UserError, printable
from storage import pickle_names, safe_pickle
from storage.files import open_file
from storage.stored_tensor import StoredTensor, bits_dtype

_ZIP_ERRORS = (zipfile.BadZipFile, OSError, RuntimeError, ValueError, EOFError, struct.error, zlib.error)
_ZIP_MAGIC = b"PK"
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickled number that torch wrote before 1.6
_DTYPE_OF_STORAGE = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_STORAGE_OF_DTYPE = {dtype: storage for storage, dtype in _DTYPE_OF_STORAGE.items()}
_LEFT_OUT = (  # harmless things that training code keeps beside the weights; nothing is made of them
    ("collections", "Counter"),
    ("collections", "defaultdict"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor_v3"),  # tensor subclasses, which weights of a ViT do not use
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
)
_OTHER_DTYPES = ("uint16", "uint32", "uint64")
_OTHER_DTYPES += tuple(f"float8_{kind}" for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz", "e8m0fnu"))
_UNTYPED = "untyped"
_LARGEST_PICKLE_BYTES = 256 << 20
_RESAVE = "python -c \"import torch; torch.save(torch.load('OLD', map_location='cpu', weights_only=True), 'NEW')\""


def is_torch_file(head: bytes) -> bool:
    """Return True if torch wrote a file, by its first bytes."""
    return head.startswith((_ZIP_MAGIC, _LEGACY_MAGIC))


def read(path: str | Path) -> object:
    """Return the content of a file of `torch.save`: plain containers with a `StoredTensor` for each tensor.

    Raises:
        UserError: if the file is damaged, is of torch's old format, or asks for anything but plain data.
    """
    path = Path(path)
    with open_file(path) as file:
        if file.read(len(_LEGACY_MAGIC)) == _LEGACY_MAGIC:
            raise UserError(f"{path}: torch's format from before version 1.6; save it again with torch: {_RESAVE}")
    archive = _Archive(path)
    names = {
        ("torch._utils", "_rebuild_tensor_v2"): archive.tensor,
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        ("torch", "Size"): _size,
        ("argparse", "Namespace"): pickle_names.Attributes,  # the official code's arguments
        **dict.fromkeys(_LEFT_OUT, _leave_out),
        **{("torch", storage): dtype for storage, dtype in _DTYPE_OF_STORAGE.items()},
        **dict.fromkeys((("torch", "UntypedStorage"), ("torch.storage", "UntypedStorage")), _UNTYPED),
        **{("torch", name): f"torch.{name}" for name in (*_STORAGE_OF_DTYPE, *_OTHER_DTYPES, "long", "float", "half")},
    }
    try:
        return safe_pickle.load(
            io.BytesIO(archive.pickle), str(path), extra_names=names, persistent_load=archive.storage
        )
    except UserError as error:
        if "refused" in str(error):
            entry = "state_dict" if b"state_dict" in archive.pickle else "model"  # as most training code calls it
            resave = _RESAVE.replace("True)", f"False)['{entry}']")
            raise UserError(f"{error} If you do, save its weights alone with torch: {resave}") from error
        raise


def _size(sides: tuple = ()) -> tuple:
    pickle_names.check_shape(sides)
    return sides


def _leave_out(*_args: object) -> pickle_names.Attributes:
    return pickle_names.Attributes()


class _Archive:
    """A checked zip archive, from which ranges are read when they are needed."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                if not members:
                    raise UserError(f"{path}: an empty zip archive")
                self._check(members)
                self._root = self._find_root(members)
                self._members = {member.filename: member for member in members}
                self.pickle = archive.read(self._members[f"{self._root}data.pkl"])
                self._check_byte_order(archive)
        except UserError:
            raise
        except _ZIP_ERRORS as error:
            raise UserError(f"{path}: truncated or damaged torch file: {printable(error)}") from error
        self._last: tuple[str, bytes] = ("", b"")

    def _check(self, members: list[zipfile.ZipInfo]) -> None:
        for member in members:
            name = printable(member.filename)
            if member.filename.startswith(("/", "\\")) or ".." in member.filename.replace("\\", "/").split("/"):
                raise UserError(f"{self.path}: refused, its entry {name!r} points outside the archive")
            if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
                raise UserError(f"{self.path}: refused, its entry {name!r} is compressed, which torch never does")
        name, count = collections.Counter(member.filename for member in members).most_common(1)[0]
        if count > 1:
            raise UserError(f"{self.path}: has {count} entries of the name {printable(name)!r}")
        if sum(member.file_size for member in members) > self.path.stat().st_size:
            raise UserError(f"{self.path}: refused, its entries claim more bytes than the file has")

    def _find_root(self, members: list[zipfile.ZipInfo]) -> str:
        pickles = [member for member in members if member.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise UserError(f"{self.path}: a zip archive, but not torch's: it has {len(pickles)} entries data.pkl")
        root = pickles[0].filename[: -len("data.pkl")]
        if any(member.filename == f"{root}constants.pkl" for member in members):
            raise UserError(f"{self.path}: a TorchScript program, not weights; save the model's state_dict() instead")
        if pickles[0].file_size > _LARGEST_PICKLE_BYTES:
            raise UserError(f"{self.path}: its data.pkl has {pickles[0].file_size:,} bytes, too many for weights")
        return root

    def _check_byte_order(self, archive: zipfile.ZipFile) -> None:
        member = self._members.get(f"{self._root}byteorder")
        if member is not None and archive.read(member) != b"little":
            raise UserError(f"{self.path}: written on a machine of another byte order; save it again on this one")

    def storage(self, reference: object) -> tuple[str, str, int]:
        """Resolve a reference to raw bytes as (dtype, key, number of elements)."""
        kind, dtype, key, _device, num_elements = reference
        # A key made of references to itself would be written out, or hashed, for ever.
        are_texts = isinstance(kind, str) and isinstance(dtype, str) and isinstance(key, str)
        if not are_texts or kind != "storage" or type(num_elements) is not int:
            raise ValueError("a reference to something that is not a tensor")
        if dtype == _UNTYPED:  # the storage of a tensor that is left out
            return dtype, "", 0
        if dtype not in _STORAGE_OF_DTYPE:
            raise ValueError("a reference to something that is not a tensor")
        member = self._members.get(f"{self._root}data/{key}")
        itemsize = bits_dtype(dtype).itemsize
        pickle_names.check_shape((num_elements,))
        if member is None:
            raise ValueError(f"the bytes of tensor storage {printable(key)!r} are missing")
        if member.file_size != num_elements * itemsize:
            raise ValueError(
                f"tensor storage {key!r} has {member.file_size:,} bytes instead of {num_elements * itemsize:,}"
            )
        return dtype, str(key), num_elements

    def tensor(
        self, storage: tuple[str, str, int], offset: int, shape: tuple, strides: tuple, *_options: object
    ) -> StoredTensor:
        """Describe a tensor as a strided view of a storage."""
        dtype, key, num_elements = storage
        for numbers in (shape, strides, (offset,)):
            pickle_names.check_shape(numbers)
        if len(shape) != len(strides):
            raise ValueError(f"a tensor of shape {shape} and strides {strides}")
        last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
        if math.prod(shape) > num_elements or (math.prod(shape) and last >= num_elements):
            raise ValueError(f"a tensor of shape {shape} in a storage of {num_elements} elements")
        code = bits_dtype(dtype)

        def load() -> np.ndarray:
            flat = np.frombuffer(self._bytes(key), code)[offset:]
            return np.lib.stride_tricks.as_strided(flat, shape, [stride * code.itemsize for stride in strides])

        return StoredTensor(tuple(shape), dtype, load)

    def _bytes(self, key: str) -> bytes:
        if self._last[0] != key:  # tensors that share a storage follow each other
            try:
                with zipfile.ZipFile(self.path) as archive:
                    self._last = (key, archive.read(self._members[f"{self._root}data/{key}"]))
            except _ZIP_ERRORS as error:
                raise UserError(f"{self.path}: truncated or damaged torch file: {printable(error)}") from error
        return self._last[1]


def write(
    path: str | Path, tensors: Mapping[str, StoredTensor], wrapper: str = "", texts: Mapping[str, str] | None = None
) -> None:
    """Write the file of `torch.save({wrapper: tensors, **texts})`, with one tensor in memory at a time.

    Without a wrapper it is that of `torch.save({**tensors, **texts})`.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("archive/data.pkl"), b"".join(_pickle(tensors, wrapper, texts or {})))
        archive.writestr(zipfile.ZipInfo("archive/byteorder"), b"little")
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")
        for key, tensor in enumerate(tensors.values()):
            with archive.open(zipfile.ZipInfo(f"archive/data/{key}"), "w", force_zip64=True) as file:
                file.write(np.ascontiguousarray(tensor.load()).data)


def _pickle(tensors: Mapping[str, StoredTensor], wrapper: str, texts: Mapping[str, str]) -> Iterator[bytes]:
    """Yield the pickle's instructions; a pickler cannot name torch's functions where torch is not installed."""
    yield pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + (_text(wrapper) + pickle.EMPTY_DICT if wrapper else b"")
    for key, (name, tensor) in enumerate(tensors.items()):
        strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
        yield _text(name) + pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n" + pickle.MARK
        yield pickle.MARK + _text("storage") + pickle.GLOBAL + f"torch\n{_STORAGE_OF_DTYPE[tensor.dtype]}\n".encode()
        yield _text(str(key)) + _text("cpu") + _integer(tensor.size) + pickle.TUPLE + pickle.BINPERSID
        yield _integer(0) + _integers(tensor.shape) + _integers(strides) + pickle.NEWFALSE
        yield pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
        yield pickle.TUPLE + pickle.REDUCE + pickle.SETITEM
    if wrapper:
        yield pickle.SETITEM
    for name, text in texts.items():
        yield _text(name) + _text(text) + pickle.SETITEM
    yield pickle.STOP


def _text(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _integer(number: int) -> bytes:
    encoded = pickle.encode_long(number)
    return pickle.LONG1 + bytes([len(encoded)]) + encoded


def _integers(numbers: tuple[int, ...] | list[int]) -> bytes:
    return pickle.MARK + b"".join(map(_integer, numbers)) + pickle.TUPLE
