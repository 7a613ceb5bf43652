"""Masks: every format that Pillow writes is read back exactly, and every layout pairs images with masks by name."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import datasets
from errors import UserError
from pipeline import scenes
from pipeline.mask_sets import MaskedImages
from pipeline.masks import IGNORED, Codes, read_values, resize_mask
from pipeline.sources import read_pair
from pipeline.wrapped_sources import Subset
from tools import check_dataset

pytestmark = pytest.mark.quick
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, (6, 9)).astype(np.uint8)
COLOURS = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]], np.uint8)


def encoded(image: Image.Image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def with_palette(labels: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels, "P")
    image.putpalette(COLOURS.flatten().tolist() + [0] * (3 * 252 if labels.max() > 3 else 0))
    return image


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """Write grey of 2 or 4 bits by hand, as Pillow does not."""
    rows = b""
    for row in values:
        packed = sum(int(value) << (8 * -(-bits * len(row) // 8) - bits * (n + 1)) for n, value in enumerate(row))
        rows += b"\0" + packed.to_bytes(-(-bits * len(row) // 8), "big")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def four_bit_tiff(values: np.ndarray) -> bytes:
    """Write a TIFF of 4 bits by hand, rows of whole bytes."""
    height, width = values.shape
    row_bytes = -(-width // 2)
    padded = np.pad(values, ((0, 0), (0, 2 * row_bytes - width)))
    strip = (padded[:, ::2] * 16 + padded[:, 1::2]).astype(np.uint8).tobytes()
    tags = [(256, 3, width), (257, 3, height), (258, 3, 4), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 3, height), (279, 4, len(strip))]
    entries = b"".join(
        struct.pack("<HHIHxx" if kind == 3 else "<HHII", tag, kind, 1, value) for tag, kind, value in tags
    )
    strip += b"\0" * (len(strip) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + entries + b"\0" * 4


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(LABELS)),
        encoded(with_palette(LABELS)),
        encoded(with_palette(LABELS), bits=2),
        encoded(with_palette(LABELS), bits=4),
        encoded(with_palette(LABELS), "GIF"),
        encoded(with_palette(LABELS), "BMP"),
        encoded(with_palette(LABELS), "TIFF"),
        encoded(Image.fromarray(LABELS.astype(np.uint16))),
        encoded(Image.fromarray(LABELS.astype(np.uint16)), "TIFF"),
        encoded(Image.fromarray(LABELS.astype(np.int32)), "TIFF"),
        encoded(Image.merge("LA", [Image.fromarray(LABELS), Image.new("L", (9, 6), 255)])),
        four_bit_tiff(LABELS),
        grey_png(LABELS, 2),
        grey_png(LABELS, 4),
        encoded(Image.fromarray(LABELS).convert("RGB")),
        encoded(Image.fromarray(LABELS).convert("RGBA")),
    ],
)
def test_every_format_gives_the_same_labels(data):
    assert np.array_equal(Codes.of_range(4).apply(read_values(data)), LABELS)


def test_sixteen_bits_black_and_white_and_colours():
    large = np.array([[0, 300], [65535, 7]], np.uint16)
    assert np.array_equal(read_values(encoded(Image.fromarray(large))), large)
    codes = Codes({0: 0, 300: 1, 7: 2}, [65535])
    assert codes.apply(read_values(encoded(Image.fromarray(large)))).tolist() == [[0, 1], [IGNORED, 2]]
    two = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert read_values(encoded(two)).tolist() == [[0, 1]]
    table = Codes({tuple(map(int, colour)): label for label, colour in enumerate(COLOURS)}, [(9, 9, 9)])
    pixels = np.concatenate([COLOURS[LABELS], np.full((6, 1, 3), 9, np.uint8)], axis=1)
    for mode in ("RGB", "RGBA"):
        found = table.apply(read_values(encoded(Image.fromarray(pixels).convert(mode))))
        assert np.array_equal(found[:, :-1], LABELS)
        assert (found[:, -1] == IGNORED).all()


@pytest.mark.parametrize(
    ("data", "codes", "said"),
    [
        (encoded(Image.fromarray(LABELS), "JPEG"), Codes.of_range(4), "JPEG or WebP"),
        (encoded(Image.fromarray(LABELS).convert("RGB"), "WEBP", lossless=True), Codes.of_range(4), "JPEG or WebP"),
        (encoded(Image.fromarray(LABELS + 3)), Codes.of_range(4), r"2|3 values that stand for no class: 4, 5, 6"),
        (encoded(Image.fromarray(COLOURS[LABELS])), Codes.of_range(4), r"colours that stand for no class"),
        (encoded(Image.fromarray(LABELS.astype(np.float32)), "TIFF"), Codes.of_range(4), "pixels of mode F"),
        (encoded(Image.fromarray(LABELS.astype(np.int32) - 1), "TIFF"), Codes.of_range(4), "values from -1"),
        (b"no image", Codes.of_range(4), "none of the formats"),
    ],
)
def test_what_is_no_mask_is_named(data, codes, said):
    with pytest.raises(ValueError, match=said):
        codes.apply(read_values(data))


def test_zero_as_other_and_255():
    codes = Codes.of_range(150, zero_is_other=True)
    assert codes.apply(np.array([[0, 1, 150, 255]])).tolist() == [[IGNORED, 0, 149, IGNORED]]
    with pytest.raises(ValueError, match="254"):  # what 255 - 1 is in eight bits
        codes.apply(np.array([[254]]))
    assert np.array_equal(resize_mask(LABELS.astype(np.int16), (12, 18))[::2, ::2], LABELS)
    assert resize_mask(np.array([[IGNORED, 3]], np.int16), (2, 4)).tolist() == [[IGNORED, IGNORED, 3, 3]] * 2


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def photo(labels):
    return np.repeat(labels[..., None] * 60, 3, axis=-1).astype(np.uint8)


LAYOUTS = {
    "lightly": ("{split}/images/{name}.jpg", "{split}/masks/{name}.png"),
    "by kind": ("images/{split}/{name}.jpg", "masks/{split}/{name}.png"),
    "mmseg": ("img_dir/{split}/{name}_leftImg8bit.png", "ann_dir/{split}/{name}_gtFine_labelTrainIds.png"),
    "endings": ("{split}/images/city/{name}.jpg", "{split}/labels/city/{name}_mask.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_are_paired_by_name(tmp_path, layout):
    masks = {}
    for split, names in (("train", "bca"), ("val", "xy")):
        for name in names:
            masks[name] = RNG.integers(0, 3, (8, 10)).astype(np.uint8)
            image, mask = (pattern.format(split=split, name=name) for pattern in LAYOUTS[layout])
            write(tmp_path / image, photo(masks[name]))
            write(tmp_path / mask, masks[name])
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    source = datasets.open_source("masks", str(tmp_path), "train", num_classes=None, needs="mask")
    assert source.class_names == ["sky", "road", "car"]
    assert source.count_classes() == 3
    assert [source.path(index).name[0] for index in range(3)] == ["a", "b", "c"]
    for index, name in enumerate("abc"):
        assert np.array_equal(source.mask(index), masks[name])
    assert np.array_equal(Subset(source, np.array([2])).mask(0), masks["c"])
    val = datasets.open_source(
        "masks", str(tmp_path), "val", num_classes=None, needs="mask", class_names=["car", "sky", "road"]
    )
    assert np.array_equal(val.mask(0), np.array([1, 2, 0])[masks["x"]])
    with pytest.raises(UserError, match="has a class for each pixel and none for an image"):
        datasets.open_source("masks", str(tmp_path), "train", num_classes=3, needs="label")


def test_lists_of_paddleseg(tmp_path):
    for name in ("a b", "c"):
        write(tmp_path / "JPEGImages" / f"{name}.jpg", photo(LABELS))
        write(tmp_path / "Annotations" / f"{name}.png", LABELS)
    (tmp_path / "train.txt").write_text("JPEGImages/a b.jpg|Annotations/a b.png\nJPEGImages/c.jpg Annotations/c.png\n")
    source = datasets.open_source("masks", str(tmp_path), "train", num_classes=4, needs="mask")
    assert np.array_equal(source.mask(0), LABELS)
    assert len(source) == 2
    assert datasets.open_source("masks", str(tmp_path), "train", num_classes=None, needs="mask").count_classes() == 4
    (tmp_path / "train.txt").write_text("../x.jpg y.png\n")
    with pytest.raises(UserError, match="line 1: expected 'image mask' below"):
        datasets.open_source("masks", str(tmp_path), "train", num_classes=4, needs="mask")


def test_what_has_no_partner_is_counted(tmp_path):
    for name in "abc":
        write(tmp_path / "train" / "images" / f"{name}.jpg", photo(LABELS))
    for name in "bz":
        write(tmp_path / "train" / "masks" / f"{name}.png", LABELS)
    source = datasets.open_source("masks", str(tmp_path), "train", num_classes=4, needs="mask")
    assert len(source) == 1
    notes = " ".join(source.notes)
    assert "2 images have no mask, and are left out: a, c" in notes
    assert "1 masks have no image, and are left out: z" in notes
    write(tmp_path / "train" / "masks" / "b_mask.png", LABELS)
    with pytest.raises(UserError, match="are both masks of b"):
        datasets.open_source("masks", str(tmp_path), "train", num_classes=4, needs="mask")
    with pytest.raises(UserError, match="no images and masks of the split val"):
        datasets.open_source("masks", str(tmp_path), "val", num_classes=4, needs="mask")


def test_a_mask_of_another_size_is_an_error(tmp_path):
    write(tmp_path / "train" / "images" / "a.jpg", photo(LABELS))
    write(tmp_path / "train" / "masks" / "a.png", LABELS.T.copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    write(tmp_path / "train" / "images" / "b.jpg", photo(LABELS), exif=exif)
    write(tmp_path / "train" / "masks" / "b.png", LABELS.T.copy())
    source = datasets.open_source("masks", str(tmp_path), "train", num_classes=4, needs="mask")
    with pytest.raises(ValueError, match=r"mask has 6 x 9 pixels, the image 9 x 6"):
        read_pair(source, 0, 3)
    assert read_pair(source, 1, 3)[0].size == (6, 9)
    with pytest.raises(ValueError, match=r"mask has 6 x 9 pixels, the image 9 x 6"):
        read_pair(source, 1, 3, upright=False)


def test_a_table_of_classes(tmp_path):
    write(tmp_path / "train" / "images" / "a.png", photo(LABELS))
    write(tmp_path / "train" / "masks" / "a.png", COLOURS[LABELS])
    classes = [{"name": "x", "values": [[0, 0, 0], [128, 0, 0]]}, {"name": "y", "values": [[0, 128, 0]]}]
    (tmp_path / "classes.json").write_text(json.dumps({"classes": classes, "ignore": [[128, 128, 0]]}))
    source = datasets.open_source("masks", str(tmp_path), "train", num_classes=None, needs="mask")
    assert source.class_names == ["x", "y"]
    assert np.array_equal(source.mask(0), np.array([0, 0, 1, IGNORED])[LABELS])
    values = [[], [-1], [1, 1], ["x"], "no list", [[0, 0, 999]]]
    wrong_tables = [[{"name": "x", "values": own}] for own in values]
    for wrong in (*wrong_tables, [{"name": "x"}], [{"name": 1, "values": [1]}], ["x"], [*classes, classes[0]]):
        (tmp_path / "classes.json").write_text(json.dumps({"classes": wrong}))
        with pytest.raises(UserError, match=r"classes\.json"):
            datasets.open_source("masks", str(tmp_path), "train", num_classes=None, needs="mask")


def test_published_sets(tmp_path):
    voc, ade, city = tmp_path / "voc" / "VOCdevkit" / "VOC2012", tmp_path / "ade", tmp_path / "city"
    for name in ("2007_1", "2007_2"):
        write(voc / "JPEGImages" / f"{name}.jpg", photo(LABELS))
        (voc / "SegmentationClass").mkdir(exist_ok=True)
        with_palette(np.where(LABELS == 3, 255, LABELS).astype(np.uint8)).save(
            voc / "SegmentationClass" / f"{name}.png"
        )
    (voc / "ImageSets" / "Segmentation").mkdir(parents=True)
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_1\n")
    (voc / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_2\n")
    source = datasets.open_source("voc", str(tmp_path / "voc"), "train", num_classes=21, needs="mask")
    assert np.array_equal(source.mask(0), np.where(LABELS == 3, IGNORED, LABELS.astype(int)))
    assert source.class_names[15] == "person"
    (voc / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_1\n2007_2\n")
    with pytest.raises(UserError, match=r"1 of its images are in val\.txt"):
        datasets.open_source("voc", str(tmp_path / "voc"), "train", num_classes=21, needs="mask")

    write(ade / "images" / "training" / "ADE_train_1.jpg", photo(LABELS))
    write(ade / "annotations" / "training" / "ADE_train_1.png", LABELS)
    source = datasets.open_source("ade20k", str(ade), "train", num_classes=150, needs="mask")
    assert np.array_equal(source.mask(0), LABELS.astype(int) - 1)
    assert source.count_classes() == 150

    write(city / "leftImg8bit" / "train" / "ulm" / "ulm_1_leftImg8bit.png", photo(LABELS))
    write(city / "gtFine" / "train" / "ulm" / "ulm_1_gtFine_labelIds.png", LABELS + 7)
    write(city / "gtFine" / "train" / "ulm" / "ulm_1_gtFine_instanceIds.png", LABELS)
    source = datasets.open_source("cityscapes", str(city), "train", num_classes=19, needs="mask")
    assert np.array_equal(source.mask(0), np.array([0, 1, IGNORED, IGNORED])[LABELS])
    assert source.class_names[1] == "sidewalk"


def test_scenes_are_the_same_each_time():
    first, again = (datasets.open_source("scenes", "", "val", num_classes=8, needs="mask") for _ in range(2))
    assert len(first) == 400
    assert np.array_equal(first.image(7), again.image(7))
    assert np.array_equal(first.mask(7), again.mask(7))
    train = datasets.open_source("scenes", "", "train", num_classes=8, needs="none")
    assert not np.array_equal(train.image(7), first.image(7))
    counts = np.bincount(np.concatenate([train.mask(n).ravel() for n in range(100)]), minlength=8)
    assert (counts[1:] > 0.01 * counts.sum()).all()
    assert len(scenes.CLASSES) == len(counts) == 8
    assert not isinstance(first, MaskedImages)
    with pytest.raises(UserError, match="has no masks; those that have: masks, voc"):
        datasets.open_source("digits", "", "train", num_classes=10, needs="mask")


def test_check_dataset_says_what_masks_hold(tmp_path, capsys):
    for split in ("train", "val"):
        for name in "ab":
            write(tmp_path / split / "images" / f"{name}.png", photo(LABELS))
            write(tmp_path / split / "masks" / f"{name}.png", np.repeat([1, 2, 2], 18).reshape(6, 9).astype(np.uint8))
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    flags = ["-dataset", "masks", "-data_path", str(tmp_path)]
    assert check_dataset.main(flags) == 0
    said = capsys.readouterr().out
    assert "pixels: 66.67 % car" in said
    assert "no pixel: sky" in said
    assert "all is well" in said
    write(tmp_path / "train" / "masks" / "a.png", np.full((6, 9), 7, np.uint8))
    write(tmp_path / "val" / "masks" / "b.png", np.zeros((3, 9), np.uint8))
    (tmp_path / "val" / "images" / "lonely.png").write_bytes(b"x")
    assert check_dataset.main(flags) == 1
    said = capsys.readouterr().out
    assert "1 values that stand for no class: 7" in said
    assert "has 9 x 3 pixels, the image 9 x 6" in said
    assert "1 images have no mask, and are left out: lonely" in said
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text("train/images/b.png train/masks/b.png\n")
    assert check_dataset.main(flags) == 1
    assert "1 images are in train and in val" in capsys.readouterr().out
    assert check_dataset.main(["-dataset", "scenes"]) == 0
    said = capsys.readouterr().out
    assert "% stripes" in said
    assert "of 500 of 2,000 masks; -full reads all" in said


@pytest.mark.parametrize("options", [{"zero_is_other": True}, {"ignored": 3}, {"ignored": None}])
def test_classes_that_are_counted_are_those_that_are_read(tmp_path, options):
    write(tmp_path / "train" / "images" / "a.png", photo(LABELS))
    write(tmp_path / "train" / "masks" / "a.png", LABELS)
    open_with = lambda count: datasets.open_source(
        "masks", str(tmp_path), "train", num_classes=count, needs="mask", **options
    )
    counted = open_with(None)
    assert counted.count_classes() == (4 if options.get("ignored", 0) is None else 3)
    assert np.array_equal(counted.mask(0), open_with(counted.count_classes()).mask(0))


def test_a_part_of_a_set_renumbers_its_masks(tmp_path):
    for name in "ab":
        write(tmp_path / "train" / "images" / f"{name}.png", photo(LABELS))
        write(tmp_path / "train" / "masks" / f"{name}.png", LABELS)
    (tmp_path / "classes.txt").write_text("p\nq\nr\ns\n")
    options = {"num_classes": None, "needs": "mask", "val_fraction": 0.5}
    part = datasets.open_source("masks", str(tmp_path), "val", **options)
    part.use_class_names(["s", "r", "q", "p"])
    assert np.array_equal(part.mask(0), 3 - LABELS.astype(int))
    assert part.count_classes() == 4
    assert part.summary() == "1 images with masks"


def test_binary_masks_of_0_and_255_are_warned_of(tmp_path, capsys):
    for split in ("train", "val"):
        write(tmp_path / split / "images" / f"{split}.png", photo(LABELS))
        write(tmp_path / split / "masks" / f"{split}.png", (LABELS > 1) * np.uint8(255))
    flags = ["-dataset", "masks", "-data_path", str(tmp_path)]
    check_dataset.main(flags)
    assert "only one class has pixels; is a value that is ignored one too (-mask_ignore)?" in capsys.readouterr().out
    (tmp_path / "classes.json").write_text(
        '{"classes": [{"name": "a", "values": [0]}, {"name": "b", "values": [255]}]}'
    )
    assert check_dataset.main(flags) == 0


@pytest.mark.parametrize("text", ["a\n\nb\n", "a\na\n", "", "\xff"])
def test_lists_of_classes_that_may_mean_something_else(tmp_path, text):
    write(tmp_path / "train" / "images" / "a.png", photo(LABELS))
    write(tmp_path / "train" / "masks" / "a.png", LABELS)
    (tmp_path / "classes.txt").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"classes\.txt"):
        datasets.open_source("masks", str(tmp_path), "train", num_classes=None, needs="mask")
