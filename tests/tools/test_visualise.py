"""Pictures of what models see: pixels, masks and attention, by hand and by NumPy."""

import itertools
import re

import numpy as np
import paddle
import pytest
from PIL import Image

import mae
from errors import UserError
from measures import attention, image_sets
from methods import dispatch, load_models
from pages import drawing
from pipeline import sources, transforms
from tools import visualise

pytestmark = pytest.mark.quick
NOTHING = ("TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)


@pytest.fixture
def trained(tiny_run):
    """Return a function: mode and overrides to the directory of a run that did nothing."""

    def make(mode="pretrain", *opts):
        run = tiny_run(mode, *NOTHING, *opts)
        dispatch.train_or_evaluate(run)
        return run.directory

    return make


def test_visible_pixels_are_those_of_the_photo(trained, image_folder, tmp_path):
    run = trained()
    model, config = load_models.load_autoencoder(run)
    source = image_sets.open_images(config.clone(), "val", needs_labels=False)
    images = drawing.draw_images(config, 3)
    original, masked, _, pasted = drawing.draw_panels(model, config, images)
    chosen = np.random.default_rng(0).permutation(len(source))[:3]
    pixels = transforms.eval_transform(config).views[0]
    for picture, index in zip(original, chosen, strict=True):
        assert np.array_equal(picture, pixels(sources.read_image(source, index, 3), None))
    visible = ~(masked == 128).all(axis=-1)
    assert 0.2 < visible.mean() < 0.3
    assert np.array_equal(original[visible], pasted[visible])
    assert drawing.make_grid([original, pasted]).size == (2 * (6 * 16 + 2), 3 * (6 * 16 + 2))


def test_patches_get_their_own_mean_and_contrast_back(trained):
    """A model that predicts the target itself reconstructs the photo, with normalised pixels, too."""
    model, config = load_models.load_autoencoder(trained())
    assert model.norm_pix_loss
    images = paddle.to_tensor(drawing.draw_images(config, 2))
    target = mae.patchify(images, model.patch_embedding.patch_size)
    mean, std = mae.patch_statistics(target)

    class Perfect:
        patch_embedding, norm_pix_loss = model.patch_embedding, True

        def __call__(self, images, mask_ratio=None, noise=None):
            return None, (target - mean) / std, paddle.ones([2, target.shape[1]])

    reconstruction, _ = drawing.reconstruct(Perfect(), images)
    np.testing.assert_allclose(reconstruction.numpy(), images.numpy(), atol=1e-5)


def test_blocks_are_hidden_together():
    noise = drawing.draw_noise(2, (8, 8), kind="block").reshape(2, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4)
    for blocks in noise.reshape(2, 4, 16):
        order = np.argsort(blocks.mean(axis=1))
        assert all(blocks[low].max() < blocks[high].min() for low, high in itertools.pairwise(order))
    same = drawing.draw_noise(3, (4, 4), same=True)
    assert np.array_equal(same[0], same[2])
    assert not np.array_equal(*drawing.draw_noise(2, (4, 4)))


def test_a_drawn_mask_hides_what_is_white(trained, tmp_path):
    drawn = np.zeros((32, 32), np.uint8)
    drawn[:8, 16:] = 255  # the grid has 4 x 4 patches; the two on the right of the first row
    Image.fromarray(drawn).save(tmp_path / "mask.png")
    noise, ratio = visualise.read_mask(str(tmp_path / "mask.png"), (4, 4))
    assert ratio == 2 / 16
    model, config = load_models.load_autoencoder(trained())
    _, masked, _, _ = drawing.draw_panels(model, config, drawing.draw_images(config, 1), mask_ratio=ratio, noise=noise)
    hidden = (masked[0] == 128).all(axis=-1)
    assert hidden[:4, 8:].all()
    assert hidden.sum() == 4 * 8
    Image.fromarray(drawn * 0).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match="hides none of 16 patches"):
        visualise.read_mask(str(tmp_path / "mask.png"), (4, 4))
    with pytest.raises(UserError, match="neither random nor block, nor a picture"):
        visualise.read_mask("nowhere.png", (4, 4))


