"""Single augmentations against Pillow and NumPy, and how often each is applied."""

import colorsys
import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageFilter

from config import get_config
from pipeline import contrastive_augment
from pipeline.contrastive_augment import AUGMENTATIONS, ViewRecipe, distort

pytestmark = pytest.mark.quick
NEVER = ViewRecipe()


def photo(seed: int = 0, size=(24, 20)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3)).astype(np.uint8))


def always(**fields) -> ViewRecipe:
    return dataclasses.replace(NEVER, **fields)


def test_nothing_is_changed_where_nothing_is_wanted():
    assert np.array_equal(distort(photo(), np.random.default_rng(0), NEVER), photo())


def test_solarize_inverts_from_128_on():
    pixels = np.asarray(photo())
    found = distort(photo(), np.random.default_rng(0), always(solarize_prob=1.0))
    assert np.array_equal(found, np.where(pixels >= 128, 255 - pixels, pixels))


def test_grey_is_luminance_in_all_channels():
    pixels = np.asarray(photo()).astype(np.int64)
    expected = (pixels @ [19595, 38470, 7471] + 0x8000) >> 16  # ITU-R 601 in Pillow's fixed point
    found = np.asarray(distort(photo(), np.random.default_rng(0), always(grey_prob=1.0)))
    assert np.array_equal(found, np.repeat(expected[..., None], 3, axis=2))


def test_blur_is_pillows_with_a_deviation_from_a_tenth_to_two_pixels():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rng.random(4)
        deviation = rng.uniform(0.1, 2.0)
        found = distort(photo(), np.random.default_rng(seed), always(blur_prob=1.0))
        assert np.array_equal(found, photo().filter(ImageFilter.GaussianBlur(deviation)))
        assert 0.1 <= deviation <= 2.0


def test_brightness_contrast_and_saturation_by_hand():
    pixels = np.asarray(photo()).astype(np.float64)
    cut = lambda values: np.clip(values, 0, 255)
    grey = np.asarray(photo().convert("L")).astype(np.float64)
    mean = int(grey.mean() + 0.5)
    rng = np.random.default_rng(3)
    factors = [rng.uniform(0.6, 1.4), rng.uniform(1.0, 1.0), rng.uniform(1.0, 1.0)]
    found = contrastive_augment.jitter(photo(), np.random.default_rng(3), 0.4, 0.0, 0.0, 0.0)
    assert np.abs(np.asarray(found) - cut(pixels * factors[0])).max() <= 1.0
    rng = np.random.default_rng(4)
    rng.uniform(1.0, 1.0)
    factor = rng.uniform(0.6, 1.4)
    found = contrastive_augment.jitter(photo(), np.random.default_rng(4), 0.0, 0.4, 0.0, 0.0)
    assert np.abs(np.asarray(found) - cut(mean + (pixels - mean) * factor)).max() <= 1.0
    rng = np.random.default_rng(5)
    rng.uniform(size=2)
    factor = rng.uniform(0.8, 1.2)
    found = contrastive_augment.jitter(photo(), np.random.default_rng(5), 0.0, 0.0, 0.2, 0.0)
    assert np.abs(np.asarray(found) - cut(grey[..., None] + (pixels - grey[..., None]) * factor)).max() <= 1.0


@pytest.mark.parametrize("shift", [-0.1, -0.0999, -0.002, 0.0, 0.0039, 0.05, 0.0999, 0.3])
def test_hue_is_turned_by_whole_steps_towards_zero(shift):
    """As torchvision's PIL code does it: int(shift * 255) of 256 steps, always by way of HSV."""
    hue, saturation, value = photo().convert("HSV").split()
    turned = (np.asarray(hue).astype(int) + int(shift * 255)) % 256
    expected = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
    assert np.array_equal(contrastive_augment.shift_hue(photo(), shift), expected)


@pytest.mark.parametrize("shift", [-0.1, 0.05, 0.3])
def test_hue_is_turned_around_the_circle(shift):
    """Saturated colours; HSV has 8 bits in Pillow, so colours may be off by some levels."""
    colours = [(220, 30, 30), (30, 220, 60), (40, 60, 230), (200, 180, 20)]
    image = Image.fromarray(np.array([colours], np.uint8))
    found = np.asarray(contrastive_augment.shift_hue(image, shift))[0]
    for colour, got in zip(colours, found, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
        expected = [255 * channel for channel in colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)]
        assert np.abs(got - expected).max() < 8


def test_grey_images_pass():
    grey = photo().convert("L")
    for recipe in AUGMENTATIONS["byol"]:
        assert distort(grey, np.random.default_rng(0), recipe).mode == "L"


@pytest.mark.parametrize("view", [0, 1])
def test_each_is_applied_as_often_as_it_should(monkeypatch, view):
    """2,000 draws; within three deviations of the binomial distribution."""
    recipe, counts = AUGMENTATIONS["byol"][view], dict.fromkeys(("jitter", "blur", "to_grey", "solarize"), 0)
    for name in counts:
        monkeypatch.setattr(
            contrastive_augment, name, lambda image, *args, name=name: counts.update({name: counts[name] + 1}) or image
        )
    for index in range(2000):
        distort(photo(), np.random.default_rng([1, index]), recipe)
    probs = (recipe.jitter_prob, recipe.blur_prob, recipe.grey_prob, recipe.solarize_prob)
    assert probs == ((0.8, 1.0, 0.2, 0.0) if view == 0 else (0.8, 0.1, 0.2, 0.2))
    for count, prob in zip(counts.values(), probs, strict=True):
        assert abs(count - 2000 * prob) <= 3 * np.sqrt(2000 * prob * (1 - prob))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_views_have_the_models_size_and_depend_on_the_seed_alone(name):
    config = get_config(None, ["DATA.IMAGE_SIZE", [32, 16], "MODEL.PATCH_SIZE", 4])
    views = contrastive_augment.two_views(config, name)
    assert len(views) == 2
    for view in views:
        first, again, other = (view(photo(size=(60, 50)), np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert first.shape == (32, 16, 3)
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
