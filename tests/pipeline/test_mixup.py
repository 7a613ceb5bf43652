import numpy as np
import paddle
import pytest

from methods.classifier import soft_cross_entropy
from pipeline.mixup import Mixup, random_erase, smooth_one_hot
from tests.conftest import assert_close

pytestmark = pytest.mark.quick


def batch(size, height=8, width=12):
    """Return images whose pixels are all their own number, and labels that are it."""
    images = np.arange(size, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, height, width), np.float32)
    return paddle.to_tensor(images), paddle.arange(size)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("size", [1, 5, 6])
@pytest.mark.parametrize(
    ("mixup_alpha", "cutmix_alpha", "minmax"), [(0.8, 0.0, None), (0.0, 1.0, None), (0.0, 0.0, [0.2, 0.8])]
)
def test_targets_tell_the_pixels(mode, size, mixup_alpha, cutmix_alpha, minmax):
    mixup = Mixup(size, mixup_alpha, cutmix_alpha, minmax, mode=mode, smoothing=0.0)
    for seed in range(5):
        images, labels = batch(size)
        mixed, targets = mixup(images, labels, np.random.default_rng(seed))
        # The mean pixel of an image is the mean of the two numbers, weighed as the target says.
        expected = (targets.numpy() * np.arange(size)).sum(axis=1)
        assert_close(mixed.numpy().mean(axis=(1, 2, 3)), expected, 1e-5)
        assert_close(targets.numpy().sum(axis=1), np.ones(size), 1e-6)


def test_partner_is_the_mirror_image():
    images, labels = batch(4)
    _, targets = Mixup(4, 0.8, 0.0, smoothing=0.0)(images, labels, np.random.default_rng(0))
    lam = targets[0, 0].item()
    assert_close(targets.numpy()[1], [0, lam, 1 - lam, 0], 1e-6)


def test_elem_draws_per_image_and_batch_once():
    def lambdas(mode):
        images, labels = batch(6)
        _, targets = Mixup(6, 0.8, 0.0, mode=mode, smoothing=0.0)(images, labels, np.random.default_rng(0))
        return np.round(targets.numpy()[np.arange(6), np.arange(6)], 5)

    assert len(set(lambdas("batch"))) == 1
    assert len(set(lambdas("elem"))) == 6
    pair = lambdas("pair")
    assert len(set(pair)) == 3
    assert np.array_equal(pair, pair[::-1])


def test_probabilities():
    images, labels = batch(2)
    never = Mixup(2, 0.8, 1.0, prob=0.0, smoothing=0.0)(images, labels, np.random.default_rng(0))
    assert (never[0] == images).all()
    switch = Mixup(2, 0.8, 1.0, switch_prob=0.25)
    generator = np.random.default_rng(0)
    boxes = sum(switch._draw(8, 8, generator)[1] is not None for _ in range(400))
    assert 74 < boxes < 126  # a quarter of 400, three standard errors
    assert Mixup(2, 0.0, 0.0).prob == 0.0


def test_label_smoothing():
    targets = smooth_one_hot(paddle.to_tensor([2]), 4, 0.1).numpy()[0]
    assert_close(targets, [0.025, 0.025, 0.925, 0.025], 1e-6)


def test_soft_cross_entropy_by_hand():
    logits, targets = np.array([[1.0, 2.0, 0.5]], np.float32), np.array([[0.2, 0.7, 0.1]], np.float32)
    log_prob = logits - np.log(np.exp(logits).sum())
    expected = -(targets * log_prob).sum()
    assert_close(soft_cross_entropy(paddle.to_tensor(logits), paddle.to_tensor(targets)).numpy(), expected, 1e-6)


def erase(value, rng, count=1, **options):
    return random_erase(paddle.full([count, 3, 40, 40], value), rng, **options).numpy()


def test_random_erase_draws_noise_per_pixel_over_2_to_33_percent():
    paddle.seed(0)
    erased = erase(7.0, np.random.default_rng(0), 200, prob=1.0) != 7.0
    areas = erased.any(axis=1).mean(axis=(1, 2))
    assert 0.015 < min(areas) < 0.06
    assert 0.28 < max(areas) < 0.35
    boxes = [image.any(axis=0) for image in erased]
    assert all(box.sum() == box.any(axis=0).sum() * box.any(axis=1).sum() for box in boxes), "rectangles"
    assert len({(box.any(axis=0).argmax(), box.any(axis=1).argmax()) for box in boxes}) > 100
    assert (erase(7.0, np.random.default_rng(0), prob=0.0) == 7.0).all()
    assert (erase(7.0, np.random.default_rng(0), prob=1.0, max_count=0) == 7.0).all()
    const = erase(7.0, np.random.default_rng(0), prob=1.0, mode="const")
    assert set(np.unique(const)) == {0.0, 7.0}
    per_channel = erase(7.0, np.random.default_rng(0), prob=1.0, mode="rand")[0]
    assert all(len(np.unique(channel)) == 2 for channel in per_channel)
    assert len(np.unique(per_channel)) == 4


def test_random_erase_leaves_the_share_of_images_that_it_should():
    erased = (erase(7.0, np.random.default_rng(0), 400, prob=0.25) != 7.0).any(axis=(1, 2, 3))
    assert 0.18 < erased.mean() < 0.32
    several = erase(7.0, np.random.default_rng(0), 50, prob=1.0, mode="const", max_count=3) == 0.0
    assert 0.0 < several.any(axis=1).mean() < 1 / 3
