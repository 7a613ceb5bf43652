"""Missing pixels: nothing to the loss, hidden first, means to all else; the loss of each channel."""

import numpy as np
import paddle
import pytest

from config import get_config
from layers.patches import patch_statistics
from mae import build_mae_pretrain
from methods import dispatch
from methods.pretrain import channel_losses
from pipeline.pixel_array import PixelFormat
from tests.conftest import TINY, assert_close

pytestmark = pytest.mark.quick
FIVE = ["DATA.IMAGE_CHANNELS", 5, "DATA.IMAGENET_MEAN", [0.5] * 5, "DATA.IMAGENET_STD", [0.25] * 5]
GROUPS = ["MODEL.CHANNEL_GROUPS", [[0, 3], [4, 1, 2]]]


def build(*options):
    paddle.seed(0)
    model = build_mae_pretrain(get_config(None, [*TINY, "MODEL.TYPE", "PRETRAIN", *FIVE, *options]))
    model.has_missing = True
    return model


def images_with_holes(share=0.3):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 5, 16, 16)).astype(np.float32)
    images[rng.random(images.shape) < share] = np.nan
    images[0, :, :4, :4] = np.nan  # a whole patch
    images[1, 2] = np.nan  # a whole channel
    return images


def expected_loss(images, pred, mask, norm_pix, groups):
    """Return the loss by loops over patches in float64."""
    total = count = 0
    for b in range(3):
        for g, own in enumerate(groups):
            for n in range(16):
                row, column = 4 * (n // 4), 4 * (n % 4)
                target = images[b, own, row : row + 4, column : column + 4].astype(np.float64)
                known = np.isfinite(target)
                if not mask[b, 16 * g + n] or not known.any():
                    continue
                found = pred[b, n].reshape(4, 4, 5)[..., own].transpose(2, 0, 1).astype(np.float64)
                if norm_pix:
                    mean, std = np.nanmean(target), np.sqrt(np.nanvar(target, ddof=1) + 1e-6)
                    target = (target - mean) / std
                total += ((found - target)[known] ** 2).mean()
                count += 1
    return total / count


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("options", [[], GROUPS, ["MODEL.PREDICT_RATIO", 0.5], ["MODEL.DECODER.KIND", "cross"]])
def test_missing_pixels_are_nothing_to_the_loss(norm_pix, options):
    model = build("MODEL.NORM_PIX_LOSS", norm_pix, *options)
    images = images_with_holes()
    loss, pred, _ = model(paddle.to_tensor(images))
    predicted = model.predicted.numpy()
    groups = GROUPS[1] if options == GROUPS else [[0, 1, 2, 3, 4]]
    assert_close(loss.numpy(), expected_loss(images, pred.numpy(), predicted, norm_pix, groups), 1e-5)
    loss.backward()
    assert all(
        np.isfinite(parameter.grad.numpy()).all() for parameter in model.parameters() if parameter.grad is not None
    )
    whole = np.nan_to_num(images)
    filled = model(paddle.to_tensor(np.where(np.isnan(images), 0, images)), noise=paddle.rand([3, predicted.shape[1]]))
    assert np.isfinite(filled[0].numpy())
    assert whole.shape == images.shape


@pytest.mark.parametrize(("options", "count"), [([], 16), (GROUPS, 32)])
def test_patches_without_a_known_pixel_are_hidden(options, count):
    model = build(*options)
    images = np.random.default_rng(0).normal(size=(3, 5, 16, 16)).astype(np.float32)
    images[:, :, :8, :12] = np.nan
    for _ in range(5):
        _, _, mask = model(paddle.to_tensor(images))
        assert (mask.numpy().reshape(3, -1, 4, 4)[:, :, :2, :3] == 1).all()
        assert mask.numpy().sum() == 3 * count * 0.75


def test_without_missing_pixels_nothing_changes():
    for options in ([], GROUPS, ["MODEL.PREDICT_RATIO", 0.5]):
        model = build(*options)
        images, noise = paddle.randn([3, 5, 16, 16]), paddle.rand([3, 32 if options == GROUPS else 16])
        with_mask = model(images, noise=noise)
        model.has_missing = False
        without = model(images, noise=noise)
        assert_close(with_mask[0].numpy(), without[0].numpy(), 1e-6)
        assert np.array_equal(with_mask[1].numpy(), without[1].numpy())


@pytest.mark.parametrize("options", [[], GROUPS, ["MODEL.DECODER.KIND", "cross", "MODEL.PREDICT_RATIO", 0.5]])
def test_the_loss_of_each_channel(options):
    model = build("MODEL.NORM_PIX_LOSS", False, *options)
    images = images_with_holes()
    _, pred, _ = model(paddle.to_tensor(images))
    found = channel_losses(model, paddle.to_tensor(images), pred)
    predicted, pixels = model.predicted.numpy(), pred.numpy().reshape(3, 4, 4, 4, 4, 5)
    pixels = pixels.transpose(0, 5, 1, 3, 2, 4).reshape(3, 5, 16, 16)
    for channel in range(5):
        group = 0 if options != GROUPS or channel in GROUPS[1][0] else 1
        hidden = predicted[:, 16 * group : 16 * group + 16].reshape(3, 4, 4).repeat(4, axis=1).repeat(4, axis=2)
        errors = (pixels[:, channel] - images[:, channel])[hidden & np.isfinite(images[:, channel])]
        assert_close(found[f"loss_channel_{channel}"].numpy(), (errors**2).mean(), 1e-5)


def test_statistics_of_few_known_pixels():
    target = paddle.to_tensor([[[5.0, 1.0, 2.0, 3.0]]])
    for known, mean, std in (([1, 0, 0, 0], 5.0, 1e-3), ([1, 1, 0, 0], 3.0, 8**0.5), ([0, 0, 0, 0], 0.0, 1e-3)):
        found = patch_statistics(target, paddle.to_tensor([[known]], "float32"))
        assert_close(np.array([value.numpy().item() for value in found]), [mean, std], 1e-5)


def test_crops_keep_what_is_missing():
    array = np.arange(64, dtype=np.float32).reshape(8, 8, 1)
    array[:4, :4] = -1
    image = PixelFormat(1, (0.0,), (63.0,), nodata=-1, fill=(0.5,)).pixels(array)
    marked = np.asarray(image)
    assert np.array_equal(np.isnan(marked), array == -1)
    assert (image.pixels[:4, :4] == 0.5).all()
    small = np.asarray(image.resize((4, 4), 3))
    assert np.isnan(small[:2, :2]).all()
    assert not np.isnan(small[2:, 2:]).any()
    assert np.array_equal(np.isnan(np.asarray(image.crop((2, 2, 6, 6)))), array[2:6, 2:6] == -1)


def test_runs_log_each_channel_and_leave_missing_pixels_out(tiny_run, tmp_path):
    rng = np.random.default_rng(0)
    for index in range(16):
        (tmp_path / "train").mkdir(exist_ok=True)
        array = rng.integers(1, 1000, (18, 18, 5), np.uint16)
        array[:, :, 4] = 0  # a band that no file has
        np.save(tmp_path / "train" / f"{index}.npy", array)
    options = ["DATA.DATASET", "folder", "DATA.DATA_PATH", str(tmp_path), "DATA.PIXELS", "array", *FIVE]
    options += ["DATA.PIXEL_RANGE", [0, 1000], "DATA.NODATA", 0, "TRAIN.NUM_EPOCHS", 1]
    run = tiny_run("pretrain", *options, "TRAIN.CHANNEL_DROP", 0.2)
    dispatch.train_or_evaluate(run)
    text = (run.directory / "log.txt").read_text()
    assert "loss_channel_0 " in text
    assert "loss_channel_4 0.0000" in text
