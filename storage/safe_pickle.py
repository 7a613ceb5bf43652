"""Read pickles of plain data without running anything that they name.

`.pdparams`, `.pdopt`, torch's weight files and the CIFAR archives are pickles, and `pickle.load` calls
whatever a file tells it to. Here no name in a file ever reaches Python's import: an exact list of names that
plain data needs stands for functions of `pickle_names.py`, which check what they get; every other name is refused.
Arrays must be numeric, and their shape must match the number of bytes.
"""

import io
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from errors import UserError, printable
from storage.files import open_file
from storage.pickle_names import PLAIN_DATA, Attributes, Range, to_array, to_list

_LARGE_BYTES = 1 << 20
_MOST_INSTRUCTIONS = 2_000_000  # CIFAR-100's train file takes 300,000, weights some thousands
_REFUSED_OPCODES = (
    pickle.OBJ,
    pickle.NEWOBJ_EX,
    pickle.PERSID,
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
)


class _BoundedFile:
    """A file with a count of its remaining bytes, so that a length in a damaged file reserves no memory."""

    def __init__(self, file: io.BufferedIOBase):
        self._file = file
        self.path: Path | None = None  # the file that large arrays are read from later
        position = file.tell()
        self._end = file.seek(0, os.SEEK_END)
        file.seek(position)
        self.size = self._end - position

    def read(self, size: int = -1) -> bytes:
        if size > self._end - self._file.tell():
            raise EOFError("it ends too early")
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline(1 << 20)

    def skip(self, size: int) -> Range:
        """Skip a number of bytes, and return their offset."""
        offset = self._file.tell()
        if size > self._end - offset:
            raise EOFError("it ends too early")
        self._file.seek(size, os.SEEK_CUR)
        return Range(self.path, offset, size)


