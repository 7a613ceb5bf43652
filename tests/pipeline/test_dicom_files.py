"""DICOM files: numbers, slopes, compressions, what is refused, mutated files."""

import contextlib
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.array_files import decode
from tests.conftest import assert_close

pydicom = pytest.importorskip("pydicom", reason="requirements/arrays.txt is not installed")
pytestmark = pytest.mark.quick
DEFLATED, JPEG, JPEG2000 = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"
PLAIN, BIG_ENDIAN, LOSSLESS = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.70"


def write(array, syntax=PLAIN, frame=None, **values) -> bytes:
    """Return a DICOM file of an array [H, W] or [H, W, 3]; `frame` is compressed pixels instead of it."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = array.shape[:2]
    dataset.SamplesPerPixel = array.shape[2] if array.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if array.ndim == 3 else "MONOCHROME2"
    if array.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * array.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsAllocated - 1, int(array.dtype.kind == "i")
    order = ">" if syntax == BIG_ENDIAN else "<"
    raw = array.astype(array.dtype.newbyteorder(order)).tobytes() if frame is None else encapsulate([frame])
    dataset.add_new("PixelData", "OB" if frame is not None or array.dtype.itemsize == 1 else "OW", raw)
    for name, value in values.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def hounsfield(seed=0, shape=(12, 10)):
    return np.random.default_rng(seed).integers(-1000, 2000, shape, np.int16)


@pytest.mark.parametrize("syntax", [PLAIN, BIG_ENDIAN])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_stored_numbers_come_back(syntax, dtype):
    info = np.iinfo(dtype)
    array = np.random.default_rng(0).integers(info.min, info.max, (12, 10), dtype, endpoint=True)
    found = decode(write(array, syntax), ".dcm")
    assert found.dtype == dtype
    assert np.array_equal(found, array[:, :, None])


def test_slope_and_intercept_give_the_units_of_the_modality():
    array = hounsfield()
    found = decode(write(array, RescaleSlope=2, RescaleIntercept=-1024))
    assert found.dtype == np.int32
    assert np.array_equal(found[:, :, 0], 2 * array.astype(np.int32) - 1024)
    found = decode(write(array, RescaleSlope=0.25, RescaleIntercept=3))
    assert found.dtype == np.float32
    assert_close(found[:, :, 0], 0.25 * array + 3, 1e-6)


def test_colours_and_compressions_come_back():
    colours = np.random.default_rng(0).integers(0, 255, (16, 12, 3), np.uint8)
    assert np.array_equal(decode(write(colours)), colours)
    lossless = io.BytesIO()
    Image.fromarray(colours[..., 0]).save(lossless, "JPEG2000")
    found = decode(write(colours[..., 0], JPEG2000, lossless.getvalue()))
    assert np.array_equal(found[..., 0], colours[..., 0])
    dataset = pydicom.dcmread(io.BytesIO(write(hounsfield())))
    dataset.compress(pydicom.uid.RLELossless)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    assert np.array_equal(decode(buffer.getvalue())[:, :, 0], hounsfield())


def jpeg(size):
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, "JPEG")
    return buffer.getvalue()


GREY = np.zeros((8, 8), np.uint8)
REFUSED = {
    "deflated": (lambda: write(GREY, DEFLATED), "is a deflated DICOM file"),
    "lossless JPEG": (lambda: write(GREY, LOSSLESS, b"1234"), "no reader under a free licence"),
    "frames": (lambda: write(np.tile(GREY, (3, 1)), NumberOfFrames=3, Rows=8), "has 3 frames; write each as a file"),
    "bad syntax": (lambda: write(GREY).replace(b"840.10008.1.2.1\0", b"840.10\n08.1.2.1\0"), "does not say how"),
    "palette": (lambda: write(GREY, PhotometricInterpretation="PALETTE COLOR"), "has a palette"),
    "huge": (lambda: write(GREY, Rows=60000, Columns=60000), "above the limit"),
    "too few": (lambda: write(GREY, Rows=9), "claims 72 bytes of pixels, and has 64"),
    "no rows": (lambda: write(GREY, Rows=0), "has the shape [0, 8, 1]"),
    "bits": (lambda: write(GREY, BitsAllocated=12), "has 12 bits per number"),
    "another size inside": (lambda: write(GREY, JPEG, jpeg((4000, 4000))), "its image has 4000"),
    "slope": (lambda: write(GREY, RescaleSlope="1e400"), "slope"),
    "cut off": (lambda: write(hounsfield())[:400], ""),
    "no image": (lambda: bytes(128) + b"DICM" + bytes(64), ""),
    "no preamble": (lambda: write(GREY)[132:], "a DICOM file has DICM at its byte 128"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_in_one_line(name, soon):
    make, message = REFUSED[name]
    data = make()
    tracemalloc.start()
    with pytest.raises(ValueError) as raised:
        decode(data, ".dcm")
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_mutated_files_crash_nothing(caplog, recwarn):
    rng, whole = np.random.default_rng(5), write(hounsfield(), RescaleSlope=2, RescaleIntercept=1)
    for _ in range(200):
        data = bytearray(whole)
        for position in rng.integers(128, len(data) - 240, 3):
            data[position] = rng.integers(256)
        with contextlib.suppress(ValueError):
            assert decode(bytes(data)).ndim == 3
    assert not caplog.records
    assert not recwarn


def test_pydicoms_own_files_are_read_or_refused(caplog, recwarn):
    """A few frames of CT and MR, RLE, JPEG 2000, files without an image, broken ones."""
    files = sorted(Path(pydicom.__file__).parent.glob("data/test_files/**/*"))
    read, refused = [], {}
    for file in filter(Path.is_file, files):
        try:
            found = decode(file.read_bytes(), file.suffix)
            assert found.ndim == 3
            assert found.dtype.kind in "biuf"
            read.append(file.name)
        except ValueError as error:
            refused[file.name] = str(error)
    assert {"CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "examples_jpeg2k.dcm", "rtdose_1frame.dcm"} <= set(read)
    assert len(read) >= 60
    assert all("\n" not in message and len(message) < 250 for message in refused.values())
    assert "deflated" in refused["image_dfl.dcm"]
    assert not caplog.records
    assert not recwarn
