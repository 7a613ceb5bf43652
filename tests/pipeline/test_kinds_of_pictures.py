"""Every kind of picture: read by all numbers of channels or by none, packed without a change, turned the same way."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

import datasets
from errors import UserError
from pipeline import fast_jpeg, shard_writer
from pipeline.decoding import as_mode, decode
from pipeline.web_shards import WebShards
from tools import pack_dataset, visualise

pytestmark = pytest.mark.quick
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 24, 3)).astype(np.uint8)
GREY, GREY16 = RGB[..., 0], RNG.integers(0, 65536, (20, 24)).astype(np.uint16)
RGBA = np.dstack([RGB, RNG.integers(0, 256, (20, 24)).astype(np.uint8)])


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def pictures() -> dict[str, bytes]:
    """Return files of 36 kinds, by name and suffix."""
    rgb, grey, rgba = Image.fromarray(RGB), Image.fromarray(GREY), Image.fromarray(RGBA)
    palette, found = rgb.quantize(16), {}
    for suffix, kind in (("jpg", "JPEG"), ("png", "PNG"), ("bmp", "BMP"), ("webp", "WEBP"), ("tif", "TIFF")):
        found[f"rgb.{suffix}"] = encoded(rgb, kind)
        found[f"grey.{suffix}"] = encoded(grey, kind)
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF"), ("webp", "WEBP")):
        found[f"rgba.{suffix}"] = encoded(rgba, kind)
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF")):
        found[f"la.{suffix}"] = encoded(rgba.convert("LA"), kind)
        found[f"bilevel.{suffix}"] = encoded(grey.convert("1"), kind)
        found[f"palette.{suffix}"] = encoded(palette, kind)
        found[f"grey16.{suffix}"] = encoded(Image.fromarray(GREY16), kind)
    found["grey16be.tif"] = encoded(Image.frombytes("I;16B", (24, 20), GREY16.astype(">u2").tobytes()), "TIFF")
    found["palette.gif"], found["see-through.gif"] = encoded(palette, "GIF"), encoded(palette, "GIF", transparency=3)
    found["see-through.png"] = encoded(palette, "PNG", transparency=3)
    found["grey see-through.png"] = encoded(grey, "PNG", transparency=7)
    found["rgb see-through.png"] = encoded(rgb, "PNG", transparency=(1, 2, 3))
    found["cmyk.jpg"], found["cmyk.tif"] = encoded(rgb.convert("CMYK"), "JPEG"), encoded(rgb.convert("CMYK"), "TIFF")
    found["lab.tif"] = encoded(Image.frombytes("LAB", (24, 20), RGB.tobytes()), "TIFF")
    found["grey16.pgm"] = b"P5 24 20 65535\n" + GREY16.astype(">u2").tobytes()
    found["grey.pgm"], found["rgb.ppm"] = b"P5 24 20 255\n" + GREY.tobytes(), b"P6 24 20 255\n" + RGB.tobytes()
    for number in (3, 6, 8):
        found[f"turned {number}.jpg"] = encoded(rgb, "JPEG", exif=turned(number))
    found["turned.png"] = encoded(rgb, "PNG", exif=turned(6))
    return found


PICTURES = pictures()


@pytest.mark.parametrize("name", PICTURES)
def test_a_kind_is_read_with_every_number_of_channels(name):
    for channels, shape in ((1, ()), (3, (3,)), (4, (4,))):
        pixels = np.asarray(as_mode(decode(PICTURES[name]), channels))
        assert pixels.dtype == np.uint8
        assert pixels.shape[2:] == shape


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tif", "grey16be.tif", "grey16.pgm"])
def test_16_bits_are_scaled(name):
    expected = (GREY16 / 257.0).round()
    assert np.abs(np.asarray(as_mode(decode(PICTURES[name]), 1)) - expected).max() <= 1  # float32 at a half
    assert np.array_equal(np.asarray(as_mode(decode(PICTURES[name]), 3))[..., 2], as_mode(decode(PICTURES[name]), 1))


def test_32_bits_are_refused_as_their_range_is_unknown():
    for image in (Image.fromarray(GREY.astype(np.int32)), Image.fromarray(GREY.astype(np.float32))):
        with pytest.raises(ValueError, match="whose range is unknown"):
            as_mode(decode(encoded(image, "TIFF")), 3)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Return a directory of the pictures with lists, and the shards that are packed of them."""
    root = tmp_path_factory.mktemp("pictures")
    for split in ("train", "val"):
        for name, content in PICTURES.items():
            (root / f"{split} {name}").write_bytes(content)
        lines = [json.dumps({"image": f"{split} {name}", "labels": [1], "caption": name}) for name in PICTURES]
        (root / f"{split}.jsonl").write_text("\n".join(lines))
    assert pack_dataset.main([str(root), str(root / "packed"), "-dataset", "lists", "-size", "20"]) == 0
    return root


