"""tools.layers: one pass gives what the tools give for an encoder that ends at each block."""

import argparse
import csv

import numpy as np
import pytest
from numpy.testing import assert_allclose

from errors import UserError
from measures import extraction, linear_probe
from methods import dispatch, load_models
from pages import drawing
from tests.helpers.browser import BROWSER, check_page
from tools import knn, layers

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("mode", ["pretrain", "finetune"])
def test_each_row_is_that_of_an_encoder_which_ends_there(trained, tmp_path, mode):
    run = str(trained(mode, "MODEL.ENCODER.DEPTH", 3))
    rows = layers.main([run, "-k", "3", "-cache", str(tmp_path / "cache"), "-out", str(tmp_path / "out")])
    assert [row["layer"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        for pool, words in (("cls", "class token"), ("mean", "mean of the patches")):
            depth = ["-opts", "MODEL.ENCODER.DEPTH", row["layer"], "MODEL.PRETRAINED_BLOCKS", "3"]
            alone = knn.main([run, "-k", "3", "-pool", pool, *depth])
            assert alone["acc1, k=3"] == row[f"k-NN, {words}"]
    with open(tmp_path / "out" / "layers.csv", encoding="utf-8") as file:
        assert [{**row, "layer": row["layer"]} for row in csv.DictReader(file)] == [
            {name: str(value) for name, value in row.items()} for row in rows
        ]
    assert layers.main([run, "-k", "3", "-cache", str(tmp_path / "cache")]) == rows, "from the cache"
    with pytest.raises(UserError, match="not in this model"):
        knn.main([run, "-opts", "MODEL.ENCODER.DEPTH", "2"])
    if BROWSER is not None:
        check_page(tmp_path / "out" / "report.html", tmp_path)


def test_features_of_layers_are_those_of_shorter_encoders(trained):
    run = trained("pretrain", "MODEL.ENCODER.DEPTH", 6)
    whole, config = load_models.load_encoder(run)
    images = extraction.paddle.to_tensor(drawing.draw_images(config, 3))
    found = extraction.extract(whole, images, [2, 6], "cls+mean", norm=True)
    assert_allclose(found[6][:, 1].numpy(), extraction.extract(whole, images, pool="mean").numpy(), atol=1e-6)
    raw = extraction.extract(whole, images, [2], "tokens")[2]
    normed = whole.encoder.norm(raw)
    assert_allclose(found[2][:, 0].numpy(), normed[:, 0].numpy(), atol=1e-6)
    assert_allclose(found[2][:, 1].numpy(), normed[:, 1:].mean(axis=1).numpy(), atol=1e-6)
    rows = layers.main([str(run), "-k", "2"])
    assert rows[-1]["layer"] == "last 4"


def test_the_command_that_is_printed_probes_that_layer(tiny_run, trained):
    encoder = trained("pretrain", "MODEL.ENCODER.DEPTH", 3)
    said = layers.advice(layers.main([str(encoder), "-k", "3"]), argparse.Namespace(run=encoder))
    shorter = ["MODEL.PRETRAINED", str(encoder), "MODEL.ENCODER.DEPTH", 2, "MODEL.PRETRAINED_BLOCKS", 3]
    if "DEPTH" in said:
        assert "MODEL.PRETRAINED_BLOCKS 3" in said
    run = tiny_run("linearprobe", *shorter, "TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0)
    dispatch.train_or_evaluate(run)
    (run.directory / "config.yaml").write_text(run.config.dump())
    probe, _ = load_models.load_classifier(run.directory)
    assert len(probe.encoder.layers) == 2
    own, _ = load_models.load_encoder(encoder)
    for number in range(2):
        for name, value in own.encoder.layers[number].state_dict().items():
            assert np.array_equal(value.numpy(), probe.encoder.layers[number].state_dict()[name].numpy())


def test_heads_are_logistic_regression_by_hand():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(3.0, 2.0, (300, 5)).astype(np.float32), rng.integers(0, 3, 300)
    heads = linear_probe.fit_heads(features, labels, (0.01, 0.2), epochs=3, seed=4)
    standard = (features - features.mean(axis=0)) / np.sqrt(features.var(axis=0) + 1e-6)
    order = np.random.default_rng(4)
    batches = [chosen for _ in range(3) for chosen in np.array_split(order.permutation(300), 2)]
    for number, rate in enumerate((0.01, 0.2)):
        weight, bias, velocity = np.zeros((5, 3)), np.zeros(3), [np.zeros((5, 3)), np.zeros(3)]
        for step, chosen in enumerate(batches):
            logits = standard[chosen] @ weight + bias
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            error = (odds / odds.sum(axis=1, keepdims=True) - np.eye(3)[labels[chosen]]) / len(chosen)
            velocity = [0.9 * velocity[0] + standard[chosen].T @ error, 0.9 * velocity[1] + error.sum(axis=0)]
            now = rate * (0.5 + 0.5 * np.cos(np.pi * step / 6))
            weight, bias = weight - now * velocity[0], bias - now * velocity[1]
        assert_allclose(heads.weight.numpy()[:, number], weight, atol=1e-5)
        assert_allclose(heads.bias.numpy()[number], bias, atol=1e-5)


def test_the_val_split_chooses_no_rate():
    """The classes of the val split are swapped: a rate that was chosen there would be another one."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 800)
    features = (np.eye(4)[labels] + rng.normal(0, 0.3, (800, 4))).astype(np.float32)
    train, val = (features[:600], labels[:600]), (features[600:], labels[600:])
    right = linear_probe.probe_accuracy(train, val)
    assert right > 85
    assert linear_probe.probe_accuracy(train, (val[0], (val[1] + 1) % 4)) < 15
    assert linear_probe.probe_accuracy(train, val) == right
    with pytest.raises(UserError, match="at least two classes"):
        linear_probe.probe_accuracy((features[:600], labels[:600] * 0), val)


def test_wrong_numbers_are_told(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(extraction, "extract", None)  # nothing is computed before
    for tool in (layers, knn):
        with pytest.raises(UserError, match="-k 5000: "):
            tool.main([str(trained()), "-k", "5000"])
    with pytest.raises(UserError, match="-k 0"):
        layers.main([str(tmp_path), "-k", "0"])
