"""What the way of photos cuts off is named: pages after the first, bits beyond eight."""

import io

import numpy as np
import pytest
from PIL import Image

from methods import dispatch
from pipeline.decoding import lost_as_photo, open_image
from tests.pipeline.test_arrays import CHUNKY, as_tiff, png_16_bit_rgb
from tools import check_dataset

pytestmark = pytest.mark.quick


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RGB, GREY = Image.new("RGB", (8, 8)), Image.fromarray(np.zeros((8, 8), np.uint16))
CASES = {
    "JPEG": (lambda: encoded(RGB, "JPEG"), None),
    "PNG": (lambda: encoded(RGB, "PNG"), None),
    "TIFF": (lambda: encoded(RGB, "TIFF"), None),
    "an animation": (lambda: encoded(RGB, "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]), None),
    "five channels as pages": (
        lambda: as_tiff(np.zeros((5, 8, 8), np.uint16), photometric="minisblack"),
        "has 5 pages, of which the first is read and 16 bits per channel, of which 8 are read; DATA.PIXELS array reads",
    ),
    "pages of 8 bits": (
        lambda: encoded(RGB, "TIFF", save_all=True, append_images=[RGB, RGB]),
        "has 3 pages, of which the first is read; DATA.PIXELS array",
    ),
    "16-bit colours": (lambda: as_tiff(np.zeros((8, 8, 3), np.uint16), photometric="rgb"), "has 16 bits per channel"),
    "16-bit PNG": (png_16_bit_rgb, "has 16 bits per channel, of which 8 are read"),
    "16-bit grey PNG": (lambda: encoded(GREY, "PNG"), "has 16 bits per channel"),
    "16-bit grey TIFF": (lambda: encoded(GREY, "TIFF"), "has 16 bits per channel"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_lost(name):
    make, expected = CASES[name]
    found = lost_as_photo(make())
    assert found is None if expected is None else found.startswith(expected)


def test_a_tiff_of_many_channels_names_the_key():
    with pytest.raises(
        ValueError, match="none of the formats .*; DATA.PIXELS array reads it whole, see docs/any_images.md"
    ):
        open_image(as_tiff(np.zeros((8, 8, 13), np.uint16), **CHUNKY))
    with pytest.raises(ValueError, match="none of the formats [A-Z, ]*$"):
        open_image(b"hello")


def test_runs_and_checks_say_so(tiny_run, tmp_path, capsys):
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    for index in range(9):
        data = CASES["16-bit grey PNG" if index < 3 else "PNG"][0]()
        (folder / f"{index}.png").write_bytes(data)
    run = tiny_run("pretrain", "DATA.DATASET", "folder", "DATA.DATA_PATH", str(tmp_path), "DATA.BATCH_SIZE", 4)
    dispatch.build_train_loader(run)
    log = (run.directory / "log.txt").read_text()
    assert "0.png, 3 of 8 that were looked at: has 16 bits per channel, of which 8 are read" in log
    check_dataset.main(["-dataset", "folder", "-data_path", str(tmp_path), "-full"])
    assert "0.png, 3 of 9 that were looked at: has 16 bits per channel" in capsys.readouterr().out
