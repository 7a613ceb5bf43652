"""Masks of photos by a segmenter: palettes, overlays, the table, resuming, names, pages."""

import csv
import itertools

import numpy as np
import paddle
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from config import get_config
from errors import UserError
from measures import prediction
from methods import dispatch
from methods.segmenter import label_map, segment, upsample
from pages import mask_files, segments
from pipeline import scenes
from pipeline.transforms import eval_transform
from tests.helpers.browser import BROWSER, check_page
from tests.methods.test_segmentation import SEG
from tools import predict

pytestmark = pytest.mark.quick


@pytest.fixture
def run(tiny_run, monkeypatch):
    """Return the directory of a segmentation run on generated scenes, without training."""
    monkeypatch.setattr(scenes, "_NUM_IMAGES", {"train": 8, "val": 2})
    run = tiny_run("pretrain", *SEG, "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    dispatch.train_or_evaluate(run)
    return run.directory


@pytest.fixture
def photos(tmp_path):
    """Return a folder of photos of many sizes, and a file that is none."""
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    for name, size in {"a.png": (40, 24), "a.jpg": (24, 40), "b/a.png": (5, 7), "b/c.webp": (90, 16)}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).save(folder / name)
    turned = Image.fromarray(rng.integers(0, 256, (30, 20, 3), np.uint8))
    exif = turned.getexif()
    exif[274] = 6  # a quarter turn
    turned.save(folder / "turned.jpg", exif=exif)
    (folder / "bad.jpg").write_bytes(b"no photo")
    return folder


def call(run, photos, *flags):
    return predict.main([str(run), str(photos), *map(str, flags)])


def test_masks_have_the_photos_sizes_and_the_networks_classes(run, photos, tmp_path):
    table = call(run, photos, "-masks", tmp_path / "out", "-out", tmp_path / "p.csv")
    model, masks = prediction.load(run), tmp_path / "out" / "masks"
    names = {"a.jpg": "a.jpg", "a.png": "a.png", "b/a.png": "b/a", "b/c.webp": "b/c", "turned.jpg": "turned"}
    assert {str(file.relative_to(masks)) for file in masks.rglob("*.png")} == {f"{name}.png" for name in names.values()}
    assert (tmp_path / "out" / "classes.txt").read_text().splitlines() == list(scenes.CLASSES)
    found = dict(prediction.segment(model, photos))
    assert found.pop(str(photos / "bad.jpg")) is None
    with table.open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert "cannot be read" in rows.pop(str(photos / "bad.jpg"))["error"]
    for photo, labels in found.items():
        name = names[str((photos / photo).relative_to(photos))]
        with Image.open(masks / f"{name}.png") as mask:
            assert mask.mode == "P"
            assert_array_equal(np.asarray(mask), labels)
            colours = np.asarray(mask.convert("RGB"))
        assert_array_equal(colours, segments.palette(8)[labels])
        with Image.open(tmp_path / "out" / "overlays" / f"{name}.jpg") as overlay:
            assert overlay.size == labels.shape[::-1]
        label = int(np.bincount(labels.ravel()).argmax())
        assert rows[photo]["class_1"] == scenes.CLASSES[label]
        assert float(rows[photo]["probability_1"]) == pytest.approx(np.mean(labels == label), abs=1e-6)
    assert found[str(photos / "turned.jpg")].shape == (20, 30)


def test_classes_of_a_large_map_are_those_of_all_logits_at_once(run):
    model = prediction.load(run)
    rng = np.random.default_rng(0)
    paddle.seed(0)
    model.network.head.weight.set_value(paddle.randn(model.network.head.weight.shape))
    image = eval_transform(model.config).normalise(paddle.to_tensor(rng.integers(0, 256, (1, 16, 37, 3), np.uint8)))[0]
    whole = upsample(segment(model.network, image, (16, 16), model.config.SEG.STRIDE).unsqueeze(0), (33, 71))[0]
    labels = label_map(model.network, model.config, image, (33, 71))
    assert_array_equal(labels, whole.argmax(axis=0).numpy())
    assert len(np.unique(labels)) > 2


def stop_after(number, monkeypatch, *words):
    """Call the tool, and interrupt it when it has written the masks of some photos."""
    own, count = mask_files.MaskFiles.write, itertools.count()

    def write(self, index, labels):
        if next(count) == number:
            raise KeyboardInterrupt
        own(self, index, labels)

    monkeypatch.setattr(mask_files.MaskFiles, "write", write)
    with pytest.raises(KeyboardInterrupt):
        call(*words)
    monkeypatch.setattr(mask_files.MaskFiles, "write", own)


