"""What array files say of their numbers and reading does not apply is named: by a run, a check and the statistics."""

import contextlib
import time

import numpy as np
import pytest

from methods import dispatch
from pipeline.array_tags import not_applied
from tests.pipeline.test_arrays import as_tiff
from tests.pipeline.test_dicom_files import DEFLATED, hounsfield, write
from tools import channel_statistics, check_dataset

pytestmark = pytest.mark.quick
NUMBERS = np.arange(20 * 18, dtype=np.int16).reshape(20, 18)
INVERTED = "its greys are inverted (the least number is white), which is not undone"
PADDED = {"PixelPaddingValue": -1000, "RescaleSlope": 2, "RescaleIntercept": -24}


def gdal(text):
    return as_tiff(NUMBERS, extratags=[(42113, "s", 0, text, True)])


CASES = {
    "TIFF": (as_tiff(NUMBERS), None),
    "rotated TIFF": (
        as_tiff(NUMBERS, extratags=[(274, "H", 1, 6, True)]),
        "its orientation is 6, which is not applied",
    ),
    "inverted TIFF": (as_tiff(NUMBERS.astype(np.uint16), photometric="miniswhite"), INVERTED),
    "GDAL's missing number": (gdal("-9999"), "it says that -9999 means missing, and DATA.NODATA is None"),
    "GDAL's NaN, which is always missing": (gdal("nan"), None),
    "DICOM": (write(hounsfield()), None),
    "inverted DICOM": (write(hounsfield(), PhotometricInterpretation="MONOCHROME1"), INVERTED),
    "padded DICOM": (write(hounsfield(), **PADDED), "it says that -2024 means missing, and DATA.NODATA is None"),
    "PNG": (b"\x89PNG\r\n\x1a\n", None),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_applied(name):
    data, expected = CASES[name]
    assert not_applied(data, None) == expected


def test_a_missing_number_that_the_configuration_has_is_applied():
    assert not_applied(gdal("-9999"), -9999) is None
    assert not_applied(write(hounsfield(), **PADDED), -2024.0) is None
    assert "DATA.NODATA is 0" in not_applied(gdal("-9999"), 0)


def test_a_deflated_file_is_not_inflated():
    with pytest.raises(ValueError, match="deflated DICOM"):
        not_applied(write(hounsfield(shape=(500, 500)), DEFLATED), None)


@pytest.mark.parametrize("name", ["rotated TIFF", "GDAL's missing number", "padded DICOM"])
def test_mutated_files_do_no_harm(name):
    """As by their readers: an exception at most, and no time; `sources.describe_lost` takes any of them."""
    data, rng = CASES[name][0], np.random.default_rng(0)
    started = time.monotonic()
    for _ in range(300):
        mutated = bytearray(data)
        for _ in range(rng.integers(1, 8)):
            mutated[rng.integers(min(600, len(data)))] = rng.integers(256)
        with contextlib.suppress(Exception):
            not_applied(bytes(mutated), None)
    assert time.monotonic() - started < 30


def test_runs_checks_and_statistics_say_so(tiny_run, tmp_path, capsys):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for number in range(4):
            (tmp_path / split / "a" / f"{number}.tif").write_bytes(gdal("-9999") if number else as_tiff(NUMBERS))
    (tmp_path / "train" / "a" / "4.tif").write_bytes(b"II*\0 damaged")
    said = "1.tif, 3 of {} that were looked at: it says that -9999 means missing, and DATA.NODATA is None"
    channel_statistics.main(["-data_path", str(tmp_path), "-workers", "1"])
    assert f"{said.format(5)}\n" in capsys.readouterr().out
    settings = ["DATA.PIXELS", "array", "DATA.PIXEL_RANGE", [0, 360], "DATA.IMAGE_CHANNELS", 1]
    settings += ["DATA.IMAGENET_MEAN", [0.5], "DATA.IMAGENET_STD", [0.3], "DATA.BAD_IMAGES", "skip"]
    run = tiny_run(
        "pretrain", "DATA.DATASET", "folder", "DATA.DATA_PATH", str(tmp_path), "DATA.BATCH_SIZE", 4, *settings
    )
    report = check_dataset.check_split("folder", str(tmp_path), "train", None, False, config=run.config)
    assert any(said.format(5) in line for line in report["warnings"])
    dispatch.train_or_evaluate(run)
    assert said.format(5) in (run.directory / "log.txt").read_text()
