"""DICOM images as arrays: one frame of stored numbers, by its slope and intercept (Hounsfield units of a CT, say)."""

import io
import math
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image

from errors import UserError

MAGIC, MAGIC_AT = b"DICM", 128
_DEFLATED = "1.2.840.10008.1.2.1.99"
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
_RLE = "1.2.840.10008.1.2.5"
# JPEG of 8 bits, and JPEG 2000, which Pillow decodes.
_BY_PILLOW = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
_NO_READER = (
    "is compressed as {}, for which there is no reader under a free licence here; decompress it (gdcmconv --raw IN OUT)"
)


def read_dicom(data: bytes, check_size: Callable, fail: type[Exception]) -> np.ndarray:
    """Return the numbers of a DICOM file with one frame, [H, W] or [H, W, 3].

    Args:
        data: the file.
        check_size: raises for a shape and type that take too much memory.
        fail: exception of a file that is not read.
    """
    pydicom = _import_pydicom()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong with a file is said once, by the error
        syntax = _transfer_syntax(pydicom, data, fail)
        dataset = pydicom.dcmread(io.BytesIO(data))
        _check(dataset, syntax, check_size, fail)
        pixels = pydicom.pixels.pixel_array(dataset)
        return _scaled(pixels, dataset, fail)


def read_header(data: bytes):
    """Return the dataset of a DICOM file without its pixels; raise ValueError for a file that is not read here."""
    pydicom = _import_pydicom()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _transfer_syntax(pydicom, data, ValueError)
        return pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)


def _import_pydicom():
    """Return pydicom, which logs nothing then; raise UserError if it is not installed."""
    try:
        import pydicom
        import pydicom.pixels
    except ImportError as error:
        raise UserError("DATA.PIXELS array needs pydicom for DICOM: pip install -r requirements/arrays.txt") from error
    pydicom.config.logger.setLevel("CRITICAL")
    return pydicom


def _transfer_syntax(pydicom, data: bytes, fail: type[Exception]) -> str:
    """Return how the pixels are kept, read before all else: pydicom inflates a deflated file without a limit."""
    stream = io.BytesIO(data)
    pydicom.filereader.read_preamble(stream, force=False)
    meta = pydicom.filereader._read_file_meta_info(stream)  # the public one takes a file's name
    syntax = str(meta.get("TransferSyntaxUID", ""))
    if syntax == _DEFLATED:
        raise fail("is a deflated DICOM file, whose size is not known before it is inflated; write it uncompressed")
    if not pydicom.uid.UID(syntax).is_valid:
        raise fail("is a DICOM file that does not say how its pixels are kept (Transfer Syntax UID)")
    if syntax not in (*_UNCOMPRESSED, _RLE, *_BY_PILLOW):
        raise fail(_NO_READER.format(pydicom.uid.UID(syntax).name))
    return syntax


def _check(dataset, syntax: str, check_size: Callable, fail: type[Exception]) -> None:
    """Raise where a dataset is not one image within the limits."""
    if "PixelData" not in dataset and "FloatPixelData" not in dataset and "DoubleFloatPixelData" not in dataset:
        raise fail("is a DICOM file without an image")
    rows, columns, samples = (int(dataset.get(key) or 0) for key in ("Rows", "Columns", "SamplesPerPixel"))
    frames, bits = int(dataset.get("NumberOfFrames") or 1), int(dataset.get("BitsAllocated") or 0)
    if frames != 1:
        raise fail(f"has {frames:,} frames; write each as a file")
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise fail("has a palette, whose numbers are colours' places in it; write it as RGB or grey")
    if bits not in (1, 8, 16, 32, 64):
        raise fail(f"has {bits} bits per number, which are not read here")
    check_size((rows, columns, samples), np.dtype(f"u{max(1, bits // 8)}"))
    if syntax in _BY_PILLOW:
        from pydicom.encaps import get_frame

        with Image.open(io.BytesIO(get_frame(dataset.PixelData, 0, number_of_frames=1))) as image:
            if image.size != (columns, rows):  # its own size counts when it is decoded
                raise fail(f"claims {columns} x {rows} pixels, and its image has {image.width} x {image.height}")
    elif syntax in _UNCOMPRESSED and "PixelData" in dataset:
        needed = math.ceil(rows * columns * samples * bits / 8)
        if len(dataset.PixelData) < needed:
            raise fail(f"claims {needed:,} bytes of pixels, and has {len(dataset.PixelData):,}")


def slope_and_intercept(dataset) -> tuple[float, float]:
    """Return what makes stored numbers those of the modality."""
    return float(dataset.get("RescaleSlope") or 1.0), float(dataset.get("RescaleIntercept") or 0.0)


def _scaled(pixels: np.ndarray, dataset, fail: type[Exception]) -> np.ndarray:
    """Apply the modality's slope and intercept, in the narrowest type that holds the result."""
    if "ModalityLUTSequence" in dataset:
        raise fail("maps its numbers by a table (Modality LUT), which is not read here; write it with a slope")
    slope, intercept = slope_and_intercept(dataset)
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise fail(f"has the slope {slope} and the intercept {intercept}")
    if (slope, intercept) == (1.0, 0.0):
        return pixels
    scaled = pixels * slope + intercept
    are_whole = slope.is_integer() and intercept.is_integer() and pixels.dtype.kind in "iu"
    fits = are_whole and abs(scaled).max(initial=0) < 1 << 31
    return scaled.astype(np.int32 if fits else np.float32 if pixels.dtype.itemsize <= 2 else np.float64)
