"""Images of any channels: files of every kind, their pixels, the loader, runs, pictures."""

import contextlib
import io
import re
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import paddle
import pytest
from PIL import Image

from config import get_config
from errors import UserError
from launch.run_directory import find
from measures import prediction
from methods import dispatch
from pages import drawing, reconstruction
from pipeline import array_files, augment, sources
from pipeline.array_files import decode
from pipeline.array_source import ArraySource, as_picture
from pipeline.pixel_array import PixelArray, PixelFormat
from pipeline.sources import ArrayImages
from runtime import ROOT
from tests.conftest import TINY, assert_close
from tests.helpers.saved_runs import fit_pretrain
from tools import pack_dataset, predict, visualise

tifffile = pytest.importorskip("tifffile", reason="requirements/arrays.txt is not installed")
pytestmark = pytest.mark.quick

BANDS = 13
ARRAYS = ["DATA.PIXELS", "array", "DATA.IMAGE_CHANNELS", BANDS, "DATA.PIXEL_RANGE", [0, 10000]]
ARRAYS += ["DATA.IMAGENET_MEAN", [0.3] * BANDS, "DATA.IMAGENET_STD", [0.2] * BANDS]


def numbers(dtype, shape=(12, 10, BANDS), seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def as_tiff(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


PLANES = {"photometric": "minisblack", "planarconfig": "separate"}
CHUNKY = {"photometric": "minisblack", "planarconfig": "contig"}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "uint32"])
@pytest.mark.parametrize(
    ("order", "options"),
    [
        ("last", CHUNKY),
        ("first", PLANES),
        ("last", {**CHUNKY, "compression": "zlib"}),
        ("last", {**CHUNKY, "compression": "lzw"}),
        ("last", {**CHUNKY, "compression": "zstd"}),
        ("last", {**CHUNKY, "compression": "packbits"}),
        ("last", {**CHUNKY, "compression": "zlib", "predictor": True}),
        ("last", {**CHUNKY, "byteorder": ">"}),
        ("last", {**CHUNKY, "bigtiff": True}),
        ("last", {**CHUNKY, "tile": (16, 16)}),
        ("first", {**PLANES, "tile": (16, 16), "compression": "zlib"}),
        ("pages", {"photometric": "minisblack"}),
        ("pages", {"photometric": "minisblack", "ome": True}),
    ],
)
def test_tiff_files_come_back(dtype, order, options):
    array = numbers(dtype)
    data = as_tiff(array if order == "last" else np.moveaxis(array, -1, 0), **options)
    found = decode(data, channels=BANDS)
    assert found.dtype == dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64", ">u2"])
def test_files_of_numpy_come_back(dtype):
    array = numbers(dtype) if dtype != ">u2" else numbers("uint16").astype(">u2")
    for stored in (array, np.moveaxis(array, -1, 0), np.asfortranarray(array)):
        buffer = io.BytesIO()
        np.save(buffer, stored)
        assert np.array_equal(decode(buffer.getvalue(), channels=BANDS), array)
        packed = io.BytesIO()
        np.savez_compressed(packed, stored)
        assert np.array_equal(decode(packed.getvalue(), channels=BANDS), array)
    plane = io.BytesIO()
    np.save(plane, array[:, :, 0])
    assert np.array_equal(decode(plane.getvalue(), channels=1), array[:, :, :1])


def test_the_axis_of_channels_is_the_wanted_or_the_shortest_one():
    for shape, channels, expected in (
        ((8, 9, 5), 3, (8, 9, 5)),  # a file of more channels, of which some are taken
        ((5, 9, 8), 3, (9, 8, 5)),
        ((6, 9, 8), 8, (6, 9, 8)),
        ((8, 9, 6), 8, (9, 6, 8)),
        ((3, 4, 4), 3, (4, 4, 3)),
    ):
        assert decode(as_npy(np.zeros(shape)), channels=channels).shape == expected


def test_16_bit_png():
    array = numbers("uint16", (6, 7))
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    found = decode(buffer.getvalue(), channels=1)
    assert found.dtype == np.uint16
    assert np.array_equal(found[:, :, 0], array)


def png_16_bit_rgb():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(12) for _ in range(2))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def as_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def claim(shape):
    header = as_npy(np.zeros((2, 2), np.uint8))
    text = re.sub(rb"\(2, 2\)", str(shape).encode(), header)
    return text[:8] + struct.pack("<H", len(text) - 10 - 4) + text[10:]


