"""Images as arrays of their own numbers, not as photos: TIFF of any channels and bits, .npy, .npz, DICOM, 16-bit PNG.

What a file claims is checked before memory is taken for it. Nothing that a file names is opened or run.
"""

import io
import logging
import math
import zipfile

import numpy as np

from errors import UserError
from pipeline.dicom_files import MAGIC, MAGIC_AT, read_dicom

_MOST_BYTES = 1 << 31  # that a decoded image takes
_MOST_CHANNELS, _MOST_PAGES = 512, 512
# Types of the numbers: booleans, integers, fractions.
_KINDS = "buif"
_LONGEST_HEADER = 1 << 14  # NumPy takes no longer one of a .npy file
# Compressions of TIFF that state no size of their own; JPEG is for uint8 only.
_COMPRESSIONS = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 50000: "zstd", 32773: "packbits", 7: "JPEG"}
_JPEG = 7
_SIGNATURES = (  # how a file begins
    (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"), (b"\x93NUMPY", "npy"),
    (b"PK\x03\x04", "npz"), (b"\x89PNG\r\n\x1a\n", "PNG"),
)  # fmt: skip


ANY = -1  # channels of an array that is only checked
SUFFIXES = {"TIFF": ".tif", "npy": ".npy", "npz": ".npz", "PNG": ".png", "DICOM": ".dcm"}


class BadFile(ValueError):
    """A file cannot be read as an array; the message says why."""


def decode(data: bytes, suffix: str = "", channels: int = 0) -> np.ndarray:
    """Return the numbers of an image file, [H, W, C], in the type that it holds.

    Args:
        data: the file.
        suffix: of the file's name, for messages; its content says what it is.
        channels: that are wanted, by which those of NumPy's files are found, see `_channels_last`; 0: not known; ANY:
            they may be any axis.

    Raises:
        ValueError: naming what is wrong with the file, or why it is not read.
    """
    kind = kind_of(data)
    if kind is None:
        hint = "; a DICOM file has DICM at its byte 128" if suffix.lower() in (".dcm", ".dicom") else ""
        raise BadFile(f"its content is none of TIFF, .npy, .npz, DICOM and PNG{hint}")
    readers = {"TIFF": _read_tiff, "npy": _read_npy, "npz": _read_npz, "PNG": _read_png, "DICOM": _read_dicom}
    try:
        array = readers[kind](data, channels)
    except (BadFile, UserError):
        raise
    except Exception as error:  # readers of damaged files raise nearly anything, with messages of any length
        raise BadFile(f"its {kind} content is damaged ({type(error).__name__})") from error
    if array.dtype.kind not in _KINDS or array.dtype.itemsize > 8:
        raise BadFile(f"its numbers are of type {array.dtype}, and must be integers or fractions")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def kind_of(data: bytes) -> str | None:
    """Return the kind of file that some bytes are, a key of SUFFIXES; None for another one."""
    if not data:
        raise BadFile("is empty")
    if data[MAGIC_AT : MAGIC_AT + len(MAGIC)] == MAGIC:  # what is before may be the start of a TIFF file
        return "DICOM"
    return next((name for start, name in _SIGNATURES if data.startswith(start)), None)


def _check_size(shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise ValueError if an array would take too much memory, or is none of an image."""
    if len(shape) not in (2, 3) or 0 in shape:
        raise BadFile(f"has the shape {list(shape)}; an image has 2 or 3 axes")
    if math.prod(shape) * dtype.itemsize > _MOST_BYTES:
        raise BadFile(f"claims {math.prod(shape) * dtype.itemsize:,} bytes, above the limit of {_MOST_BYTES:,}")


def _channels_last(array: np.ndarray, channels: int) -> np.ndarray:
    """Return [H, W, C] of an array that does not say which of its axes are the channels.

    They are the first or the last one: that which has as many, or else the shortest.
    """
    if array.ndim == 2:
        return array[:, :, None]
    if channels == ANY:
        return array
    axes = [axis for axis in (0, 2) if array.shape[axis] == channels != array.shape[1]]
    shortest = int(np.argmin(array.shape))
    if len(axes) != 1 and shortest != 1 and sorted(array.shape)[0] < sorted(array.shape)[1]:
        axes = [shortest]
    if len(axes) != 1:
        raise BadFile(f"has the shape {list(array.shape)}, which does not tell the channels; write it as TIFF")
    return array if axes == [2] else array.transpose(1, 2, 0)


# ---- NumPy --------------------------------------------------------------------------------------


def _read_npy(data: bytes, channels: int) -> np.ndarray:
    shape, is_fortran, dtype, offset = _read_header(data[:_LONGEST_HEADER])
    size = math.prod(shape) * dtype.itemsize
    if len(data) - offset != size:
        raise BadFile(f"claims {size:,} bytes of numbers, and has {len(data) - offset:,}")
    array = np.frombuffer(data, dtype, offset=offset)
    array = array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)
    return _channels_last(array, channels)


def _read_header(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return shape, whether the first axis varies fastest, type, and where the numbers begin, of a .npy file."""
    stream = io.BytesIO(start)
    version = np.lib.format.read_magic(stream)
    reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if reader is None:
        raise BadFile(f"is a .npy file of version {version}, which is not known here")
    shape, is_fortran, dtype = reader(stream)
    if dtype.hasobject or dtype.names is not None or dtype.subdtype is not None or min(shape, default=0) < 0:
        raise BadFile(f"holds {str(dtype)[:40]}, not plain numbers")
    _check_size(shape, dtype)
    return shape, is_fortran, dtype, stream.tell()


def _read_npz(data: bytes, channels: int) -> np.ndarray:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) != 1 or not members[0].filename.endswith(".npy"):
            raise BadFile(f"has {len(members)} arrays; an image is one (numpy.savez(file, image))")
        with archive.open(members[0]) as member:
            start = member.read(_LONGEST_HEADER)
            if not start.startswith(b"\x93NUMPY"):
                raise BadFile("its member is no .npy file")
            shape, _, dtype, offset = _read_header(start)
            size = offset + math.prod(shape) * dtype.itemsize  # before memory is taken for what it inflates to
            if members[0].file_size != size:
                raise BadFile(f"claims {size:,} bytes, and its member {members[0].file_size:,}")
            content = start + member.read(max(0, size - len(start)) + 1)
    return _read_npy(content, channels)


def _read_dicom(data: bytes, channels: int) -> np.ndarray:
    array = read_dicom(data, _check_size, BadFile)
    return array if array.ndim == 3 else array[:, :, None]


# ---- PNG ----------------------------------------------------------------------------------------


def _read_png(data: bytes, channels: int) -> np.ndarray:
    from pipeline.decoding import open_image

    depth, colour = (data[24], data[25]) if len(data) > 25 else (0, 0)
    if depth == 16 and colour != 0:
        raise BadFile("is a PNG of 16-bit colours, of which Pillow reads 8 bits; write it as TIFF")
    with open_image(data, ["PNG"]) as image:
        if image.mode == "P":
            raise BadFile("is a PNG with a palette, whose numbers are colours' places in it; write it as RGB or grey")
        _check_size((image.height, image.width, max(1, len(image.getbands()))), np.dtype(np.uint16))
        image.load()
        array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None].astype(np.uint16 if depth == 16 else array.dtype, copy=False)


