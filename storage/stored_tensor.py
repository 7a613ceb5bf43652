"""Tensors that stay in their file until they are needed, so that weights of any size can be looked at."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from errors import UserError

FLOAT_DTYPES = ("float32", "float16", "bfloat16")


def bits_dtype(dtype: str) -> np.dtype:
    """Return NumPy's type for the elements of a stored tensor: uint16 for bfloat16, which NumPy does not have."""
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        shape: its sides.
        dtype: NumPy's name of its element type, or "bfloat16", which NumPy does not have.
        load: reads it; bfloat16 comes as its bits in uint16.
    """

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array: np.ndarray) -> "StoredTensor":
        """Wrap an array that is in memory; Paddle's bfloat16, which is uint16 there, is recognised."""
        dtype = "bfloat16" if array.dtype == np.uint16 else array.dtype.newbyteorder("=").name
        return cls(tuple(array.shape), dtype, lambda: array)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.size * bits_dtype(self.dtype).itemsize

    def read(self) -> np.ndarray:
        """Return the tensor with its elements unchanged; bfloat16 becomes float32, which holds all its values."""
        return self._values(self.load())

    def _values(self, bits: np.ndarray) -> np.ndarray:
        return (bits.astype(np.uint32) << 16).view(np.float32) if self.dtype == "bfloat16" else bits

    def read_float32(self) -> np.ndarray:
        """Return the tensor in float32, contiguous."""
        return np.ascontiguousarray(self.read(), dtype=np.float32).reshape(self.shape)

    def transposed(self) -> "StoredTensor":
        """Swap the two axes of a matrix."""
        return StoredTensor(self.shape[::-1], self.dtype, lambda: self.load().T)

    def checked(self, name: str, path: object) -> "StoredTensor":
        """Return the same tensor, whose reading raises UserError if a value is infinite or not a number."""

        def load() -> np.ndarray:
            array = self.load()
            values = self._values(array)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise UserError(f"{path}: {name} holds values that are not finite; the file is damaged")
            return array

        return dataclasses.replace(self, load=load)


def concatenated(parts: Sequence[StoredTensor]) -> StoredTensor:
    """Join tensors of one type along their first axis."""
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return StoredTensor(shape, parts[0].dtype, lambda: np.concatenate([part.load() for part in parts]))


def sliced(tensor: StoredTensor, index: int, count: int) -> StoredTensor:
    """Cut a tensor along its first axis into `count` equal parts, and take one."""
    rows = tensor.shape[0] // count
    return StoredTensor(
        (rows, *tensor.shape[1:]), tensor.dtype, lambda: tensor.load()[index * rows : (index + 1) * rows]
    )
