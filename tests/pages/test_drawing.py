"""Pictures of reconstructions: visible pixels, hidden patches, drawn masks."""

import itertools

import numpy as np
import paddle
import pytest
from PIL import Image

from errors import UserError
from layers.patches import patch_statistics, patchify
from measures import image_sets
from methods import load_models
from pages import drawing
from pages.reconstruction import draw_noise, reconstruct
from pipeline import sources, transforms
from tools import visualise

pytestmark = pytest.mark.quick


def test_visible_pixels_are_those_of_the_photo(trained, image_folder, tmp_path):
    run = trained()
    model, config = load_models.load_autoencoder(run)
    source = image_sets.open_images(config.clone(), "val", needs="none")
    images = drawing.draw_images(config, 3)
    original, masked, _, pasted, means = reconstruct(model, config, images).panels
    chosen = np.random.default_rng(0).permutation(len(source))[:3]
    pixels = transforms.eval_transform(config).views[0]
    for picture, index in zip(original, chosen, strict=True):
        assert np.array_equal(picture, pixels(sources.read_image(source, index, 3), None))
    visible = ~(masked == 128).all(axis=-1)
    assert 0.2 < visible.mean() < 0.3
    assert np.array_equal(original[visible], pasted[visible])
    assert np.array_equal(original[visible], means[visible])
    patches = means.reshape(3, 4, 4, 4, 4, 3)  # [B, rows, P, columns, P, C]
    hidden = ~visible.reshape(3, 4, 4, 4, 4)[:, :, 0, :, 0]
    assert (patches == patches[:, :, :1, :, :1]).all(axis=(2, 4, 5))[hidden].all()
    scalar = images.reshape(3, 3, 4, 4, 4, 4).mean(axis=(1, 3, 5))  # over the pixels and channels, normalised
    expected = scalar[..., None] * config.DATA.IMAGENET_STD + config.DATA.IMAGENET_MEAN
    assert np.abs(255 * np.clip(expected, 0, 1) - patches[:, :, 0, :, 0])[hidden].max() <= 1
    assert drawing.make_grid([original, pasted]).size == (2 * (6 * 16 + 2), 3 * (6 * 16 + 2))


def test_patches_get_their_own_mean_and_contrast_back(trained, monkeypatch):
    """A model that predicts the target itself reconstructs the photo, with normalised pixels, too."""
    model, config = load_models.load_autoencoder(trained())
    assert model.norm_pix_loss
    images = drawing.draw_images(config, 2)
    target = patchify(paddle.to_tensor(images), model.patch_embedding.patch_size)
    mean, std = patch_statistics(target)
    perfect = (target - mean) / std
    monkeypatch.setattr(
        type(model), "forward", lambda *args, **options: (paddle.zeros([]), perfect, paddle.ones(target.shape[:2]))
    )
    original, _, prediction, filled, _ = reconstruct(model, config, images).panels
    assert np.array_equal(original, prediction)
    assert np.array_equal(original, filled)


def test_blocks_are_hidden_together():
    noise = draw_noise(2, (8, 8), kind="block").reshape(2, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4)
    for blocks in noise.reshape(2, 4, 16):
        order = np.argsort(blocks.mean(axis=1))
        assert all(blocks[low].max() < blocks[high].min() for low, high in itertools.pairwise(order))
    same = draw_noise(3, (4, 4), same=True)
    assert np.array_equal(same[0], same[2])
    assert not np.array_equal(*draw_noise(2, (4, 4)))


def test_a_drawn_mask_hides_what_is_white(trained, tmp_path):
    drawn = np.zeros((32, 32), np.uint8)
    drawn[:8, 16:] = 255  # the grid has 4 x 4 patches; the two on the right of the first row
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    noise, ratio = visualise.read_mask(str(tmp_path / "mask.png"), (4, 4))
    assert ratio == 2 / 16
    model, config = load_models.load_autoencoder(trained())
    masked = reconstruct(model, config, drawing.draw_images(config, 1), ratio, noise).panels[1]
    hidden = (masked[0] == 128).all(axis=-1)
    assert hidden[:4, 8:].all()
    assert hidden.sum() == 4 * 8
    Image.fromarray(drawn * 0).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="hides none of 16 patches"):
        visualise.read_mask(str(tmp_path / "mask.png"), (4, 4))
    with pytest.raises(UserError, match="neither random nor block, nor a picture"):
        visualise.read_mask("nowhere.png", (4, 4))


@pytest.mark.parametrize("is_normalised", [True, False])
def test_the_error_of_the_means_is_that_of_numpy(trained, is_normalised):
    model, config = load_models.load_autoencoder(trained())
    model.norm_pix_loss = is_normalised
    images = drawing.draw_images(config, 3)
    noise = draw_noise(3, model.patch_embedding.grid_hw)
    result = reconstruct(model, config, images, noise=noise)
    loss, _, mask = model(paddle.to_tensor(images), noise=paddle.to_tensor(noise))
    assert result.error == pytest.approx(float(loss), rel=1e-6)
    patches = images.reshape(3, 3, 4, 4, 4, 4).transpose(0, 2, 4, 3, 5, 1).reshape(3, 16, 48)
    variances = patches.var(axis=2, ddof=1 if is_normalised else 0)
    errors = patches.var(axis=2) / (variances + 1e-6) if is_normalised else variances
    assert result.means_error == pytest.approx((errors * mask.numpy()).sum() / mask.numpy().sum(), rel=1e-4)
