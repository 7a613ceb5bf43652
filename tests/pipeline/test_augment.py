import numpy as np
import pytest
from PIL import Image

from pipeline import augment

pytestmark = pytest.mark.quick


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def photo():
    rows, columns = np.mgrid[0:40, 0:60]
    return Image.fromarray(np.stack([rows * 6, columns * 4, (rows + columns) * 2], axis=-1).astype(np.uint8))


def coordinates(height, width) -> Image.Image:
    """Return an image whose red is the row and whose green is the column."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([rows, columns, rows * 0], axis=-1).astype(np.uint8))


@pytest.mark.parametrize("crop", [augment.random_resized_crop, augment.random_resized_crop_tf])
def test_crops_cover_the_areas_and_ratios_asked_for(crop, monkeypatch):
    boxes = []
    monkeypatch.setattr(augment, "_crop_and_resize", lambda image, *box_and_size: boxes.append(box_and_size[:4]))
    image, generator = coordinates(200, 200), rng()
    for _ in range(300):
        crop(image, (8, 8), generator, scale=(0.2, 0.5))
    tops, lefts, heights, widths = np.array(boxes).T
    area, ratio = heights * widths / 40000, widths / heights
    assert 0.19 < area.min() < 0.22
    assert 0.48 < area.max() < 0.51
    assert 0.72 < ratio.min() < 0.78
    assert 1.29 < ratio.max() < 1.38
    assert (tops >= 0).all()
    assert (tops + heights <= 200).all()
    assert (lefts + widths <= 200).all()


def test_crop_falls_back_to_the_centre_of_a_long_image(monkeypatch):
    boxes = []
    monkeypatch.setattr(augment, "_crop_and_resize", lambda image, *box: boxes.append(box[:4]))
    augment.random_resized_crop(coordinates(10, 200), (8, 8), rng(), scale=(0.9, 1.0))
    assert boxes == [(0, (200 - 13) // 2, 10, 13)]


def test_tf_crop_clips_a_long_image_instead(monkeypatch):
    boxes = []
    monkeypatch.setattr(augment, "_crop_and_resize", lambda image, *box: boxes.append(box[:4]))
    augment.random_resized_crop_tf(coordinates(10, 200), (8, 8), rng(), scale=(0.9, 1.0))
    assert boxes[0][2] == 10
    assert boxes[0][3] > 30


@pytest.mark.parametrize(
    ("image_hw", "size_hw", "crop_pct", "resized_hw"),
    [
        ((40, 60), (20, 20), 1.0, (20, 30)),
        ((60, 40), (224, 224), 0.875, (384, 256)),
        ((50, 50), (32, 16), 0.5, (64, 64)),
    ],
)
def test_evaluation_transform(image_hw, size_hw, crop_pct, resized_hw):
    image = Image.fromarray(rng().integers(0, 255, (*image_hw, 3)).astype(np.uint8))
    expected = image.resize(resized_hw[::-1], Image.Resampling.BICUBIC)
    top, left = round((resized_hw[0] - size_hw[0]) / 2), round((resized_hw[1] - size_hw[1]) / 2)
    expected = np.asarray(expected)[top : top + size_hw[0], left : left + size_hw[1]]
    assert np.array_equal(np.asarray(augment.resize_and_center_crop(image, size_hw, crop_pct)), expected)


def test_flip(photo):
    assert np.array_equal(np.asarray(augment.random_flip(photo, rng(), 1.0)), np.asarray(photo)[:, ::-1])
    assert augment.random_flip(photo, rng(), 0.0) is photo
    assert np.array_equal(augment.random_flip(np.asarray(photo), rng(), 1.0), np.asarray(photo)[:, ::-1])


@pytest.mark.parametrize(
    ("operation", "strength"),
    [
        ("Rotate", 27.0),
        ("ShearX", 0.27),
        ("TranslateY", 0.405),
        ("Color", 1.81),
        ("Brightness", 1.81),
        ("Posterize", 1),
        ("Solarize", 26),
        ("SolarizeAdd", 99),
        ("Equalize", 0.0),
    ],
)
def test_rand_augment_levels_are_timms(operation, strength):
    assert augment.strength_at(operation, 9, 1) == pytest.approx(strength)


def test_enhancements_and_geometry_go_both_ways():
    assert augment.strength_at("Contrast", 9, -1) == pytest.approx(0.19)
    assert augment.strength_at("Contrast", 10, -1) == pytest.approx(0.1)
    assert augment.strength_at("Rotate", 9, -1) == pytest.approx(-27.0)


@pytest.mark.parametrize("operation", augment._OPERATIONS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_operation_keeps_size_and_mode(photo, operation, mode):
    image = photo.convert(mode)
    for sign in (-1, 1):
        changed = augment._APPLY[operation](
            image, augment.strength_at(operation, 9, sign), 128 if mode == "L" else (1, 2, 3)
        )
        assert changed.size == image.size
        assert changed.mode == mode


def test_solarize_add_posterize_and_fill(photo):
    array = np.asarray(photo).astype(int)
    added = np.asarray(augment._APPLY["SolarizeAdd"](photo, 99, None))
    assert np.array_equal(added, np.where(array < 128, np.minimum(array + 99, 255), array))
    assert np.array_equal(np.asarray(augment._APPLY["Posterize"](photo, 2, None)), array & 0b11000000)
    moved = np.asarray(augment._APPLY["TranslateX"](photo, 0.5, (9, 8, 7)))
    assert moved[20, 45].tolist() == [9, 8, 7]


def test_rand_augment_applies_half_of_two_operations(photo):
    generator = rng()
    unchanged = sum(augment.rand_augment(photo, generator) is photo for _ in range(400))
    assert 70 < unchanged < 130  # a quarter of 400, three standard errors


def test_auto_augment_and_jitter_change_images_reproducibly(photo):
    for function in (augment.auto_augment, lambda image, generator: augment.color_jitter(image, generator, 0.4)):
        images = [np.asarray(function(photo, rng(seed))) for seed in (1, 1, 2)]
        assert np.array_equal(images[0], images[1])
        assert not np.array_equal(images[0], images[2])


def test_pixels_have_channels_last():
    assert augment.as_pixels(Image.new("L", (3, 2), 255)).shape == (2, 3, 1)
    pixels = augment.as_pixels(Image.new("RGB", (3, 2), (255, 0, 51)))
    assert pixels[0, 0].tolist() == [255, 0, 51]
    assert np.array_equal(np.asarray(augment.as_image(pixels)), pixels)
    assert augment.as_image(pixels[:, :, :1]).mode == "L"
