"""Statistics of channels against NumPy on all pixels, and what they say of files that are not as they should be."""

import numpy as np
import pytest
import yaml

from config import get_config
from errors import UserError
from measures.channel_counts import Counts
from tools import channel_statistics

tifffile = pytest.importorskip("tifffile", reason="requirements/arrays.txt is not installed")
pytestmark = pytest.mark.quick
CHUNKY = {"photometric": "minisblack", "planarconfig": "contig"}


def make(folder, dtype, count=9, channels=3, bad=False):
    rng, arrays = np.random.default_rng(1), []
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        array = rng.gamma(2.0, 300.0, (11, 13, channels)) - (200 if np.dtype(dtype).kind in "if" else 0)
        arrays.append(array.astype(dtype))
        if index % 2:
            np.save(folder / f"{index}.npy", arrays[-1])
        else:
            tifffile.imwrite(folder / f"{index}.tif", arrays[-1], **CHUNKY)
    return np.concatenate([array.reshape(-1, channels) for array in arrays])


def run(capsys, folder, *flags):
    is_good = channel_statistics.main(["-data_path", str(folder), *map(str, flags)])
    said = capsys.readouterr().out
    settings = yaml.safe_load(said[said.index("DATA:") :].partition("wrote ")[0]) if "DATA:" in said else {}
    return is_good, said, settings.get("DATA", {})


def rank(values, percent):
    """Return the smallest value that a share of the numbers does not exceed, in percent."""
    return np.sort(values)[max(0, int(np.ceil(len(values) * percent / 100 - 1e-9)) - 1)]


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint8"])
def test_integers_are_counted_exactly(tmp_path, capsys, dtype):
    pixels = make(tmp_path / "train", dtype)
    is_good, said, data = run(capsys, tmp_path)
    assert is_good
    for channel in range(3):
        values = pixels[:, channel].astype(np.float64)
        ranges = data["PIXEL_RANGE"]  # one pair where all channels have the same
        low, high = ranges[channel] if isinstance(ranges[0], list) else ranges
        assert (low, high) == (rank(values, 0.1), rank(values, 99.9))
        seen = (np.clip(values, low, high) - low) / (high - low)
        assert data["IMAGENET_MEAN"][channel] == pytest.approx(seen.mean(), rel=6e-5)  # five digits are printed
        assert data["IMAGENET_STD"][channel] == pytest.approx(seen.std(), rel=6e-5)
        row = next(line.split() for line in said.splitlines() if line.split()[:1] == [str(channel)])
        assert row[1:3] == [str(len(values)), f"{values.min():.6g}"]
        assert row[3:9] == [f"{rank(values, p):.6g}" for p in (0.1, 2, 50, 98, 99.9)] + [f"{values.max():.6g}"]
    config = get_config(None, [word for key, value in data.items() for word in (f"DATA.{key}", value)])
    assert data["PIXEL_RANGE"] == config.DATA.PIXEL_RANGE


def test_fractions_are_good_to_a_bin(tmp_path, capsys):
    pixels = make(tmp_path / "train", "float32")
    _, said, data = run(capsys, tmp_path, "-range", "-150", "1500")
    assert data["PIXEL_RANGE"] == [-150, 1500]
    for channel in range(3):
        values = pixels[:, channel].astype(np.float64)
        seen = (np.clip(values, -150, 1500) + 150) / 1650
        assert data["IMAGENET_MEAN"][channel] == pytest.approx(seen.mean(), rel=1e-3)
        assert data["IMAGENET_STD"][channel] == pytest.approx(seen.std(), rel=2e-3)
        row = next(line.split() for line in said.splitlines() if line.split()[:1] == [str(channel)])
        for percent, found in zip((0.1, 2, 50, 98, 99.9), row[3:8], strict=True):
            assert float(found) == pytest.approx(rank(values, percent), rel=0.008)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_order_and_workers_change_nothing(tmp_path, capsys, dtype):
    make(tmp_path / "train", dtype)
    assert len({run(capsys, tmp_path, "-workers", workers)[1] for workers in (1, 2, 4)}) == 1
    rng = np.random.default_rng(0)
    images = [(100 * rng.normal(size=(5, 6, 2))).astype(dtype) for _ in range(7)]
    totals = []
    for order in (range(7), rng.permutation(7)):
        total = None
        for index in order:
            counts = Counts.of_image(images[index], np.zeros((5, 6, 2), bool))
            total = counts if total is None else total.__iadd__(counts)
        totals.append(total)
    assert np.array_equal(totals[0].counts, totals[1].counts)
    assert totals[0].mean_and_std(1, -50, 50) == totals[1].mean_and_std(1, -50, 50)


