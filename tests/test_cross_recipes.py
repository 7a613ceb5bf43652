"""The recipes of configs/cross/, and what the optimizer does with each parameter of a cross decoder: literal tables."""

import math

import pytest

from config import get_config
from layers.patch_counts import num_predicted, num_visible
from mae import MAEPretrain, build_mae_pretrain
from optim import param_groups
from runtime import ROOT
from storage.architecture import Architecture, Tower, of_config

pytestmark = pytest.mark.quick
# Encoder; decoder; visible, predicted and ignored patches; learning rate at the peak, images per update, epochs.
RECIPES = {
    "vit_tiny_patch16_224": ((192, 12, 12), (256, 12, 8), (49, 49, 98), (8e-4, 4096, 800)),
    "vit_small_patch16_224": ((384, 12, 6), (256, 12, 8), (49, 147, 0), (2.4e-3, 4096, 800)),
    "vit_base_patch16_224": ((768, 12, 12), (512, 12, 16), (49, 147, 0), (2.4e-3, 4096, 800)),
    "vit_base_patch16_448": ((768, 12, 12), (512, 12, 16), (196, 196, 392), (8e-4, 4096, 400)),
    "vit_large_patch16_224": ((1024, 24, 16), (512, 12, 16), (49, 147, 0), (2.4e-3, 4096, 800)),
    "vit_huge_patch14_224": ((1280, 32, 16), (512, 12, 16), (64, 64, 128), (8e-4, 4096, 800)),
    "vit_micro_patch4_32": ((128, 4, 4), (64, 2, 4), (16, 16, 32), (1e-3, 128, 30)),
    "digits": ((128, 4, 4), (64, 2, 4), (14, 10, 12), (2e-3, 64, 100)),
}


def test_every_recipe_is_in_the_table():
    found = {path.stem for path in (ROOT / "configs" / "cross").iterdir()}
    assert found == {f"{name}_pretrain_cross" for name in RECIPES} | ONE_GPU.keys()


# Blocks of the decoder, share of predicted patches, learning rate at the peak, stages; not published.
ONE_GPU = {
    "vit_small_patch16_224_pretrain_one_gpu": (4, 0.25, 8e-4, [[0, 160], [100, 192], [200, 224]]),
    "vit_base_patch16_224_pretrain_one_gpu": (4, 0.25, 8e-4, [[0, 160], [75, 192], [150, 224]]),
}


@pytest.mark.parametrize("name", ONE_GPU)
def test_recipes_for_one_gpu(name):
    config = get_config(ROOT / "configs" / "cross" / f"{name}.yaml")
    model, train = config.MODEL, config.TRAIN
    peak = train.BASE_LR * train.TOTAL_BATCH_SIZE / train.LINEAR_SCALED_LR
    assert (model.DECODER.DEPTH, model.PREDICT_RATIO, peak, train.RESOLUTION) == ONE_GPU[name]
    assert (train.AUG_REPEATS, train.TOTAL_BATCH_SIZE) == (4, 4096)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes(name):
    config = get_config(ROOT / "configs" / "cross" / f"{name}_pretrain_cross.yaml")
    encoder, decoder, counts, (peak, batch, epochs) = RECIPES[name]
    architecture, train = of_config(config, "autoencoder"), config.TRAIN
    assert (architecture.encoder, architecture.decoder, architecture.decoder_kind) == (encoder, decoder, "cross")
    assert architecture.decoder_sources == tuple(range(encoder[1] + 1))
    patches, ratio = math.prod(architecture.grid_hw), config.MODEL.MASK_RATIO
    visible = num_visible(patches, ratio)
    predicted = num_predicted(patches, ratio, config.MODEL.PREDICT_RATIO)
    assert (visible, predicted, patches - visible - predicted) == counts
    assert peak == pytest.approx(train.BASE_LR * batch / train.LINEAR_SCALED_LR)
    assert (batch, epochs) == (train.TOTAL_BATCH_SIZE, train.NUM_EPOCHS)
    if name.startswith("vit_") and "micro" not in name:
        assert (train.WEIGHT_DECAY, train.OPTIMIZER.BETAS, train.WARMUP_EPOCHS) == (0.05, [0.9, 0.95], 40)
        assert (train.CROP_SCALE, train.FLIP_PROB, config.MODEL.NORM_PIX_LOSS) == (None, 0.5, True)