@pytest.mark.parametrize("split", ["train", "val"])
def test_packing_changes_no_pixel_where_nothing_is_resized(packed, split):
    shards = WebShards(packed / "packed", split, "none")
    assert shards.notes == []
    assert len(shards) == len(PICTURES)
    captions = {shards.captions[index]: index for index in range(len(shards))}
    for name, content in PICTURES.items():
        for channels in (1, 3, 4):
            for upright in (True, False):
                found = as_mode(shards.image(captions[name]), channels, upright)
                assert np.array_equal(found, as_mode(decode(content), channels, upright)), (name, channels, upright)


def test_packing_folders_changes_no_pixel_either(tmp_path):
    (tmp_path / "data" / "train" / "a").mkdir(parents=True)
    for name, content in PICTURES.items():
        (tmp_path / "data" / "train" / "a" / name).write_bytes(content)
    assert (
        pack_dataset.main([str(tmp_path / "data"), str(tmp_path / "packed"), "-dataset", "folder", "-size", "20"]) == 0
    )
    source = datasets.open_source("folder", str(tmp_path / "packed"), "train", num_classes=1)
    for index, name in enumerate(sorted(PICTURES)):
        assert np.array_equal(as_mode(source.image(index), 4), as_mode(decode(PICTURES[name]), 4)), name


def test_what_is_resized_keeps_alpha_orientation_and_range(packed, tmp_path):
    assert pack_dataset.main([str(packed), str(tmp_path / "small"), "-dataset", "lists", "-size", "10"]) == 0
    shards = WebShards(tmp_path / "small", "train", "none")
    images = {shards.captions[index]: shards.image(index) for index in range(len(shards))}
    assert as_mode(images["turned 6.jpg"], 3).size == (10, 12)
    assert as_mode(images["turned 6.jpg"].copy(), 3, upright=False).size in ((12, 10), (10, 12))
    assert images["rgba.png"].mode == "RGBA"
    assert np.asarray(as_mode(images["rgba.png"], 4))[..., 3].std() > 10
    assert abs(np.asarray(as_mode(images["grey16.tif"], 1)).mean() - GREY16.mean() / 257) < 3
    with tarfile.open(next((tmp_path / "small" / "train").glob("*.tar"))) as tar:
        assert {name.rpartition(".")[2] for name in tar.getnames()} == {"png", "jpg", "txt", "cls"}


@pytest.mark.parametrize(("value", "kept"), [(6, 6), (99999, 1), (0, 1)])
def test_odd_orientations_cost_no_picture(value, kept):
    image = decode(encoded(Image.fromarray(RGB), "PNG"))
    image.getexif()[0x0112] = value
    assert pack_dataset._orientation(image) == kept
    image.getexif()[0x0112] = "left"
    assert pack_dataset._orientation(image) == 1


