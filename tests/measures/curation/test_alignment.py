"""Copies lie in each other, other images do not; the correlation is that of a search at every place."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from measures.curation import alignment, image_facts, thumbnails
from pipeline.sources import Pictures

pytestmark = pytest.mark.quick


def picture(seed, width=160, height=120):
    """Return a picture with structure of all sizes, as photos have."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for cells in (3, 6, 12, 24, 48):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        pixels += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), float) / cells**0.7
    pixels -= pixels.min()
    return Image.fromarray((255 * pixels / pixels.max()).astype(np.uint8))


def jpeg(image, quality=30):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def crop(image, share, left=0.5, top=0.5):
    width, height = round(share * image.width), round(share * image.height)
    x, y = round(left * (image.width - width)), round(top * (image.height - height))
    return image.crop((x, y, x + width, y + height))


VARIANTS = {
    "jpeg": jpeg,
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "bright": lambda image: ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(1.3)).enhance(1.3),
    "crop 90": lambda image: crop(image, 0.9, 0.1, 0.9),
    "crop 70": lambda image: crop(image, 0.7, 0.8, 0.2),
    "crop 55": lambda image: crop(image, 0.55),
    "square": lambda image: image.crop((20, 0, 140, 120)),
    "squashed": lambda image: image.resize((160, 160)),
}


def match(one, other):
    facts = [image_facts.look_at(Pictures([image.copy()]), 0) for image in (one, other)]
    shapes = tuple(float(own["width"]) / float(own["height"]) for own in facts)
    return alignment.align(facts[0]["grey"], facts[1]["grey"], shapes)


@pytest.mark.parametrize("name", VARIANTS)
def test_copies_match(name):
    for seed in range(4):
        image = picture(seed)
        found = match(VARIANTS[name](image), image)
        assert found.correlation >= alignment.SAME, (seed, found)
        share = {"crop 90": 0.81, "crop 70": 0.49, "crop 55": 0.3, "square": 0.75}.get(name, 1.0)
        assert abs(found.scale - share) <= 0.11, "a step of 0.05 of the sides"
        assert found.is_second_smaller is False or share == 1.0
        back = match(image, VARIANTS[name](image))
        assert back.correlation == pytest.approx(found.correlation, abs=1e-5)


def test_other_images_and_mirror_images_do_not_match():
    images = [picture(seed) for seed in range(8)]
    for one in range(8):
        assert match(ImageOps.mirror(images[one]), images[one]).correlation < alignment.SAME
        for other in range(one):
            assert match(images[one], images[other]).correlation < 0.5
    frame = [np.full((96, 96, 3), 255, np.uint8) for _ in range(2)]
    for seed, pixels in enumerate(frame):
        pixels[16:80, 16:80] = np.asarray(picture(seed, 64, 64))
    assert match(*map(Image.fromarray, frame)).correlation < alignment.SAME, "the same frame is not the same picture"


def test_blank_images_match_nothing():
    blank = Image.new("RGB", (50, 40), (30, 60, 90))
    assert match(blank, picture(0)).correlation < alignment.SAME
    assert match(blank, blank).correlation < alignment.SAME


def test_the_correlation_is_that_of_every_place_computed_one_by_one():
    first, second = (np.asarray(picture(seed, 64, 64).convert("L"), np.float32) for seed in (1, 2))
    second[8:56, 10:58] = np.asarray(Image.fromarray(first.astype(np.uint8)).resize((48, 48)), np.float32)
    best = -1.0
    image = alignment._detail(second, 64, 64)
    for size in (64, 61, 58, 54, 51, 48, 45, 42, 38, 35, 32):
        template = alignment._detail(first, size, size).astype(np.float64)
        template -= template.mean()
        for row in range(64 - size + 1):
            for column in range(64 - size + 1):
                window = image[row : row + size, column : column + size].astype(np.float64)
                window = window - window.mean()
                best = max(best, (template * window).sum() / np.linalg.norm(template) / np.linalg.norm(window))
    found, share = alignment._best(first, second, 1.0, alignment._SCALES)
    assert alignment._worst_part(first, first) == pytest.approx(1.0)
    assert found == pytest.approx(best, abs=2e-4)  # float32 FFT of 64 x 64 numbers
    assert share == pytest.approx(0.5625)


def test_resizing_keeps_constants_and_matches_a_mean_of_blocks():
    matrix = thumbnails.resizing(64, 45)
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(thumbnails.resizing(7, 7), np.eye(7), atol=1e-7)
    greys = np.asarray(picture(5, 64, 64).convert("L"))[None]
    small = greys[0].reshape(16, 4, 16, 4).mean(axis=(1, 3)) - greys.mean()
    np.testing.assert_allclose(thumbnails.whole(greys)[0], (small / np.linalg.norm(small)).ravel(), atol=1e-5)
    mirrored = thumbnails.whole(greys[:, :, ::-1])
    np.testing.assert_allclose(thumbnails.whole(greys, mirrored=True), mirrored, atol=1e-5)
    assert thumbnails.windows(greys).shape == (1, 14, 256)