def test_a_stopped_command_resumes(run, photos, tmp_path, monkeypatch, capsys):
    whole = call(run, photos, "-masks", tmp_path / "whole", "-out", tmp_path / "whole.csv")
    flags = ["-masks", tmp_path / "part", "-out", tmp_path / "part.csv"]
    stop_after(2, monkeypatch, run, photos, *flags)
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "part" / "masks").rglob("*.png")}
    assert len(done) == 2
    assert call(run, photos, *flags).read_bytes() == whole.read_bytes()
    assert "resumes after" in capsys.readouterr().out
    assert all(file.stat().st_mtime_ns == time for file, time in done.items())
    for file in (tmp_path / "whole").rglob("*.png"):
        assert (tmp_path / "part" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.png", "a.jpg.png", "A.webp"],
        ["x.jpg", "x.png/b.jpg", "x.png/b.png", "x.jpg.png"],
        [f"{'y' * 240}.jpg", f"{'y' * 240}.png", f"{'é' * 120}.jpg"],
        ["n\nl.png", "n_l.png", "n\u2028l.png", "b\udcff.png"],
    ],
)
def test_each_photo_has_a_mask_of_its_own(run, tmp_path, names):
    model = prediction.load(run)
    paths = [tmp_path / "photos" / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(path)
    source = prediction.open_photos([*paths, paths[0]])
    (tmp_path / "out").mkdir()
    for _ in range(2):  # again into the same directory, whose list of files has a name per line
        files = mask_files.MaskFiles(tmp_path / "out", model, source)
        for index in range(len(source)):
            files.write(index, np.full((2, 3), index % 8))
            assert files.is_written(index)
    assert files.paths(0) == files.paths(len(names))
    masks = [path for path in (tmp_path / "out" / "masks").rglob("*") if path.is_file()]
    overlays = [path for path in (tmp_path / "out" / "overlays").rglob("*") if path.is_file()]
    assert len(masks) == len(overlays) == len(names)
    assert len({str(path).lower() for path in masks}) == len(names)


def test_a_photo_that_is_too_wide_for_a_jpeg(run, tmp_path):
    Image.new("RGB", (66000, 96)).save(tmp_path / "wide.png")
    call(run, tmp_path / "wide.png", "-masks", tmp_path / "out", "-out", tmp_path / "p.csv")
    with Image.open(tmp_path / "out" / "masks" / "wide.png") as mask:
        assert mask.size == (66000, 96)


def test_masks_that_were_removed_are_written_again(run, photos, tmp_path, monkeypatch):
    flags = ["-masks", tmp_path / "out", "-out", tmp_path / "p.csv"]
    stop_after(3, monkeypatch, run, photos, *flags)
    (done, *_) = sorted((tmp_path / "out" / "masks").rglob("*.png"))
    content = done.read_bytes()
    done.unlink()
    call(run, photos, *flags)
    assert done.read_bytes() == content
    assert len(list((tmp_path / "out" / "overlays").rglob("*.jpg"))) == 5


def test_neither_photos_nor_other_masks_are_overwritten(run, photos, tmp_path):
    flags = ["-masks", tmp_path / "out", "-out", tmp_path / "p.csv"]
    call(run, photos, *flags)
    overlay = tmp_path / "out" / "overlays" / "turned.jpg"
    content = overlay.read_bytes()
    for given in (overlay.parent, overlay):
        with pytest.raises(UserError, match="taken for photos next time|one of the photos"):
            call(run, given, *flags)
    assert overlay.read_bytes() == content
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "masks").symlink_to(photos)
    with pytest.raises(UserError, match="taken for photos next time"):
        call(run, photos, "-masks", tmp_path / "linked", "-out", tmp_path / "p.csv")
    with pytest.raises(UserError, match="not the name of a directory"):
        call(run, photos, "-masks", "", "-out", tmp_path / "p.csv")
    other = ["-opts", "DATA.CLASS_NAMES", "['q','w','e','r','t','y','u','i']"]
    with pytest.raises(UserError, match="holds masks of other classes"):
        call(run, photos / "turned.jpg", *flags, *other)


def test_a_page_of_overlays(run, photos, tmp_path):
    flags = ["-masks", tmp_path / "out", "-out", tmp_path / "p.csv", "-html", tmp_path / "page.html"]
    call(run, photos, *flags)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img ") == 5
    assert "Most mixed" in page
    assert 'class="legend"' in page
    if BROWSER is not None:
        check_page(tmp_path / "page.html", tmp_path)


def test_files_of_others_stay(run, photos, tmp_path):
    (tmp_path / "out" / "masks").mkdir(parents=True)
    (tmp_path / "out" / "masks" / "turned.png").write_text("mine")
    with pytest.raises(UserError, match="masks/turned.png, which is not from here"):
        call(run, photos, "-masks", tmp_path / "out", "-out", tmp_path / "p.csv")
    with pytest.raises(UserError, match="give -masks DIR, too"):
        call(run, photos, "-html", tmp_path / "page.html", "-out", tmp_path / "p.csv")
    for folder in (photos, photos / "b" / "new"):
        with pytest.raises(UserError, match="would be taken for photos"):
            call(run, photos, "-masks", folder, "-out", tmp_path / "p.csv")
    assert (tmp_path / "out" / "masks" / "turned.png").read_text() == "mine"


def test_masks_of_many_classes_have_16_bits(tmp_path, photos):
    model = prediction.Classifier(None, get_config(None, []), [f"class {number}" for number in range(300)])
    source = prediction.open_photos([photos / "a.png"])
    labels = np.arange(24 * 40, dtype=np.int16).reshape(24, 40) % 300
    mask_files.MaskFiles(tmp_path, model, source).write(0, labels)
    with Image.open(tmp_path / "masks" / "a.png") as mask:
        assert_array_equal(np.asarray(mask), labels)
