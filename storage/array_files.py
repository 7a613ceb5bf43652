"""Read `.npz` files of plain arrays, up to a size, and without running anything."""

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from errors import UserError, printable
from storage.regular_files import read_regular_file


def read_arrays(file: Path, most_bytes: int, advice: str) -> dict[str, np.ndarray]:
    """Read all arrays of a file that `np.savez` wrote.

    Args:
        advice: what to do with a damaged one, for the message.

    Raises:
        UserError: if it cannot be read, is larger than `most_bytes`, or is not such a file.
    """
    try:
        content = io.BytesIO(read_regular_file(file, most_bytes))
        with zipfile.ZipFile(content) as archive:  # np.load would take what a header claims
            if sum(member.file_size for member in archive.infolist()) > content.getbuffer().nbytes:
                raise ValueError("compressed, or its sizes are wrong")
        with np.load(content, allow_pickle=False) as arrays:
            return {key: arrays[key] for key in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{file}: damaged ({printable(error)}); {advice}") from error
