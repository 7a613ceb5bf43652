"""Files that a page in the browser uploads: only those are opened, and errors become messages there."""

from collections.abc import Callable
from pathlib import Path

from errors import UserError

LARGEST_BYTES = 10 * 1000**2


def read_upload(path: str, folder: Path) -> bytes:
    """Return the content of an upload.

    A request may name any path, so only regular files below the folder of uploads are opened.

    Raises:
        UserError: for any other path, and for files that are too large.
    """
    file = Path(str(path))  # a request may also say that it has none
    try:
        is_upload = folder.resolve() in file.resolve().parents and file.resolve().is_file()
        size = file.stat().st_size if is_upload else 0
    except (OSError, ValueError, RuntimeError):
        is_upload = False
    if not is_upload:
        raise UserError("this file was not uploaded here")
    if size > LARGEST_BYTES:
        raise UserError(f"the file has {size:,} bytes; at most {LARGEST_BYTES:,} are taken")
    return file.read_bytes()


def with_message(gradio, function: Callable) -> Callable:
    """Return a function whose UserError becomes a message on the page."""

    def respond(*values):
        try:
            return function(*values)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    return respond


def photo_reader(gradio, folder: Path) -> Callable:
    """Return a function for Gradio that checks an uploaded photo and returns its path."""

    def read_photo(payload) -> str | None:
        if payload is not None:
            read_upload(payload.path, folder)
        return None if payload is None else payload.path

    return with_message(gradio, read_photo)