def test_sizes_are_the_published_ones():
    """Parameters in millions of encoder and decoder, without the fixed position tables."""
    for name, published in (("small", (21.6, 10.5)), ("base", (85.6, 41.4)), ("large", (303.1, 44.5))):
        config = get_config(ROOT / "configs" / "cross" / f"vit_{name}_patch16_224_pretrain_cross.yaml")
        sizes = {k: math.prod(shape) for k, shape in of_config(config, "autoencoder").shapes().items()}
        encoder = sum(size for k, size in sizes.items() if k.startswith(("encoder.", "patch", "cls")))
        decoder = sum(size for k, size in sizes.items() if k.startswith(("decoder.", "decoder_pred", "mask")))
        assert (encoder / 1e6, decoder / 1e6) == pytest.approx(published, abs=0.11)


# Of a block of the decoder, in the order of the names: weight decay, and Muon where it is chosen.
DECODER = {
    "attn.out.bias": (0.0, False), "attn.out.weight": (0.05, True), "attn.qkv.bias": (0.0, False),
    "attn.qkv.weight": (0.05, True), "attn_norm.bias": (0.0, False), "attn_norm.weight": (0.0, False),
    "cross_attn.kv.bias": (0.0, False), "cross_attn.kv.weight": (0.05, True), "cross_attn.out.bias": (0.0, False),
    "cross_attn.out.weight": (0.05, True), "cross_attn.q.bias": (0.0, False), "cross_attn.q.weight": (0.05, True),
    "cross_norm.bias": (0.0, False), "cross_norm.weight": (0.0, False), "mlp.fc1.bias": (0.0, False),
    "mlp.fc1.weight": (0.05, True), "mlp.fc2.bias": (0.0, False), "mlp.fc2.weight": (0.05, True),
    "mlp_norm.bias": (0.0, False), "mlp_norm.weight": (0.0, False), "source_norm.bias": (0.0, False),
    "source_norm.weight": (0.0, False),
}  # fmt: skip
OTHERS = {
    "cls_token": (0.05, False), "mask_token": (0.05, False), "decoder.source_mix.weight": (0.05, False),
    "decoder.norm.weight": (0.0, False), "decoder.norm.bias": (0.0, False), "decoder_pred.weight": (0.05, False),
    "decoder_pred.bias": (0.0, False), "patch_embedding.patch_embedding.weight": (0.05, False),
    "patch_embedding.patch_embedding.bias": (0.0, False),
}  # fmt: skip


def test_decay_and_optimizer_of_every_parameter():
    towers = {"decoder": Tower(8, 2, 2), "decoder_kind": "cross_self", "decoder_sources": (0, 1)}
    model = MAEPretrain(Architecture(Tower(16, 1, 2), 4, (2, 2), **towers))
    names = {parameter.name: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter.name]: (group["weight_decay"], parameter.name in group["matrices"])
        for group in param_groups(model, 0.05)
        for parameter in group["params"]
    }
    expected = OTHERS | {f"decoder.layers.{i}.{name}": value for i in range(2) for name, value in DECODER.items()}
    assert {name: value for name, value in found.items() if not name.startswith("encoder.")} == expected
    assert not any(name.startswith("encoder.norm") for name in found), "nothing would train it"
    layers = {model.layer_index(name) for name in expected if name.startswith("decoder")}
    assert layers == {2}  # after the encoder's one block


def test_a_recipe_builds_its_network():
    config = get_config(ROOT / "configs" / "cross" / "digits_pretrain_cross.yaml")
    model = build_mae_pretrain(config)
    assert model.predict_ratio == 0.25
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == model.architecture.shapes()