# Python's own unpickler, not the one in C: there every opcode can be ruled, and a large memo index costs nothing.
class _PlainDataUnpickler(pickle._Unpickler):
    def __init__(self, file: io.BufferedIOBase, encoding: str, names: Mapping, persistent_load: Callable | None):
        bounded = _BoundedFile(file)
        super().__init__(bounded, encoding=encoding)
        self._names = names
        self._remembered: dict[int, int] = {}  # by the identity of an object, its key in the memo
        self._budget_bytes = 2 * bounded.size + (1 << 20)  # for what calls make of the file's bytes
        if persistent_load is not None:
            self.persistent_load = persistent_load
        self._bounded = bounded

    def stay_in(self, path: Path) -> None:
        """Leave large arrays in the file of this path: each becomes a `StoredTensor`."""
        self._bounded.path = path

    def load(self) -> object:
        """Do as the base class does, for a limited number of instructions."""
        self._unframer = pickle._Unframer(self._file_read, self._file_readline)
        self.read, self.readline = self._unframer.read, self._unframer.readline
        self.readinto = self._unframer.readinto
        self.metastack, self.stack, self.proto = [], [], 0
        self.append = self.stack.append
        try:
            for _ in range(_MOST_INSTRUCTIONS):
                self.dispatch[self.read(1)[0]](self)
        except pickle._Stop as stop:
            return stop.value
        raise UserError("refused, the file has more instructions than plain data needs")

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self._names:
            raise UserError(f"refused, the file asks for {printable(f'{module}.{name}')}, which plain data never needs")
        return self._names[module, name]

    def load_inst(self) -> None:  # names a class and makes an instance in one go
        module, name = (self.readline()[:-1].decode("ascii", "replace") for _ in range(2))
        name = printable(f"{module}.{name}")
        raise UserError(f"refused, the file asks for an instance of {name}, which plain data never needs")

    def load_call(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _call(self, function: object, args: object) -> object:
        if not any(function is allowed for allowed in self._names.values()) or not callable(function):
            raise UserError(f"refused, the file calls a {type(function).__name__}, which plain data never does")
        result = function(*args)
        self._spend(len(result) if isinstance(result, (bytes, tuple, list)) else 0)
        return result

    def _spend(self, num_bytes: int) -> None:
        self._budget_bytes -= num_bytes
        if self._budget_bytes < 0:
            raise UserError("refused, the file makes more of its bytes than plain data needs")

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, np.ndarray):
            _version, shape, dtype, is_fortran, raw = state
            if isinstance(raw, str):  # Python 2 wrote bytes as text
                self._spend(len(raw))
                raw = raw.encode("latin1")
            if dtype == np.dtype(object):
                self._replace(target, to_list(raw, shape))
            else:
                self._replace(target, to_array(raw, dtype, shape, "F" if is_fortran else "C"))
        elif isinstance(target, np.dtype):
            if state[1] not in tuple("<>|=") or any(part is not None for part in state[2:5]):
                raise ValueError("an array of records, where plain data has numbers")
            self._replace(target, target.newbyteorder(state[1]))
        elif isinstance(target, Attributes):
            if not isinstance(state, dict):  # pairs, the names of which are unchecked
                raise UserError("refused, the file sets attributes by something else than their names")
            target.update(state)
        elif isinstance(target, dict):
            pass  # attributes of a dict subclass, such as the versions that torch adds to a state dict
        else:
            raise UserError(f"refused, the file sets attributes of a {type(target).__name__}")

    def _replace(self, old: object, new: object) -> None:
        self.stack[-1] = new
        key = self._remembered.get(id(old))
        if key is not None and self.memo.get(key) is old:
            self.memo[key] = new

    def _remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]
        self._remembered[id(self.stack[-1])] = key

    def load_memoize(self) -> None:
        self._remember(len(self.memo))

    def load_binput(self) -> None:
        self._remember(self.read(1)[0])

    def load_long_binput(self) -> None:
        self._remember(int.from_bytes(self.read(4), "little"))

    def load_binbytes(self, num_digits: int = 4) -> None:
        size = int.from_bytes(self.read(num_digits), "little")
        is_apart = not self._unframer.current_frame  # outside of the frames, where Python writes large objects
        stays = self._bounded.path is not None and size >= _LARGE_BYTES and is_apart
        self.append(self._bounded.skip(size) if stays else self.read(size))

    def load_binbytes8(self) -> None:
        self.load_binbytes(8)

    def load_bytearray(self) -> None:  # the base class would reserve the memory before it reads
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def load_empty_set(self) -> None:
        self.append([])

    def load_additems(self) -> None:
        items = self.pop_mark()
        if not isinstance(self.stack[-1], list):
            raise UserError(f"refused, the file adds to a {type(self.stack[-1]).__name__} as to a set")
        self.stack[-1].extend(items)

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise UserError(f"refused, the file sets entries of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not (isinstance(key, (str, bytes)) or (type(key) is int and abs(key) < 2**31)):
                raise UserError(f"refused, the file has an entry whose name is a {type(key).__name__}")
            if key in target:
                raise ValueError(f"two entries of the name {printable(key)!r}")
            target[key] = value

    def _refuse_opcode(self) -> None:
        raise UserError("refused, the file uses a pickle instruction that plain data never needs")

    dispatch: ClassVar[dict] = {
        **pickle._Unpickler.dispatch,
        pickle.INST[0]: load_inst,
        pickle.REDUCE[0]: load_call,
        pickle.NEWOBJ[0]: load_call,
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray,
        pickle.MEMOIZE[0]: load_memoize,
        pickle.BINPUT[0]: load_binput,
        pickle.LONG_BINPUT[0]: load_long_binput,
        pickle.BINBYTES[0]: load_binbytes,
        pickle.BINBYTES8[0]: load_binbytes8,
        pickle.EMPTY_SET[0]: load_empty_set,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
        pickle.DICT[0]: load_dict,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        **dict.fromkeys((opcode[0] for opcode in _REFUSED_OPCODES), _refuse_opcode),
    }


def load(
    source: str | Path | io.BufferedIOBase,
    name: str = "",
    encoding: str = "ASCII",
    extra_names: Mapping[tuple[str, str], object] | None = None,
    persistent_load: Callable | None = None,
    stays: Path | None = None,
) -> object:
    """Unpickle plain containers and NumPy arrays.

    Args:
        source: a path, or an open binary file, which is left behind the pickle.
        name: what to call an open file in error messages.
        encoding: how Python 2 strings are decoded ("bytes" leaves them alone; the CIFAR archives).
        extra_names: {(module, name): function or value} that the file may ask for, too; see `pickle_names.py`.
        persistent_load: resolves references to things outside the pickle (`pickle.Unpickler.persistent_load`).
        stays: path of the open file, in which arrays of more than a megabyte stay: each becomes a `StoredTensor`.

    Raises:
        UserError: if the file is damaged, or asks for anything but plain data.
    """
    if isinstance(source, (str, Path)):
        try:
            with open_file(source) as file:
                return load(file, str(source), encoding, extra_names, persistent_load)
        except OSError as error:
            raise UserError(f"{source}: {error.strerror}") from error
    names = PLAIN_DATA | dict(extra_names or {})
    try:
        unpickler = _PlainDataUnpickler(source, encoding, names, persistent_load)
        if stays is not None:
            unpickler.stay_in(stays)
        return unpickler.load()
    except UserError as error:
        raise UserError(f"{name}: {error}. Do not use this file unless you trust its source.") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = printable(f"{type(error).__name__}: {error}")
        raise UserError(f"{name}: damaged or not a pickle file ({reason})") from error