def test_a_list_that_is_packed_in_two_goes_keeps_its_notes(tmp_path, capsys, monkeypatch):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(PICTURES["rgb.png"])
    (tmp_path / "train_list.txt").write_text("bad.png 0\na.png 0\nb.png 1\n")
    arguments = [str(tmp_path), str(tmp_path / "out"), "-dataset", "lists", "-skip_bad", "-per_shard", "1"]
    write_sample, count = shard_writer.write_sample, iter(range(9))

    def interrupted(*given):
        if next(count) == 1:
            raise KeyboardInterrupt
        write_sample(*given)

    monkeypatch.setattr(shard_writer, "write_sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack_dataset.main(arguments)
    monkeypatch.setattr(shard_writer, "write_sample", write_sample)
    assert pack_dataset.main(arguments) == 0
    out = capsys.readouterr().out
    assert "train: 2 images, 0 MiB in 3 files" in out
    assert "left out 1: " in out
    assert not list((tmp_path / "out" / "train").glob("*.left_out"))


def test_packing_a_packed_set_keeps_its_val_split(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "data" / split / "a").mkdir(parents=True)
        (tmp_path / "data" / split / "a" / "0.png").write_bytes(PICTURES["rgb.png"])
    for source, target in (("data", "once"), ("once", "twice")):
        assert pack_dataset.main([str(tmp_path / source), str(tmp_path / target), "-dataset", "folder"]) == 0
    assert len(datasets.open_source("folder", str(tmp_path / "twice"), "val", num_classes=1)) == 1


@pytest.mark.parametrize(
    ("src", "dst"), [("absent", "out"), ("file", "out"), ("data", "file"), ("data", "data/train/x")]
)
def test_mistyped_paths_of_packing_are_one_line(tmp_path, src, dst):
    (tmp_path / "data" / "train" / "a").mkdir(parents=True)
    (tmp_path / "data" / "train" / "a" / "0.png").write_bytes(PICTURES["rgb.png"])
    (tmp_path / "file").write_text("mine")
    for dataset in ("folder", "lists"):
        with pytest.raises(UserError):
            pack_dataset.main([str(tmp_path / src), str(tmp_path / dst), "-dataset", dataset])
    assert (tmp_path / "file").read_text() == "mine"


def exif_behind(data: bytes, num_bytes: int) -> bytes:
    """Put comments before the EXIF block of a JPEG."""
    comments = b""
    while num_bytes > 0:
        size = min(num_bytes, 65_000)
        comments += b"\xff\xfe" + (size + 2).to_bytes(2, "big") + bytes(size)
        num_bytes -= size
    return data[:2] + comments + data[2:]


def xmp_turned() -> bytes:
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:RDF tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(Image.fromarray(RGB), "JPEG")
    return data[:2] + b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp + data[2:]


@pytest.mark.parametrize("where", ["first", "far behind", "xmp"])
def test_fast_decoding_turns_photos_as_slow_decoding_does(where):
    pytest.importorskip("simplejpeg")
    turned_jpeg = encoded(Image.fromarray(RGB), "JPEG", exif=turned(6))
    data = {"first": turned_jpeg, "far behind": exif_behind(turned_jpeg, 200_000), "xmp": xmp_turned()}[where]
    assert as_mode(decode(data), 3).size == (20, 24)
    assert fast_jpeg.open_jpeg(data, 3, upright=True) is None, "it is left to Pillow"
    assert fast_jpeg.open_jpeg(data, 3, upright=False).size == (24, 20)


@pytest.mark.parametrize("kind", ["turned", "16 bits", "see-through"])
def test_a_drawn_mask_is_read_like_every_picture(tmp_path, kind):
    drawn = np.zeros((8, 8), np.uint8)
    drawn[:4] = 255  # the upper half is hidden
    if kind == "turned":
        content = encoded(Image.fromarray(np.rot90(drawn).copy()), "PNG", exif=turned(6))
    elif kind == "16 bits":
        content = encoded(Image.fromarray(drawn.astype(np.uint16) * 257), "PNG")
    else:
        content = encoded(Image.fromarray(drawn), "PNG", transparency=0)
    (tmp_path / "mask.png").write_bytes(content)
    noise, ratio = visualise.read_mask(str(tmp_path / "mask.png"), (4, 4))
    assert ratio == pytest.approx(0.5)
    hidden = noise.reshape(4, 4) > np.median(noise)
    assert hidden[:2].all()
    assert not hidden[2:].any()
