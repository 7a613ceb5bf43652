"""What the names in a pickle of plain data stand for: functions that check what they get. No Paddle here."""

import dataclasses
import math
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np

from errors import UserError, printable
from storage.stored_tensor import StoredTensor


class Attributes(dict):
    """Stand-in for an object whose class is not loaded; keeps its attributes as a dict."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Bytes of a file that are read when they are needed."""

    path: Path
    offset: int
    size: int

    def __len__(self) -> int:
        return self.size


_ARRAY_CLASS = object()  # stands for numpy.ndarray, which a pickle only ever passes on
_NUMBER_KINDS = "biufc"
_MOST_DIMS = 16


def _plain_dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype:
    code = code.decode("ascii") if isinstance(code, bytes) else code
    if not re.fullmatch(r"[<>|=]?[biufc]\d{1,2}", code):
        raise ValueError(f"an array of {printable(code, 40)!r}, where plain data has numbers")
    return np.dtype(code)


def _dtype_with_objects(code: str, align: bool = False, copy: bool = True) -> np.dtype:
    return np.dtype(object) if code == "O8" else _plain_dtype(code, align, copy)


# As `extra_names` of `load`: arrays of objects are allowed, and come as lists of what is plain data.
OBJECT_ARRAYS = {("numpy", "dtype"): _dtype_with_objects}


def to_list(values: object, shape: tuple) -> list:
    """Return an array of objects of one or two axes as a list, or a list of lists."""
    check_shape(shape)
    if not isinstance(values, list) or len(shape) not in (1, 2) or math.prod(shape) != len(values):
        raise ValueError(f"an array of objects of shape {printable(str(shape), 60)}")
    if len(shape) == 1:
        return values
    if not values:
        return []
    rows, columns = shape  # by rows, whatever the order of the array in memory
    return [values[row * columns : (row + 1) * columns] for row in range(rows)]


def _empty_array(kind: object, shape: tuple, code: bytes) -> np.ndarray:
    if kind is not _ARRAY_CLASS or shape != (0,):
        raise ValueError("an array is not built as NumPy does it")
    return np.empty(0, np.int8)


def _scalar(dtype: np.dtype, raw: bytes) -> np.generic:
    return to_array(raw, dtype, ())[()]


def _array_from_buffer(buffer: bytes, dtype: np.dtype, shape: tuple, order: str) -> np.ndarray:
    return to_array(buffer, dtype, shape, "F" if order == "F" else "C")


def to_array(raw: bytes | Range, dtype: np.dtype, shape: tuple, order: str = "C") -> np.ndarray | StoredTensor:
    """Return an array of some bytes; of bytes that stay in their file, a `StoredTensor`."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in _NUMBER_KINDS:
        raise ValueError("an array of something that is not a number")
    check_shape(shape)
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"an array of shape {shape} and {len(raw)} bytes")
    if isinstance(raw, Range):

        def load() -> np.ndarray:
            try:
                flat = np.fromfile(raw.path, dtype, math.prod(shape), offset=raw.offset)
            except OSError as error:
                raise UserError(f"{raw.path}: {error.strerror}; it was there a moment ago") from error
            if flat.nbytes < len(raw):
                raise UserError(f"{raw.path}: cut while it was read")
            return flat.reshape(shape, order=order)

        return dataclasses.replace(StoredTensor.of(np.empty(0, dtype)), shape=shape, load=load)
    return np.frombuffer(raw, dtype).reshape(shape, order=order)


def check_shape(shape: object) -> None:
    """Raise ValueError unless this is the shape of an array."""
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMS:
        raise ValueError("an array without a valid shape")
    if not all(type(side) is int and 0 <= side < 2**63 for side in shape):
        raise ValueError("an array whose dimensions are not integers")


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("text in an encoding that plain data never has")
    return text.encode(encoding)


def _ordered_dict(*args: object) -> OrderedDict:
    if args:
        raise ValueError("an OrderedDict with arguments")
    return OrderedDict()


def _tuple(values: list | tuple = ()) -> tuple:
    if not isinstance(values, (list, tuple)):
        raise ValueError("a tuple of something that is not a sequence")
    return tuple(values)


def _sequence(values: list | tuple = ()) -> list:
    """Stand in for a set: a list, as hashing what a file nests can take for ever."""
    if not isinstance(values, (list, tuple)):
        raise ValueError("a set of something that is not a sequence")
    return list(values)


def _complex(real: float, imaginary: float) -> complex:
    if not all(type(part) in (int, float) for part in (real, imaginary)):
        raise ValueError("a complex number of something that is not a number")
    return complex(real, imaginary)


def _bytearray(content: "bytes | str | Range" = b"", encoding: str = "latin1") -> "bytes | Range":
    if isinstance(content, Range):
        return content
    return _encode(content, encoding) if isinstance(content, str) else bytes(memoryview(content))


PLAIN_DATA = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("builtins", "tuple"): _tuple,
    ("numpy", "ndarray"): _ARRAY_CLASS,
    ("numpy", "dtype"): _plain_dtype,
    ("_codecs", "encode"): _encode,  # how Python 3 writes bytes for protocol 2
}
for _builtins in ("builtins", "__builtin__"):
    PLAIN_DATA |= dict.fromkeys(((_builtins, "set"), (_builtins, "frozenset")), _sequence)
    PLAIN_DATA |= {(_builtins, "complex"): _complex, (_builtins, "bytearray"): _bytearray}
for _core in ("numpy.core", "numpy._core"):
    PLAIN_DATA[f"{_core}.multiarray", "_reconstruct"] = _empty_array
    PLAIN_DATA[f"{_core}.multiarray", "scalar"] = _scalar
    PLAIN_DATA[f"{_core}.numeric", "_frombuffer"] = _array_from_buffer