def test_attention_is_that_of_the_model_and_rollout_is_the_product(trained):
    model, config = load_models.load_encoder(trained("finetune"))
    images = paddle.to_tensor(drawing.draw_images(config, 2))
    with paddle.no_grad():
        scores = list(attention.attention_logits(model, images))
        tokens = model.embed(images)
        normed = model.encoder.layers[0].attn_norm(tokens).numpy().astype(np.float64)
    attn = model.encoder.layers[0].attn
    qkv = normed @ attn.qkv.weight.numpy() + attn.qkv.bias.numpy()
    query, key, _ = qkv.reshape(2, 17, 3, attn.num_heads, -1).transpose(2, 0, 3, 1, 4)
    expected = query @ key.transpose(0, 1, 3, 2) / np.sqrt(attn.head_dim)
    np.testing.assert_allclose(scores[0].numpy(), expected, atol=1e-5)

    def softmax(values):
        values = np.exp(values - values.max(axis=-1, keepdims=True))
        return values / values.sum(axis=-1, keepdims=True)

    joint = np.eye(17)
    for logits in scores:
        joint = (softmax(logits.numpy().astype(np.float64)).mean(axis=1) + np.eye(17)) / 2 @ joint
    found = attention.rollout(scores, (4, 4))
    np.testing.assert_allclose(found.reshape(2, 16), joint[:, 0, 1:], atol=1e-6)
    maps = attention.class_token_maps(scores[-1], (4, 4))
    np.testing.assert_allclose(maps.reshape(2, -1, 16), softmax(scores[-1].numpy())[:, :, 0, 1:], atol=1e-6)


def test_page_and_pictures(trained, image_folder, tmp_path):
    run, page = trained(), tmp_path / "page.html"
    photo = next((image_folder / "val" / "dog").iterdir())
    flags = [str(run), str(photo), str(image_folder / "val" / "cat"), "-out", str(page), "-num", "3"]
    assert visualise.main([*flags, "-mask_ratio", "0.5", "0.9", "-mask", "block", "-same_mask", "-attention"]) == page
    text = page.read_text()
    assert re.findall("<h2>(.*?)</h2>", text) == ["50% hidden", "90% hidden", "Attention"]
    assert text.count("data:image/png;base64") == 3
    assert "trained on normalised pixels" in text
    assert not re.search(r'(src|href)="(?!data:)', text)
    out = tmp_path / "x.png"
    plain = trained("pretrain", "MODEL.NORM_PIX_LOSS", False)
    visualise.main([str(plain), "-out", str(out), "-num", "2"])
    assert Image.open(out).size == (4 * (6 * 16 + 2), 2 * (6 * 16 + 2))
    visualise.main([str(plain), "-out", str(out), "-num", "1", "-attention"])
    assert Image.open(out).size == (6 * (6 * 16 + 2), 2 * (6 * 16 + 2)), "reconstruction above, attention below"
    visualise.main([str(trained("finetune")), "-out", str(out), "-num", "2", "-attention"])
    assert Image.open(out).size[1] == 2 * (6 * 16 + 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-num", "0"], "-num 0"),
        (["-mask_ratio", "1.5"], "-mask_ratio 1.5"),
        (["-out", "x"], "must be a .png or .html file"),
        (["-out", "nowhere/x.png"], "in a directory that exists"),
        (["-dataset", "mnist"], "must be one of imagenet2012"),
        (["-dataset", "folder", "-data_path", "nowhere"], "no such directory"),
        (["nowhere.jpg"], "no such file or directory"),
        (["-attention", "-layer", "9"], "layers 1 to"),
        (["-mask_ratio", "0.99"], "keeps 0 of 16 patches"),
    ],
)
def test_bad_arguments_are_named(trained, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        visualise.main([str(trained()), "-out", str(tmp_path / "x.png"), *flags])


def test_seeds_are_numbers_from_zero(trained, capsys):
    with pytest.raises(SystemExit):
        visualise.main([str(trained()), "-seed", "-1"])
    assert "'-1' is not an integer from 0" in capsys.readouterr().err


def test_images_that_cannot_be_read_are_left_out_on_request(trained, tmp_path, image_folder):
    bad = tmp_path / "0.jpg"
    bad.write_bytes(b"no image")
    flags = [str(trained()), str(bad), str(image_folder / "val" / "dog"), "-out", str(tmp_path / "x.png"), "-num", "3"]
    with pytest.raises(UserError, match=r"0\.jpg: cannot be read .*DATA\.BAD_IMAGES skip"):
        visualise.main(flags)
    visualise.main([*flags, "-opts", "DATA.BAD_IMAGES", "skip"])
    assert Image.open(tmp_path / "x.png").size[1] == 2 * (6 * 16 + 2)


def test_reconstructing_without_a_decoder_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match="reconstructing needs the decoder"):
        visualise.main([str(trained("finetune")), "-out", str(tmp_path / "x.png")])
