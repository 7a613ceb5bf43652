"""Attention and its rollout against the model."""

import numpy as np
import paddle
import pytest

from measures import attention
from methods import load_models
from pages import drawing

pytestmark = pytest.mark.quick


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
