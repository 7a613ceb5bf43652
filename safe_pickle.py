"""Read pickles of plain data without running anything that they name.

`.pdparams`, `.pdopt` and the CIFAR archives are pickles, and `pickle.load` calls whatever a file
tells it to. This reader resolves an exact list of names that such files need, and refuses the rest.
"""

import io
import pickle
from pathlib import Path

from errors import UserError

_ALLOWED = {
    ("collections", "OrderedDict"),
    ("builtins", "tuple"),
    ("builtins", "list"),
    ("builtins", "dict"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),  # how Python 3 writes bytes for protocol 2
}


class _PlainDataUnpickler(pickle.Unpickler):
    def __init__(self, file: io.BufferedIOBase, source: str, encoding: str):
        super().__init__(file, encoding=encoding)
        self._source = source

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _ALLOWED:
            if module.startswith(("numpy.core", "numpy._core")):
                import numpy as np

                package = "numpy._core" if hasattr(np, "_core") else "numpy.core"
                module = package + module[module.rindex(".") :]
            return super().find_class(module, name)
        raise UserError(
            f"{self._source}: refused, the file asks for {module}.{name}, which plain data never needs. "
            "Do not use this file unless you trust its source."
        )


def load(source: str | Path | io.BufferedIOBase, name: str = "", encoding: str = "ASCII") -> object:
    """Unpickle plain containers and NumPy arrays.

    Args:
        source: a path, or an open binary file.
        name: what to call an open file in error messages.
        encoding: how Python 2 strings are decoded ("bytes" leaves them alone; the CIFAR archives).

    Raises:
        UserError: if the file is damaged, or asks for anything but plain data.
    """
    if isinstance(source, (str, Path)):
        try:
            with open(source, "rb") as file:
                if file.read(4) == b"PK\x03\x04":
                    raise UserError(f"{source}: a torch file or another zip archive; it must be converted first")
                file.seek(0)
                return load(file, name=str(source), encoding=encoding)
        except OSError as error:
            raise UserError(f"{source}: {error.strerror}") from error
    try:
        return _PlainDataUnpickler(source, name, encoding).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"{name}: damaged or not a pickle file ({type(error).__name__}: {error})") from error