def test_order_of_the_bins():
    numbers = np.array([-3e38, -7.5, -1e-30, -0.0, 0.0, 1e-40, 2e-9, 0.75, 4e7, 3e38], np.float32)
    bins = [
        int(Counts.of_image(value.reshape(1, 1, 1), np.zeros((1, 1, 1), bool)).counts[0].argmax()) for value in numbers
    ]
    assert bins == sorted(bins)
    assert bins[3] == bins[4]
    one = Counts.of_image(np.full((2, 2, 1), 0.3, np.float32), np.zeros((2, 2, 1), bool))
    assert one.percentile(0, 50) == np.float32(0.3)  # within a bin, not beyond what was seen


def test_missing_numbers_bands_and_decibels(tmp_path, capsys):
    folder = tmp_path / "train"
    folder.mkdir()
    array = np.random.default_rng(0).uniform(0.001, 1.0, (20, 20, 4)).astype(np.float32)
    array[:5, :, 2] = np.nan
    array[:, :4, 1] = -9999
    np.save(folder / "a.npy", array)
    _, said, data = run(capsys, tmp_path, "-bands", 2, 1, "-nodata", -9999, "-scale", "decibel")
    assert (data["BANDS"], data["NODATA"], data["PIXEL_SCALE"], data["IMAGE_CHANNELS"]) == ([2, 1], -9999, "decibel", 2)
    assert "channel 0: 25.0% of the pixels are missing" in said
    assert "channel 1: 20.0% of the pixels are missing" in said
    decibels = 10 * np.log10(array[5:, :, 2].astype(np.float64).ravel())
    assert data["PIXEL_RANGE"][0] == pytest.approx([rank(decibels, 0.1), rank(decibels, 99.9)], rel=0.01)


def test_what_may_mean_missing_is_asked(tmp_path, capsys):
    folder = tmp_path / "train"
    folder.mkdir()
    array = np.random.default_rng(0).integers(1, 9000, (20, 20, 2)).astype(np.uint16)
    array[:, :3, 1] = 0
    np.save(folder / "a.npy", array)
    is_good, said, _ = run(capsys, tmp_path)
    assert is_good
    assert "channel 1: 15% of the pixels are 0; does it mean missing (-nodata)?" in said
    assert "channel 0" not in said


def test_what_is_wrong_is_named(tmp_path, capsys):
    folder = tmp_path / "train"
    folder.mkdir()
    np.save(folder / "a.npy", np.dstack([np.arange(400).reshape(20, 20), np.full((20, 20), 7)]).astype(np.uint16))
    is_good, said, _ = run(capsys, tmp_path)
    assert not is_good
    assert "channel 1: is constant, 7" in said
    np.save(folder / "b.npy", np.zeros((20, 20, 3), np.uint16))
    np.save(folder / "c.npy", np.ones((20, 20, 2), np.float32))
    (folder / "d.npy").write_bytes(b"none")
    is_good, said, _ = run(capsys, tmp_path, "-out", tmp_path / "page.html")
    assert not is_good
    assert "has 3 channels, and others 2" in said
    assert "numbers of several types: 1 of uint16, 1 of float32" in said
    assert "d.npy: cannot be read as an image" in said
    assert "channel 1: is constant" in (tmp_path / "page.html").read_text()
    for name in "abc":
        (folder / f"{name}.npy").unlink()
    with pytest.raises(UserError, match="none of 1 images can be read"):
        run(capsys, tmp_path)
    with pytest.raises(UserError, match="the low end must be below"):
        run(capsys, tmp_path, "-range", 3, 3)