# ---- TIFF ---------------------------------------------------------------------------------------


def _read_tiff(data: bytes, channels: int) -> np.ndarray:
    with open_tiff(data) as file:
        pages = _whole_pages(file)
        first = pages[0]
        for page in pages:
            _check_page(page, len(pages))
        shapes = {(page.shape, page.dtype) for page in pages}
        if len(shapes) > 1:
            raise BadFile(f"has pages of {len(shapes)} sizes or types: {[list(page.shape) for page in pages[:4]]}")
        if len(pages) > 1 and first.samplesperpixel > 1:
            raise BadFile(f"has {len(pages)} pages of {first.samplesperpixel} channels; write each as a file")
        height, width = first.imagelength, first.imagewidth
        _check_size((height, width, len(pages) * first.samplesperpixel), np.dtype(first.dtype))
        arrays = [page.asarray(maxworkers=1) for page in pages]
    if len(arrays) > 1:
        return np.stack(arrays, axis=-1)
    (array,) = arrays
    if array.ndim == 3 and first.axes.startswith("S"):  # planar: a channel after the other
        return array.transpose(1, 2, 0)
    return array[:, :, None] if array.ndim == 2 else array


def open_tiff(data: bytes):
    """Open a TIFF file by its pages alone, as a context; raise UserError if tifffile is not installed."""
    try:
        import tifffile
    except ImportError as error:
        raise UserError("DATA.PIXELS array needs tifffile for TIFF: pip install -r requirements/arrays.txt") from error
    tifffile.logger().setLevel(logging.CRITICAL)  # what is wrong with a file is said once, by the error
    return tifffile.TiffFile(io.BytesIO(data), is_ome=False, is_imagej=False, is_lsm=False)


def _whole_pages(file) -> list:
    """Return the pages of a TIFF file that are images of full size; raise ValueError for none or too many."""
    pages = []
    for number, page in enumerate(file.pages):  # reduced ones count, too: they may follow each other in a circle
        if number == _MOST_PAGES:
            raise BadFile(f"has more than {_MOST_PAGES} pages")
        if not (page.is_reduced or page.is_mask):
            pages.append(page)
    if not pages:
        raise BadFile("is a TIFF file without an image of full size")
    return pages


def _check_page(page, num_pages: int) -> None:
    """Raise ValueError if a page cannot be read within the limits."""
    dtype, samples = page.dtype, page.samplesperpixel
    if dtype is None:
        raise BadFile(f"has {page.bitspersample} bits per number, which are not read here")
    if samples * num_pages > _MOST_CHANNELS:
        raise BadFile(f"claims {samples * num_pages:,} channels, above the limit of {_MOST_CHANNELS}")
    if page.imagedepth != 1:
        raise BadFile("is a volume; write its slices as files")
    if page.photometric == 3:
        raise BadFile("has a palette, whose numbers are colours' places in it; write it as RGB or grey")
    if int(page.compression) not in _COMPRESSIONS or (int(page.compression) == _JPEG and dtype != np.uint8):
        known = ", ".join(dict.fromkeys(_COMPRESSIONS.values()))
        raise BadFile(f"is compressed by {getattr(page.compression, 'name', page.compression)}; known: {known}")
    _check_size((page.imagelength, page.imagewidth, samples), np.dtype(dtype))
    if page.is_tiled and page.tilewidth * page.tilelength * samples * np.dtype(dtype).itemsize > _MOST_BYTES:
        raise BadFile(f"claims tiles of {page.tilewidth} x {page.tilelength} pixels, above the limit")
