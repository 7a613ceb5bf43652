import numpy as np
import paddle
import pytest

import mae
from layers.patches import gather_tokens, patch_statistics, patchify, permute_tokens, unpatchify
from tests.conftest import assert_close
from tests.helpers.small_models import mae_architecture

pytestmark = pytest.mark.quick


@pytest.fixture
def model():
    paddle.seed(0)
    return mae.MAEPretrain(mae_architecture((16, 24), (32, 2, 4), (16, 1, 2), channels=1))


def test_non_square_single_channel_images(model):
    loss, pred, mask = model(paddle.rand([2, 1, 16, 24]))
    assert loss.shape == []
    assert pred.shape == [2, 24, 16]
    assert mask.sum(axis=1).tolist() == [18.0, 18.0]


def test_patchify_puts_the_channel_last_and_is_inverted():
    images = paddle.arange(2 * 3 * 4 * 6, dtype="float32").reshape([2, 3, 4, 6])
    patches = patchify(images, 2)
    assert patches.shape == [2, 6, 12]
    expected = [
        images[1, channel, 2 + row, 4 + column].item() for row in (0, 1) for column in (0, 1) for channel in range(3)
    ]
    assert patches[1, 5].tolist() == expected
    assert (unpatchify(patches, 2, (2, 3)) == images).all()


@pytest.mark.parametrize(
    ("num_patches", "ratio", "kept"),
    [(196, 0.75, 49), (256, 0.75, 64), (196, 0.9, 19), (100, 0.9, 10), (100, 0.8, 20), (9, 0.0, 9)],
)
def test_number_of_visible_patches(num_patches, ratio, kept):
    assert mae.num_visible(num_patches, ratio) == kept


def test_smallest_noise_stays_visible():
    noise = paddle.to_tensor([[0.4, 0.1, 0.9, 0.3]])
    shuffle, restore, mask = mae.random_masking(noise, 2)
    assert shuffle.tolist() == [[1, 3]]
    assert mask.tolist() == [[1.0, 0.0, 1.0, 0.0]]
    assert restore.tolist() == [[2, 0, 3, 1]]


def test_given_mask_is_used(model):
    mask = np.ones([2, 24], np.float32)
    mask[0, [1, 5, 7]] = 0
    mask[1, [0, 2, 23]] = 0
    assert model(paddle.rand([2, 1, 16, 24]), mask=paddle.to_tensor(mask))[2].numpy().tolist() == mask.tolist()
    mask[1, 3] = 0
    with pytest.raises(ValueError, match="the same number of patches"):
        model(paddle.rand([2, 1, 16, 24]), mask=paddle.to_tensor(mask))


def test_hidden_pixels_do_not_reach_the_prediction(model):
    model.eval()
    images, noise = paddle.rand([1, 1, 16, 24]), paddle.rand([1, 24])
    _, pred, mask = model(images, noise=noise)
    hidden = unpatchify(mask.unsqueeze(-1).expand([1, 24, 16]), 4, (4, 6))
    changed = model(images + 5 * hidden, noise=noise)[1]
    assert (changed == pred).all()
    assert not (model(images + 0.1 * (1 - hidden), noise=noise)[1] == pred).all()


def test_all_patches_may_be_visible(model):
    model.eval()
    images = paddle.rand([1, 1, 16, 24])
    loss, pred, mask = model(images, mask_ratio=1e-9)
    assert (float(loss), float(mask.sum())) == (0.0, 0.0)
    model.mask_token.set_value(model.mask_token + 1.0)
    assert (model(images, mask_ratio=1e-9, noise=paddle.arange(24.0).unsqueeze(0))[1] - pred).abs().max() < 1e-5
    pred.square().mean().backward()
    assert not model.mask_token.grad.any()


def test_visible_pixels_do_not_count_in_the_loss(model):
    model.norm_pix_loss = False
    target, pred = paddle.rand([1, 1, 16, 24]), paddle.rand([1, 24, 16])
    mask = (paddle.arange(24) < 6).astype("float32").unsqueeze(0)
    expected = np.mean((patchify(target, 4).numpy()[0, :6] - pred.numpy()[0, :6]) ** 2)
    assert_close(model.loss(target, pred, mask).numpy(), expected, 1e-6)


def test_patch_statistics_use_the_unbiased_variance():
    patches = np.random.default_rng(0).random((1, 3, 8)).astype(np.float32)
    mean, std = patch_statistics(paddle.to_tensor(patches))
    assert_close(mean[..., 0].numpy(), patches.mean(-1), 1e-6)
    assert_close(std[..., 0].numpy(), np.sqrt(patches.var(-1, ddof=1) + 1e-6), 1e-6)


def test_masks_differ_between_images_and_draws(model):
    images = paddle.rand([4, 1, 16, 24])
    first, second = model(images)[2].numpy(), model(images)[2].numpy()
    assert len({tuple(row) for row in (*first.tolist(), *second.tolist())}) == 8


def test_initialisation_is_the_official_one():
    paddle.seed(0)
    model = mae.MAEPretrain(mae_architecture((32, 32), (64, 1, 4), (32, 1, 4), 8))
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    fan_in, fan_out = 3 * 8 * 8, 64
    bound = np.sqrt(6 / (fan_in + fan_out))  # Xavier on the projection as a linear layer
    patch = state["patch_embedding.patch_embedding.weight"]
    assert 0.95 * bound < np.abs(patch).max() <= bound
    qkv = state["encoder.layers.0.attn.qkv.weight"]
    assert 0.95 * np.sqrt(6 / (64 + 192)) < np.abs(qkv).max() <= np.sqrt(6 / (64 + 192))
    assert np.abs(state["patch_embedding.patch_embedding.bias"]).max() <= 1 / np.sqrt(fan_in)
    assert not state["encoder.layers.0.attn.qkv.bias"].any()
    assert 0.012 < state["mask_token"].std() < 0.028
    assert 0.012 < state["cls_token"].std() < 0.028


def test_position_tables_are_saved_but_not_trained(model):
    tables = {"encoder_position_embedding", "decoder_position_embedding"}
    assert tables <= set(model.state_dict())
    assert not tables & {name for name, _ in model.named_parameters()}


def test_wrong_image_size_is_named(model):
    with pytest.raises(ValueError, match=r"expected images of shape \[B, 1, 16, 24\]"):
        model(paddle.rand([1, 3, 16, 24]))


def test_permuted_tokens_and_their_gradients_are_those_of_a_gather():
    """Bit by bit: a permutation adds nothing up."""
    order = paddle.to_tensor([[2, 0, 1, 3], [3, 2, 1, 0]])
    results = []
    for permute in (permute_tokens, gather_tokens):
        paddle.seed(0)
        tokens, upstream = paddle.randn([2, 4, 3]), paddle.randn([2, 4, 3])
        tokens.stop_gradient = False
        permuted = permute(tokens, order)
        (permuted * upstream).sum().backward()
        results.append((permuted.numpy().tobytes(), tokens.grad.numpy().tobytes()))
    assert results[0] == results[1]
    assert permute_tokens(paddle.ones([2, 5, 3]), order).shape == [2, 4, 3]
