"""The numbers of the analysis against their definitions, written out in NumPy."""

import json

import numpy as np
import pytest

from errors import UserError
from measures import layer_measures
from methods import dispatch, load_models
from tools import analyse

pytestmark = pytest.mark.quick


def hsic_by_definition(first, second):
    """Song et al. (2012), equation 5, term by term."""
    n, ones = len(first), np.ones(len(first))
    trace = np.trace(first @ second)
    middle = (ones @ first @ ones) * (ones @ second @ ones) / ((n - 1) * (n - 2))
    return (trace + middle - 2 / (n - 2) * ones @ first @ second @ ones) / (n * (n - 3))


def test_cka_is_its_definition():
    rng = np.random.default_rng(0)
    batches = [[rng.standard_normal((6, 5, 4)) for _ in range(3)] for _ in range(4)]
    cka = layer_measures.MinibatchCKA(3, 3)
    for layers in batches:
        cka.add(layers, layers)
    sums = np.zeros((3, 3))
    for layers in batches:
        grams = [layer.reshape(6, -1) @ layer.reshape(6, -1).T for layer in layers]
        grams = [gram - np.diag(np.diag(gram)) for gram in grams]
        sums += [[hsic_by_definition(one, other) for other in grams] for one in grams]
    expected = sums / np.sqrt(np.outer(np.diag(sums), np.diag(sums)))
    np.testing.assert_allclose(cka.matrix(), expected, rtol=1e-10)


def test_cka_does_not_see_rotation_and_scale_and_tells_unrelated_features():
    rng = np.random.default_rng(1)
    features, noise = rng.standard_normal((200, 16)), rng.standard_normal((200, 16))
    rotation = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    cka = layer_measures.MinibatchCKA(1, 2)
    cka.add([features], [3.0 * features @ rotation, noise])
    assert cka.matrix()[0, 0] == pytest.approx(1.0, abs=1e-12)
    assert abs(cka.matrix()[0, 1]) < 0.1
    with pytest.raises(ValueError, match="at least 4"):
        layer_measures.unbiased_hsic(np.zeros((3, 3)), np.zeros((3, 3)))


def test_attention_distance_and_entropy_are_their_definitions():
    logits = np.random.default_rng(2).standard_normal((2, 3, 7, 7))  # class token and 2 x 3 patches
    weights = layer_measures.patch_attention(logits)
    distance, entropy = np.zeros(3), np.zeros(3)
    for image in range(2):
        for head in range(3):
            for query in range(6):
                scores = np.exp(logits[image, head, 1 + query, 1:])
                scores /= scores.sum()
                for key in range(6):
                    apart = np.sqrt((query // 3 - key // 3) ** 2 + (query % 3 - key % 3) ** 2) * 16
                    distance[head] += scores[key] * apart / 12
                    entropy[head] -= scores[key] * np.log(scores[key]) / 12
    np.testing.assert_allclose(layer_measures.attention_distance(weights, (2, 3), 16), distance, rtol=1e-10)
    np.testing.assert_allclose(layer_measures.attention_entropy(weights), entropy, rtol=1e-10)


def test_even_attention_has_the_entropy_of_its_patches_and_the_mean_distance():
    """196 patches of 16 pixels: log 196 = 5.278, and 116.5 pixels."""
    weights = np.full((1, 1, 196, 196), 1 / 196)
    assert layer_measures.attention_entropy(weights)[0] == pytest.approx(np.log(196))
    assert layer_measures.attention_distance(weights, (14, 14), 16)[0] == pytest.approx(116.5, abs=0.05)
    certain = np.eye(4)[None, None]
    assert layer_measures.attention_entropy(certain)[0] == 0.0


def test_spectrum_is_that_of_the_centred_features():
    features = np.random.default_rng(3).standard_normal((60, 8)) * np.arange(1, 9) + 5.0
    spectrum = layer_measures.Spectrum()
    for part in np.split(features, 4):
        spectrum.add(part)
    expected = np.linalg.svd(features - features.mean(axis=0), compute_uv=False) / np.sqrt(60)
    np.testing.assert_allclose(spectrum.values(), expected, rtol=1e-8)
    assert layer_measures.effective_rank(np.ones(8)) == pytest.approx(8.0)
    assert layer_measures.effective_rank(np.array([1.0, 0.0])) == pytest.approx(1.0)


def test_command(tiny_run, image_folder, tmp_path):
    folders = []
    for mode, opts in (
        ("pretrain", []),
        ("finetune", ["MODEL.ENCODER.RELATIVE_POSITION_BIAS", True]),
        ("finetune", []),
    ):
        run = tiny_run(mode, "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0, *opts)
        dispatch.train_or_evaluate(run)
        folders.append(str(run.directory))
    flags = ["-dataset", "folder", "-data_path", str(image_folder), "-out", str(tmp_path / "out"), "-num", "10"]
    # 4, 4, and 2 that are left out
    results, similarity = analyse.main([*folders[:2], "-with", folders[2], *flags, "-batch_size", "4"])
    model, _ = load_models.load_encoder(folders[0])
    depth = len(model.encoder.layers)
    assert [found["distance"].shape for found in results] == [(depth, model.encoder.layers[0].attn.num_heads)] * 3
    assert set(similarity) == {(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)}
    assert {cka.shape for cka in similarity.values()} == {(depth + 1, depth + 1)}
    np.testing.assert_allclose(np.diag(similarity[1, 1]), 1.0)
    data = json.loads((tmp_path / "out" / "analysis.json").read_text())
    np.testing.assert_allclose(data["runs"][0]["entropy"], results[0]["entropy"])
    assert [pair["runs"] for pair in data["pairs"]] == [[0, 1], [0, 2], [1, 2]]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png") == 3 * 2 + 3
    with pytest.raises(UserError, match="-num and -batch_size"):
        analyse.main([folders[0], *flags, "-batch_size", "2"])
    other = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0, "DATA.IMAGENET_STD", [0.5] * 3)
    dispatch.train_or_evaluate(other)
    with pytest.raises(UserError, match="another size or normalisation"):
        analyse.main([folders[0], str(other.directory), *flags[:-4], "-out", str(tmp_path / "b"), "-num", "10"])