def two_arrays():
    buffer = io.BytesIO()
    np.savez(buffer, np.zeros((2, 2)), np.ones((2, 2)))
    return buffer.getvalue()


def npz_of_text():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", b"no numbers")
    return buffer.getvalue()


HOSTILE = {
    "text": (lambda: b"hello", "none of TIFF, .npy, .npz, DICOM and PNG"),
    "empty": (lambda: b"", "is empty"),
    "objects": (lambda: as_npy(np.array([[{}]], object)), "not plain numbers"),
    "complex": (lambda: as_npy(np.zeros((4, 4, 2), complex)), "complex128, and must be integers"),
    "text numbers": (lambda: as_npy(np.array([["a", "b"]])), "must be integers"),
    "huge shape": (lambda: claim((60000, 60000, 13)), "claims 46,800,000,000 bytes, above the limit"),
    "more than there is": (lambda: claim((60, 60, 2)), "claims 7,200 bytes of numbers, and has"),
    "four axes": (lambda: as_npy(np.zeros((2, 2, 2, 2))), "has the shape"),
    "no pixels": (lambda: as_npy(np.zeros((0, 4, 2))), "has the shape"),
    "no shortest axis": (lambda: as_npy(np.zeros((5, 9, 5))), "[5, 9, 5], which does not tell the channels"),
    "channels between": (lambda: as_npy(np.zeros((8, 2, 9))), "does not tell the channels"),
    "equal axes": (lambda: as_npy(np.zeros((2, 2, 2))), "does not tell the channels"),
    "several arrays": (two_arrays, "has 2 arrays"),
    "text in npz": (npz_of_text, "is no .npy file"),
    "16-bit colours": (png_16_bit_rgb, "of 16-bit colours, of which Pillow reads 8"),
    "pages of colours": (lambda: as_tiff(np.zeros((3, 8, 8, 2), "u1"), **CHUNKY), "3 pages of 2 channels"),
    "too many channels": (lambda: as_tiff(np.zeros((2, 2, 600), "u1"), **CHUNKY), "600 channels, above the limit"),
    "a palette": (lambda: as_tiff(np.zeros((8, 8), "u1"), photometric=3, colormap=np.zeros((3, 256), "u2")), "palette"),
    "another compression": (lambda: as_tiff(np.zeros((16, 16), "u1"), compression="lerc"), "LERC; known: none"),
    "cut off": (lambda: as_tiff(numbers("uint16"), **CHUNKY)[:-900], ""),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line(name, soon):
    make, message = HOSTILE[name]
    with pytest.raises((ValueError, OSError), match=re.escape(message)) as raised:
        decode(make(), channels=2)
    assert "\n" not in str(raised.value)


def test_a_tiff_that_claims_too_much_is_refused_before_memory_is_taken(soon):
    data = bytearray(as_tiff(np.zeros((16, 16), "u2")))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        offsets = [file.pages[0].tags[name].valueoffset for name in ("ImageWidth", "ImageLength")]
    for offset in offsets:
        data[offset : offset + 4] = struct.pack("<I", 60000)
    with pytest.raises(ValueError, match="claims 7,200,000,000 bytes, above the limit"):
        decode(bytes(data), channels=1)


def test_an_archive_that_inflates_is_refused_by_its_header(soon):
    """A member of 512 MiB of zeros behind a header of a small image: nothing of it is inflated but the beginning."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as member:
        member.write(as_npy(np.zeros((40, 40, 4), np.uint8)))
        for _ in range(32):
            member.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(ValueError, match="claims 6,528 bytes, and its member 33,560,960"):
        decode(buffer.getvalue(), channels=4)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_pages_in_a_circle_end(soon):
    """A page that is a reduced one, and is followed by itself."""
    entries = [(254, 4, 1), (256, 4, 2), (257, 4, 2), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    entries += [(278, 4, 2), (279, 4, 4)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in entries)
    data = struct.pack("<2sHI", b"II", 42, 12) + bytes(4) + directory + struct.pack("<I", 12)
    with pytest.raises(ValueError, match="is a TIFF file without an image of full size|more than 512 pages|is damaged"):
        decode(data, channels=1)


@pytest.mark.parametrize("kind", ["tiff", "npy"])
def test_mutated_files_crash_nothing(kind, soon, caplog):
    rng = np.random.default_rng(5)
    whole = as_tiff(numbers("uint16"), **CHUNKY) if kind == "tiff" else as_npy(numbers("uint16"))
    for _ in range(250):
        data = bytearray(whole)
        for position in rng.integers(0, 160, 3):
            data[position] = rng.integers(256)
        with contextlib.suppress(ValueError):
            assert decode(bytes(data), channels=BANDS).ndim == 3
    assert not caplog.records


# ---- pixels -------------------------------------------------------------------------------------


def form(**options):
    values = {"channels": 2, "low": (0.0, -1000.0), "high": (10000.0, 1000.0), "fill": (0.25, 0.75)}
    return PixelFormat(**values | options)


def test_pixels_by_hand():
    array = np.array([[[0, -1000], [5000, 0], [20000, 1500]]], np.float32)
    assert form().pixels(array).pixels.tolist() == [[[0, 0], [0.5, 0.5], [1, 1]]]
    missing = np.array([[[7, 0], [np.nan, np.inf]]], np.float32)
    assert form(nodata=7).pixels(missing).pixels.tolist() == [[[0.25, 0.5], [0.25, 0.75]]]
    with pytest.raises(ValueError, match="has no known number"):
        form(nodata=7).pixels(np.array([[[7, np.nan], [np.inf, 7]]], np.float32))
    three = np.stack([array[..., 0], array[..., 1], array[..., 0] / 2], axis=-1)
    assert form(bands=(2, 1)).pixels(three).pixels[0, :, 0].tolist() == [0, 0.25, 1]
    with pytest.raises(ValueError, match="has 3 channels, not 2 .DATA.IMAGE_CHANNELS.; DATA.BANDS chooses some"):
        form().pixels(three)
    with pytest.raises(ValueError, match="DATA.BANDS asks for number 3, counted from 0"):
        form(bands=(0, 3)).pixels(three)
    radar = form(low=(-30.0, -30.0), high=(0.0, 0.0), is_decibel=True)
    powers = np.array([[[1.0, 0.1], [0.0316227766, -5.0]]], np.float32)
    assert_close(radar.pixels(powers).pixels, [[[1, 2 / 3], [0.5, 0]]], 1e-5)


def test_a_narrow_range_of_large_numbers_stays_exact():
    wide = PixelFormat(1, (1e9,), (1e9 + 100,))
    array = np.array([[[1e9 + 10], [1e9 + 20], [1e9 + 90]]])
    for dtype in (np.float64, np.int64, np.uint32):
        assert_close(wide.pixels(array.astype(dtype)).pixels.ravel(), [0.1, 0.2, 0.9], 1e-6)


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("uint16", -9999), ("float16", 70000), ("float32", 1e37), ("uint8", 0.5)]
)
def test_a_number_that_a_type_does_not_have_is_missing_nowhere(dtype, nodata, recwarn):
    missing = PixelFormat(1, (0.0,), (1.0,), nodata=nodata).values(np.ones((2, 2, 1), dtype))[1]
    assert not missing.any()
    assert not recwarn.list


def test_large_numbers_arrive_unchanged():
    """NumPy's uint16 is Paddle's bfloat16: numbers above 32,767 would arrive as others."""
    array = np.array([[[0, 40000], [65535, 50000]]], np.uint16)
    pixels = PixelFormat(2, (0.0, 0.0), (65535.0, 65535.0)).pixels(array).pixels
    assert pixels.dtype == np.float32
    assert np.array_equal((paddle.to_tensor(pixels) * 65535).round().numpy(), array.astype(np.float32))


def test_rgb_through_both_paths_has_the_same_boxes():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 15, 3), np.uint8)).resize((150, 120), Image.Resampling.BICUBIC)
    photo, array = coarse, PixelArray(np.asarray(coarse, np.float32) / 255)
    for seed in range(20):
        rngs = [np.random.default_rng(seed) for _ in range(2)]
        pairs = zip((photo, array), rngs, strict=True)
        crops = [augment.random_resized_crop(image, (64, 64), rng) for image, rng in pairs]
        crops = [augment.as_pixels(augment.random_flip(c, rng)) for c, rng in zip(crops, rngs, strict=True)]
        difference = np.abs(crops[0].astype(float) - 255 * crops[1])
        assert difference.max() < 3  # Pillow rounds to 8 bits between its two passes
        assert (difference < 1).mean() > 0.9
    whole = [augment.as_pixels(augment.resize_and_center_crop(image, (64, 64), 0.875)) for image in (photo, array)]
    assert np.abs(whole[0].astype(float) - 255 * whole[1]).max() < 3


def test_turns_and_channels():
    pixels = np.random.default_rng(0).random((4, 4, 3)).astype(np.float32)
    turned = {augment.turn(pixels, np.random.default_rng(seed), 0.5, True).tobytes() for seed in range(60)}
    assert len(turned) == 8  # all of the square's symmetries
    oblong = augment.turn(pixels[:2], np.random.default_rng(0), 0.0, True)
    assert np.array_equal(oblong, pixels[:2])
    factors = augment.change_channels(pixels, np.random.default_rng(1), 0.25, 0.0) / pixels
    assert np.ptp(factors, axis=(0, 1)).max() < 1e-5
    assert len(np.unique(factors.round(4))) == 3
    assert 0.8 <= factors.min() <= factors.max() <= 1.25
    for seed in range(50):
        dropped = augment.change_channels(pixels, np.random.default_rng(seed), 0.0, 0.9)
        kept = [channel for channel in range(3) if np.array_equal(dropped[..., channel], pixels[..., channel])]
        others = [channel for channel in range(3) if channel not in kept]
        assert kept
        assert np.isnan(dropped[..., others]).all()


# ---- configurations and runs --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["DATA.PIXELS", "array"], "DATA.PIXEL_RANGE=None: must be .low, high. .*tools.channel_statistics finds them"),
        (["DATA.PIXELS", "array", "DATA.PIXEL_RANGE", [1, 0]], "the low end below the high one"),
        (["DATA.PIXELS", "array", "DATA.PIXEL_RANGE", [[0, 1], [0, 1]]], "or 3 such pairs"),
        (["DATA.PIXELS", "array", "DATA.PIXEL_RANGE", ["a", 1]], "the low end below the high one"),
        (["DATA.PIXELS", "array", "DATA.PIXEL_RANGE", [0, 1], "DATA.BANDS", [0, 1]], "3 different channels of the"),
        (["DATA.PIXELS", "array", "DATA.PIXEL_RANGE", [0, 1], "DATA.BANDS", [0, 1, 1]], "3 different channels"),
        (["DATA.PIXELS", "array", "DATA.PIXEL_RANGE", [0, 1], "DATA.BANDS", [0, 1, -1]], "3 different channels"),
        (["DATA.PIXELS", "array", "DATA.PIXEL_RANGE", [0, 1], "DATA.FAST_DECODE", True], "is for photos"),
        (["DATA.PIXELS", "array", "DATA.PIXEL_RANGE", [0, 10**400]], "must be numbers up to 1e.38"),
        (["DATA.PIXELS", "array", "DATA.PIXEL_RANGE", [0, 1e-50]], "the low end below the high one by at least"),
        (["DATA.PIXELS", "array", "DATA.PIXEL_RANGE", [0, 1], "DATA.MAX_PIXELS", 10], "an array may take 2 GiB"),
        (["DATA.IMAGENET_MEAN", [10**400, 1, 1]], "DATA.IMAGENET_MEAN=.*must be a list of numbers"),
        (["DATA.IMAGENET_STD", [1e-46, 1, 1]], "DATA.IMAGENET_STD=.*must be above 0"),
        (["DATA.PIXEL_RANGE", [0, 1]], "DATA.PIXEL_RANGE=.*is for DATA.PIXELS array"),
        (["DATA.BANDS", [0, 1, 2]], "DATA.BANDS=.*is for DATA.PIXELS array"),
        (["TRAIN.CHANNEL_GAIN", 0.2], "TRAIN.CHANNEL_GAIN=0.2: is for DATA.PIXELS array"),
        (["DATA.SHOW_BANDS", [0, 1]], "one or three channels, from 0 to 2"),
        (["DATA.SHOW_BANDS", [3]], "one or three channels, from 0 to 2"),
    ],
)  # fmt: skip
def test_impossible_settings_are_named(options, message):
    with pytest.raises(UserError, match=message):
        get_config(None, options)


@pytest.fixture
def scenes(tmp_path):
    """Return a folder of TIFF and .npy files with 13 bands of uint16, in two classes."""
    for split, count in (("train", 24), ("val", 8)):
        for index in range(count):
            folder = tmp_path / split / "ab"[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            array = (numbers("uint16", (20, 18, BANDS), index) // 7).astype(np.uint16)
            if index % 3:
                tifffile.imwrite(folder / f"{index}.tif", array, **CHUNKY)
            else:
                np.save(folder / f"{index}.npy", array)
    return tmp_path


def options_of(folder, *more):
    return ["DATA.DATASET", "folder", "DATA.DATA_PATH", str(folder), *ARRAYS, "MODEL.NUM_CLASSES", 2, *more]


def test_a_run_on_arrays_is_bit_identical_when_resumed(tiny_run, scenes):
    more = ["TRAIN.NUM_EPOCHS", 2, "DATA.BATCH_SIZE", 8, "SAVE_FREQ_STEPS", 2, "KEEP_LAST", 9, "DATA.NUM_WORKERS", 1]
    more += ["TRAIN.VERTICAL_FLIP_PROB", 0.5, "TRAIN.ROTATE_90", True]
    more += ["TRAIN.CHANNEL_GAIN", 0.2, "TRAIN.CHANNEL_DROP", 0.1]
    first = tiny_run("pretrain", *options_of(scenes, *more))
    expected = fit_pretrain(first)
    again = tiny_run("pretrain", *options_of(scenes, *more), resume_from=find(first.directory / "step-00000004"))
    resumed = fit_pretrain(again)
    assert all(np.array_equal(resumed[name], value) for name, value in expected.items())
    for workers in (0, 2):
        run = tiny_run("pretrain", *options_of(scenes, *more, "DATA.NUM_WORKERS", workers))
        loader = dispatch.build_train_loader(run)
        assert next(loader.epoch(0)).images.shape == [8, BANDS, 16, 16]
        loader.close()


def test_packed_arrays_are_the_files_and_resume_bit_identically(tiny_run, scenes, tmp_path_factory, capsys):
    packed = tmp_path_factory.mktemp("packed") / "shards"
    words = [str(scenes), str(packed), "-dataset", "folder", "-arrays", "-per_shard", "7"]
    assert pack_dataset.main(words) == 0
    assert pack_dataset.main(["-verify", str(packed)]) == 0
    run = tiny_run("pretrain", *options_of(scenes))
    with_shards = tiny_run("pretrain", *options_of(packed))
    own, theirs = (dispatch.loaders.open_split(one, "val", "label") for one in (run, with_shards))
    assert len(own) == len(theirs) == 8
    for index in range(8):
        assert np.array_equal(own.numbers(index), theirs.numbers(index))
        assert own.numbers(index).dtype == theirs.numbers(index).dtype == np.uint16
    more = ["TRAIN.NUM_EPOCHS", 2, "DATA.BATCH_SIZE", 8, "SAVE_FREQ_STEPS", 2, "KEEP_LAST", 9, "DATA.NUM_WORKERS", 1]
    first = tiny_run("pretrain", *options_of(packed, *more))
    expected = fit_pretrain(first)
    again = tiny_run("pretrain", *options_of(packed, *more), resume_from=find(first.directory / "step-00000004"))
    resumed = fit_pretrain(again)
    assert all(np.array_equal(resumed[name], value) for name, value in expected.items())
    (scenes / "train" / "a" / "bad.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match="bad.npy.*-skip_bad leaves it out"):
        pack_dataset.main([*words[:1], str(packed.with_name("other")), *words[2:]])
    capsys.readouterr()


def test_features_beside_photos_in_shards_stay_no_images(tmp_path):
    """img2dataset and others write KEY.jpg and KEY.npy: only with DATA.PIXELS array is the second one an image."""
    from pipeline import decoding
    from pipeline.shard_writer import open_shard, write_sample
    from pipeline.web_shards import WebShards

    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    (tmp_path / "train").mkdir()
    with open_shard(tmp_path / "train" / "0.tar") as tar:
        for key in "ab":
            write_sample(tar, key, ".png", picture.getvalue())
            write_sample(tar, key, ".npy", as_npy(np.zeros(4)))
    try:
        for is_allowed, count in ((False, 2), (True, 4), (False, 2)):
            decoding.allow_arrays(is_allowed)
            assert len(WebShards(tmp_path, "train", "none")) == count
    finally:
        decoding.allow_arrays(False)


def test_a_batch_is_the_normalised_file(tiny_run, scenes):
    run = tiny_run("finetune", *options_of(scenes, "DATA.BANDS", list(range(12, -1, -1)), "DATA.CROP_PCT", 1.0))
    images = drawing.draw_images(run.config, 1, seed=3)
    source = dispatch.loaders.open_split(run, "val", "label")
    assert isinstance(source, ArraySource)
    index = int(np.random.default_rng(3).permutation(len(source))[0])
    array = source.numbers(index)[:, :, ::-1].astype(np.float32) / 10000
    planes = (Image.fromarray(np.ascontiguousarray(array[..., channel])) for channel in range(BANDS))
    resized = [np.asarray(plane.resize((16, 17), Image.Resampling.BICUBIC)) for plane in planes]
    low, high = array.min(axis=(0, 1)), array.max(axis=(0, 1))
    expected = (np.clip(np.stack(resized, -1)[:16], low, high) - 0.3) / 0.2
    assert_close(images[0], expected.transpose(2, 0, 1), 1e-5)


def test_finetuning_and_evaluation(tiny_run, scenes):
    plain = ["TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 8, "TRAIN.RAND_AUGMENT", False, "TRAIN.COLOR_JITTER", 0.0]
    scores = dispatch.train_or_evaluate(tiny_run("finetune", *options_of(scenes, *plain)))
    assert 0 <= scores["acc1"] <= 100
    for options in (["TRAIN.RAND_AUGMENT", True], ["TRAIN.COLOR_JITTER", 0.4]):
        config = get_config(None, [*TINY, "MODEL.TYPE", "FINETUNE", *options_of(scenes), *plain, *options])
        with pytest.raises(UserError, match="are for photos, and DATA.PIXELS is array"):
            dispatch.train_transform(config)
    tuning = [*TINY, "MODEL.TYPE", "CONTRASTIVE_TUNING", *options_of(scenes), "CONTRAST.AUGMENTATION"]
    colourful, plain = (get_config(None, [*tuning, name]) for name in ("byol", "minimal"))
    with pytest.raises(UserError, match="is for grey and RGB photos; choose minimal"):
        dispatch.train_transform(colourful)
    assert len(dispatch.train_transform(plain).views) == 2


def test_other_pixels_than_the_weights_know_are_named(tiny_run, scenes):
    plain = ["TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 8, "TRAIN.RAND_AUGMENT", False, "TRAIN.COLOR_JITTER", 0.0]
    first = tiny_run("pretrain", *options_of(scenes, *plain[:4]))
    fit_pretrain(first)
    plain += ["MODEL.PRETRAINED", str(first.directory)]
    for options, said in (
        ([], []),
        (["DATA.PIXEL_RANGE", [[0, 10000]] * BANDS, "DATA.BANDS", list(range(BANDS))], []),
        (["DATA.PIXEL_RANGE", [0, 5000]], ["was trained with DATA.PIXEL_RANGE [0, 10000], and this run has [0, 5000]"]),
        (["DATA.BANDS", list(range(12, -1, -1))], ["10, 11, 12], and this run has [12, 11"]),
        (["DATA.IMAGENET_STD", [0.3] * BANDS], ["DATA.IMAGENET_STD [0.2"]),
    ):
        run = tiny_run("finetune", *options_of(scenes, *plain, *options))
        dispatch.build_task(run)
        log = (run.directory / "log.txt").read_text()
        assert all(line in log for line in said)
        assert log.count("was trained with DATA.") == len(said)


def test_pictures_show_chosen_bands(tiny_run, scenes):
    run = tiny_run("pretrain", *options_of(scenes, "DATA.SHOW_BANDS", [3, 2, 1]))
    images = drawing.draw_images(run.config, 2)
    model = dispatch.build_task(run).model
    model.eval()
    drawn = reconstruction.reconstruct(model, run.config, images)
    assert all(panel.shape == (2, 16, 16, 3) for panel in drawn.panels)
    expected = np.round(np.clip(images[:, [3, 2, 1]] * 0.2 + 0.3, 0, 1) * 255)
    assert np.array_equal(drawn.panels[0], expected.transpose(0, 2, 3, 1))
    grey = tiny_run("pretrain", *options_of(scenes))
    assert drawing.as_uint8(drawing.to_pixels(grey.config, images)).shape == (2, 16, 16, 1)


def test_each_channel_has_a_row_and_an_error_in_the_files_numbers(tiny_run, scenes, tmp_path, capsys):
    run = tiny_run("pretrain", *options_of(scenes, "TRAIN.NUM_EPOCHS", 1, "MODEL.NORM_PIX_LOSS", False))
    fit_pretrain(run)
    images = drawing.draw_images(run.config, 2)
    model = dispatch.build_task(run).model
    model.eval()
    noise = reconstruction.draw_noise_for(model, 2)
    found = reconstruction.reconstruct(model, run.config, images, noise=noise)
    _, pred, mask = model(paddle.to_tensor(images), noise=paddle.to_tensor(noise))
    grid = (2, 4, 4, 4, 4, BANDS)  # [B, rows, columns, P, P, C]
    numbers = pred.numpy().reshape(grid).transpose(0, 5, 1, 3, 2, 4).reshape(images.shape) * 0.2 * 10000
    hidden = mask.numpy().reshape(2, 4, 4).repeat(4, axis=1).repeat(4, axis=2) > 0
    for channel in range(BANDS):
        errors = (numbers - images * 0.2 * 10000)[:, channel][hidden]
        assert_close(np.float64(found.deviations[channel]), np.sqrt((errors**2).mean()), 1e-4)
    assert "in the numbers of the files: 0: " in found.caption
    page = visualise.main([str(run.directory), "-num", "2", "-channels", "-attention", "-out", str(tmp_path / "p.png")])
    with Image.open(page) as picture:
        assert picture.height > 2 * BANDS * 16
    assert "A row for each of 13 channels" in capsys.readouterr().out


def test_new_files_are_read_as_in_training(tiny_run, scenes, tmp_path):
    plain = ["TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 8, "TRAIN.RAND_AUGMENT", False, "TRAIN.COLOR_JITTER", 0.0]
    run = tiny_run("finetune", *options_of(scenes, *plain))
    dispatch.train_or_evaluate(run)
    model = prediction.load(str(run.directory))
    files = sorted((scenes / "val").rglob("*.*"))
    found = prediction.predict(model, files)
    assert not any(one.error for one in found)
    images = np.stack([drawing.named_images(run.config, [str(file)], 1)[0][0] for file in files])
    with paddle.no_grad():
        probabilities = paddle.nn.functional.softmax(model.network(paddle.to_tensor(images))).numpy()
    assert_close([one.probabilities[0] for one in found], probabilities.max(axis=1), 1e-4)
    page = tmp_path / "p.html"
    predict.main([str(run.directory), *map(str, files), "-out", str(tmp_path / "p.csv"), "-html", str(page)])
    assert page.is_file()


def test_images_in_memory_are_arrays_too():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    source = ArrayImages(images, np.zeros(4, np.int64), "memory")
    wrapped = ArraySource(source, PixelFormat(3, (0.0,) * 3, (255.0,) * 3, shown=(0, 1, 2)))
    image = sources.read_image(wrapped, 1, 3)
    assert_close(image.pixels, source.images[1] / 255, 1e-6)
    assert np.array_equal(as_picture(image), source.images[1])
    assert wrapped.check(num_classes=None, channels=3) == []


def test_an_unreadable_file_is_named(tiny_run, scenes):
    (scenes / "train" / "a" / "0.npy").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"0\.npy: cannot be read as an image .*none of TIFF"):
        dispatch.train_or_evaluate(tiny_run("pretrain", *options_of(scenes, "DATA.BATCH_SIZE", 8)))
    np.save(scenes / "train" / "a" / "0.npy", np.zeros((20, 18, BANDS)))
    few = options_of(scenes, "DATA.IMAGE_CHANNELS", 3, "DATA.IMAGENET_MEAN", [0.3] * 3, "DATA.IMAGENET_STD", [0.2] * 3)
    with pytest.raises(UserError, match="has 13 channels, not 3 .DATA.IMAGE_CHANNELS."):
        dispatch.train_or_evaluate(tiny_run("pretrain", *few, "DATA.BATCH_SIZE", 8, "DATA.BANDS", None))


def test_photos_do_without_tifffile():
    code = "import main_multi_gpu_pretrain, pipeline.array_source, sys; assert 'tifffile' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_limits_are_those_of_the_page():
    assert (array_files._MOST_BYTES, array_files._MOST_CHANNELS, array_files._MOST_PAGES) == (2**31, 512, 512)
