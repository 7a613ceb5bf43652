"""tools.pca: colours of patches against scikit-learn, on images of the run and on photos."""

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA

from errors import UserError
from measures.extraction import extract, paddle
from measures.patch_colours import colours
from methods import load_models
from pages import drawing
from tests.helpers.browser import BROWSER, check_page
from tools import pca

pytestmark = pytest.mark.quick


def test_colours_are_the_whitened_components_of_scikit_learn():
    rng = np.random.default_rng(0)
    features = rng.exponential(1.0, (400, 6)) ** 2 @ rng.normal(0, 1, (6, 20)) + 5.0
    components = PCA(3, whiten=True).fit_transform(features)
    components *= np.sign((components**3).sum(axis=0))
    expected = np.clip((components / 2.3 + 1) / 2, 0, 1) * 255
    assert np.abs(colours(features).astype(float) - expected).max() <= 1  # its deviation has N - 1
    assert np.array_equal(colours(-features), colours(features)), "no sign is left to chance"


def test_what_has_no_components_is_grey():
    assert (colours(np.full((9, 4), 3.0)) == 128).all()
    line = np.outer([0.0, 0.0, 0.0, 1.0], [1.0, 2.0])
    assert (colours(line)[:, 1:] == 128).all()
    assert len(np.unique(colours(line)[:, 0])) == 2


@pytest.mark.parametrize("joint", [False, True])
def test_pictures_are_those_of_the_patches(trained, joint):
    model, config = load_models.load_encoder(trained("finetune"))
    images = drawing.draw_images(config, 3)
    original, maps, _ = pca.draw(model, config, images, 1, joint)
    tokens = extract(model, paddle.to_tensor(images), [1], "tokens", norm=True)[1][:, 1:].numpy()
    expected = [colours(tokens.reshape(-1, 32)).reshape(3, 16, 3)] if joint else [list(map(colours, tokens))]
    found = maps[:, ::4, ::4].reshape(3, 16, 3).astype(int)
    assert np.abs(found - np.asarray(expected[0], int)).max() <= 1
    assert original.shape == maps.shape == (3, 16, 16, 3)


def test_photos_layers_and_sizes(trained, image_folder, tmp_path):
    run, photos = str(trained()), image_folder / "val" / "dog"
    page = pca.main([run, str(photos), "-num", "2", "-joint", "-image_size", "32", "-out", str(tmp_path / "x.html")])
    assert sorted(path.name for path in photos.iterdir())[0] in page.read_text()
    if BROWSER is not None:
        check_page(page, tmp_path)
    picture = pca.main([run, "-num", "2", "-layer", "-1", "-out", str(tmp_path / "x.png")])
    assert Image.open(picture).size == (3 * (6 * 16 + 2), 24 + 2 * (6 * 16 + 2))
    with pytest.raises(UserError, match="layer 9: the encoder has layers 1 to"):
        pca.main([run, "-layer", "9", "-out", str(tmp_path / "y.png")])
    with pytest.raises(UserError, match="-num 0"):
        pca.main([run, "-num", "0"])
