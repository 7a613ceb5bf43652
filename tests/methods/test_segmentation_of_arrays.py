"""Segmentation of images of any channels: pixels and masks together, training, evaluation, tools."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main_multi_gpu_finetune
from config import get_config
from errors import UserError
from measures import prediction
from methods import dispatch
from pipeline import mask_augment
from pipeline.array_source import ArraySource
from pipeline.pixel_array import PixelFormat
from tests.helpers import script_runs
from tests.methods.test_segmentation import SEG
from tools import evaluate, patch_knn, predict

pytestmark = pytest.mark.quick
BANDS = 5
ARRAYS = ["DATA.DATASET", "masks", "DATA.PIXELS", "array", "DATA.IMAGE_CHANNELS", BANDS, "DATA.PIXEL_RANGE", [0, 1000]]
ARRAYS += ["DATA.IMAGENET_MEAN", [0.4] * BANDS, "DATA.IMAGENET_STD", [0.2] * BANDS, "DATA.SHOW_BANDS", [2, 1, 0]]
ARRAYS += ["MODEL.NUM_CLASSES", 2, "TRAIN.COLOR_JITTER", 0.0]


@pytest.fixture
def scenes(tmp_path):
    """Return a folder of 70 x 66 images whose band 3 is bright where the mask is 1; some pixels have no number."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for part in ("images", "masks"):
            (tmp_path / "set" / part / split).mkdir(parents=True)
        for index in range(count):
            labels = np.zeros((66, 70), np.uint8)
            top, left = rng.integers(0, 34, 2)
            labels[top : top + 30, left : left + 30] = 1
            array = rng.integers(0, 400, (66, 70, BANDS)).astype(np.float32)
            array[..., 3] += np.float32(500) * labels
            array[rng.random(array.shape) < 0.01] = np.nan
            np.save(tmp_path / "set" / "images" / split / f"{index}.npy", array)
            Image.fromarray(labels).save(tmp_path / "set" / "masks" / split / f"{index}.png")
    return tmp_path / "set"


def options_of(folder, *more):
    return [*SEG, *ARRAYS, "DATA.DATA_PATH", str(folder), *more]


def test_pixels_and_masks_stay_together(scenes):
    turns = ["TRAIN.VERTICAL_FLIP_PROB", 0.5, "TRAIN.ROTATE_90", True]
    config = get_config(None, options_of(scenes, "SEG.SCALE", [0.5, 2.0], *turns))
    source = dispatch.loaders.open_source(config, "train", "mask")
    assert isinstance(source, ArraySource)
    view = mask_augment.train_transform(config).views[0]
    for seed in range(20):
        pair = source.image(seed % 16), source.mask(seed % 16)
        pixels, labels = view(pair, np.random.default_rng(seed))
        assert pixels.dtype == np.float32
        bright = np.nan_to_num(pixels[..., 3]) > 0.45
        inside = labels >= 0
        assert (bright == (labels == 1))[inside].mean() > 0.95
        if (~inside).any():  # what the image does not cover has the mean, and no class
            assert (pixels[~inside] == np.float32(0.4)).all()
    with pytest.raises(UserError, match="TRAIN.COLOR_JITTER=0.3: is for photos"):
        dispatch.train_transform(
            get_config(None, [*options_of(scenes), "MODEL.TYPE", "SEGMENTATION", "TRAIN.COLOR_JITTER", 0.3])
        )


def test_a_run_finds_the_bright_band(scenes, tmp_path, capsys):
    more = options_of(scenes, "TRAIN.NUM_EPOCHS", 4, "SEG.FREEZE", False, "TRAIN.VERTICAL_FLIP_PROB", 0.5)
    run = script_runs.train(main_multi_gpu_finetune.main, tmp_path, "seg", more)
    scores = evaluate.main([str(run), "-out", str(tmp_path / "out")])
    assert scores["images"] == 4
    assert scores["aacc"] > 60
    assert (tmp_path / "out" / "index.html").exists() or list((tmp_path / "out").glob("*.html"))
    folder = scenes / "images" / "val"
    predict.main([str(run), str(folder), "-out", str(tmp_path / "p.csv"), "-masks", str(tmp_path / "m")])
    masks = sorted((tmp_path / "m").rglob("masks/*.png"))
    overlays = sorted((tmp_path / "m").rglob("overlays/*.jpg"))
    assert len(masks) == len(overlays) == 4
    with Image.open(overlays[0]) as picture:
        assert picture.size == (70, 66)
        assert picture.mode == "RGB"
    found = dict(prediction.segment(prediction.load(run), folder))
    for path in masks:
        own = next(labels for name, labels in found.items() if Path(name).stem == path.stem.split(".")[0])
        assert np.array_equal(np.asarray(Image.open(path)), own)
    patch_knn.main([str(run), "-k", "3"])
    assert "miou" in capsys.readouterr().out.lower()


def test_three_8_bit_channels_are_as_photos(tmp_path):
    """Both ways give the same crops; a photo is rounded to 8 bits when it is resized."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 50, 3), np.uint8)
    labels = rng.integers(0, 2, (40, 50)).astype(np.int16)
    shared = [*SEG, "TRAIN.COLOR_JITTER", 0.0]
    photo = mask_augment.train_transform(get_config(None, shared)).views[0]
    array = mask_augment.train_transform(
        get_config(None, [*shared, "DATA.PIXELS", "array", "DATA.PIXEL_RANGE", [0, 255]])
    ).views[0]
    image = PixelFormat(3, (0.0,) * 3, (255.0,) * 3).pixels(pixels)
    for seed in range(5):
        first = photo((Image.fromarray(pixels), labels), np.random.default_rng(seed))
        second = array((image, labels), np.random.default_rng(seed))
        assert np.array_equal(first[1], second[1])
        assert np.abs(first[0] / 255.0 - second[0]).max() < 3 / 255
