"""Loss, prediction, mask and every gradient against an independent implementation in torch."""

import importlib.util

import numpy as np
import paddle
import pytest

from tests.conftest import assert_close
from tests.helpers import torch_mae
from tests.helpers.small_models import make_vit

FLOAT32_RELATIVE = 1e-5  # two float32 implementations that add in different orders

needs_torch = pytest.mark.skipif(
    not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")),
    reason="torch and transformers are not installed (requirements/torch.txt); golden files are compared",
)


def run_ours(norm_pix_loss: bool) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    model, weights = torch_mae.our_model(norm_pix_loss)
    images, noise = torch_mae.make_inputs()
    loss, pred, mask = model(paddle.to_tensor(images), noise=paddle.to_tensor(noise))
    loss.backward()
    results = {"loss": loss.numpy(), "pred": pred.numpy(), "mask": mask.numpy()}
    parameters = dict(model.named_parameters())
    results |= {f"grad/{name}": parameters[name].grad.numpy() for name in weights}
    for name in ("encoder_position_embedding", "decoder_position_embedding"):
        results[name] = model.state_dict()[name].numpy()
    return results, weights


def compare(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert set(ours) == set(theirs)
    assert np.array_equal(ours["mask"], theirs["mask"])
    for name, expected in theirs.items():
        assert_close(ours[name].reshape(expected.shape), expected, FLOAT32_RELATIVE, name)


@pytest.mark.quick
@pytest.mark.parametrize("target", ["norm", "raw"])
def test_matches_golden_file_of_torch(target):
    ours, _ = run_ours(target == "norm")
    with np.load(torch_mae.GOLDEN / f"mae_{target}.npz") as golden:
        compare(ours, dict(golden))


@needs_torch
@pytest.mark.parametrize("target", ["norm", "raw"])
def test_matches_torch(target):
    ours, weights = run_ours(target == "norm")
    compare(ours, torch_mae.run_torch(weights, target == "norm"))


@needs_torch
def test_classifier_matches_torch_vit():
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    paddle.seed(3)
    ours = make_vit((16, 16), num_classes=5, embed_dim=32, depth=2, num_heads=4)
    theirs = ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            image_size=16,
            patch_size=4,
            num_labels=5,
            layer_norm_eps=1e-6,
            hidden_act="gelu",
        )
    ).eval()
    parameters = dict(theirs.named_parameters())
    for name, value in ours.state_dict().items():
        if name.startswith("classifier."):
            names, parts = [name], [value.numpy().T]
        else:
            names, parts = torch_mae.torch_names(name), torch_mae.to_torch_layout(name, value.numpy())
        for torch_name, part in zip(names, parts, strict=True):
            parameters[torch_name].data.copy_(torch.tensor(np.ascontiguousarray(part)))
    images = np.random.default_rng(0).normal(0, 1, (2, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(images)).logits.numpy()
    assert_close(ours(paddle.to_tensor(images)).numpy(), expected, FLOAT32_RELATIVE)
