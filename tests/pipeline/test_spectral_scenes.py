"""Generated scenes of 13 bands: the same each time, and not to be told by their mean."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import datasets
from config import get_config
from errors import UserError
from methods import dispatch
from pages import drawing
from pipeline.spectral_scenes import CLASSES, draw_spectral_scene, spectra
from tests.conftest import TINY
from tests.helpers.recipes import recipe
from tools import check_dataset

pytestmark = pytest.mark.quick


def test_scenes_are_the_same_each_time_and_hold_every_class():
    first, again = (datasets.open_source("spectral_scenes", "", "val", num_classes=10) for _ in range(2))
    assert len(first) == 1000
    assert np.bincount(first.labels).tolist() == [100] * 10
    assert first.class_names == CLASSES
    for index in (0, 7, 999):
        assert first.image(index).shape == (32, 32, 13)
        assert first.image(index).dtype == np.uint16
        assert np.array_equal(first.image(index), again.image(index))
    train = datasets.open_source("spectral_scenes", "", "train", num_classes=10)
    assert not np.array_equal(train.image(0), first.image(0))
    curves = spectra()
    assert np.array_equal(curves[0, 1:4], curves[1, 1:4])
    assert not np.allclose(curves[0], curves[1])


def test_the_mean_of_a_scene_does_not_tell_its_class():
    means = np.stack([draw_spectral_scene(0, index, index % 10).mean(axis=(0, 1)) for index in range(800)])
    means, labels = (means - means.mean(axis=0)) / means.std(axis=0), np.arange(800) % 10
    model = LogisticRegression(max_iter=2000).fit(means[:600], labels[:600])
    assert model.score(means[600:], labels[600:]) < 0.35  # chance is 0.1


def test_recipes_read_them_and_photos_are_refused():
    config = get_config(recipe("vit_micro_patch4_32_finetune_arrays"))
    images = drawing.draw_images(config, 200)
    assert images.shape == (200, 13, 32, 32)
    assert abs(images.mean()) < 0.1
    assert 0.8 < images.std() < 1.1  # resizing before the crop smooths the noise
    assert (
        check_dataset.main(["-dataset", "spectral_scenes", "-cfg", str(recipe("vit_micro_patch4_32_pretrain_groups"))])
        == 0
    )
    with pytest.raises(UserError, match="its images are arrays, not photos; set DATA.PIXELS array"):
        dispatch.loaders.open_source(get_config(None, [*TINY, "DATA.DATASET", "spectral_scenes"]), "train", "label")
