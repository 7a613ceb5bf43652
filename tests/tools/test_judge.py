"""tools.judge: each figure is that of the tool or the probe by itself, and the files that it writes."""

import csv

import numpy as np
import paddle
import pytest
from numpy.testing import assert_allclose

from errors import UserError
from measures import attentive_fit, extraction, linear_probe, patch_segmentation
from methods import dispatch
from pipeline import scenes
from tests.helpers.browser import BROWSER, check_page
from tools import judge, knn, layers, lowshot

pytestmark = pytest.mark.quick


@pytest.fixture
def runs(trained):
    return [str(trained("pretrain")), str(trained("finetune"))]


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_figures_are_those_of_each_measure_alone(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "_NUM_IMAGES", {"train": 12, "val": 4})
    monkeypatch.setattr(attentive_fit, "EPOCHS", 2)
    out, flags = tmp_path / "out", ["-k", "3", "-shots", "2", "-seeds", "2"]
    found = judge.main([*runs, *flags, "-masks", "scenes", "-out", str(out)])
    for run in runs:
        figures = {(figure.measure, figure.read): figure for figure in found[run]}
        rows = layers.main([run, "-k", "3"])
        for pool, words in (("cls", "class token"), ("mean", "mean of the patches")):
            assert figures["k-NN", words].values == [knn.main([run, "-k", "3", "-pool", pool])["acc1, k=3"]]
            assert figures["linear", words].values[0] == rows[-1][f"linear, {words}"]
            few = lowshot.main([run, "-shots", "2", "-splits", "2", "-pool", pool])
            assert figures["2 per class", words].mean == pytest.approx(few["acc1, 2 per class"])
        best = figures["linear, best on val", next(read for what, read in figures if what == "linear, best on val")]
        assert best.mean == max(value for row in rows for name, value in row.items() if name.startswith("linear"))
        assert len(figures["attentive (EP)", "patches, before the last norm"].values) == 2
        assert 0 < figures["linear segmentation, mIoU", "patches"].mean < 100
        assert len(figures["patch k-NN, mIoU", "patches"].values) == 2
    lines = read(out / "judge.csv")
    assert [line["encoder"] for line in lines] == [run for run in runs for _ in found[run]]
    for line, figure in zip(lines, [figure for run in runs for figure in found[run]], strict=True):
        assert float(line["mean"]) == pytest.approx(figure.mean)
        assert (line["deviation"] == "") == (len(figure.values) == 1)
    first, second = read(out / "benchmark.csv")
    assert list(first)[:9] == ["family", "method", "arch", "pretrain", "eval", "image_size", "lp", "lp_gap", "ep"]
    assert (first["method"], second["method"]) == ("MAE", "FINETUNE")
    assert first["ep_queries"] == "32"
    assert float(first["knn"]) == pytest.approx(found[runs[0]][0].mean, abs=0.005)
    if BROWSER is not None:
        check_page(out / "report.html", tmp_path)


def test_attentive_probes_read_what_no_mean_has():
    """The class is whether two tokens are equal in sign: their mean, and each alone, say nothing of it."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(0, 0.1, (600, 6, 32)).astype(np.float32)
    labels = rng.integers(0, 3, 600)
    marked = np.arange(600), rng.integers(0, 6, 600)
    tokens[..., 0] += 1.0
    tokens[(*marked, 0)] = 3.0  # where to look
    tokens[(*marked, 1 + labels)] += 2.0
    heads, best = attentive_fit.fit_best(tokens, labels, seed=0)
    heads.train(False)
    assert heads.count_right(paddle.to_tensor(tokens), labels)[best] > 560
    assert heads.queries == 32
    again, same = attentive_fit.fit_best(tokens, labels, seed=0)
    assert same == best
    for head, other in zip(heads.heads, again.heads, strict=True):
        assert_allclose(head[2].weight.numpy(), other[2].weight.numpy())


def test_three_steps_are_those_of_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    tokens, labels = rng.normal(0, 1, (40, 5, 16)).astype(np.float32), rng.integers(0, 3, 40)
    rates = (0.01, 0.003)
    paddle.seed(3)
    first = attentive_fit.AttentiveHeads(16, 3, 2)
    fitted = attentive_fit.fit_attentive(tokens, labels, np.arange(40), rates, epochs=3, seed=3)
    for number, rate in enumerate(rates):
        pooler, _, linear = first.heads[number]
        values = [pooler.queries, pooler.value.weight, linear.weight, linear.bias]
        own = [torch.tensor(value.numpy(), requires_grad=True) for value in values]
        optimizer = torch.optim.AdamW(own, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
        order = np.random.default_rng(3)
        for step in range(3):
            rows = np.sort(order.permutation(np.arange(40)))
            optimizer.param_groups[0]["lr"] = rate * (0.5 + 0.5 * np.cos(np.pi * step / 3))
            given = torch.from_numpy(tokens[rows])
            attention = (own[0] @ given.transpose(1, 2) / 4.0).softmax(dim=-1)  # [B, Q, N]
            sliced = (given @ own[1]).reshape(40, 5, 16, 1)
            pooled = torch.einsum("bqn,bnqs->bqs", attention, sliced).reshape(40, 16)
            normed = torch.nn.functional.batch_norm(pooled, None, None, training=True, eps=1e-6)
            loss = torch.nn.functional.cross_entropy(normed @ own[2] + own[3], torch.from_numpy(labels[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        pooler, _, linear = fitted.heads[number]
        for value, expected in zip([pooler.value.weight, linear.weight, linear.bias], own[1:], strict=True):
            assert_allclose(value.numpy(), expected.detach().numpy(), atol=2e-4)  # Adam's first steps are signs


def test_linear_segmentation_reads_patches(trained):
    """Masks that follow the brightness of patches are found; and the figure is that of heads by hand."""
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 3, (20, 2, 2)).repeat(4, axis=1).repeat(4, axis=2).astype(np.int16)
    labels = masks[:, ::4, ::4].ravel()
    features = (np.eye(3)[labels] + rng.normal(0, 0.05, (80, 3))).astype(np.float32)
    patches = patch_segmentation.Patches(features, masks, (2, 2), 4)
    train, val = patches.take(np.arange(15)), patches.take(np.arange(15, 20))
    held, fitted = train.split(1)
    assert (len(held.masks), len(fitted.masks)) == (2, 13)
    found = patch_segmentation.by_linear_classifier(train, val, 3, seed=1)
    heads = linear_probe.fit_heads(fitted.features, fitted.main_labels().astype(np.int64), seed=1)
    everywhere = patch_segmentation._score_heads(heads, val, 3)
    assert found in everywhere
    assert found["aacc"] > 80  # enlarged bilinearly, so edges between patches are soft
    with pytest.raises(UserError, match="at least two classes"):
        patch_segmentation.by_linear_classifier(train._replace(masks=train.masks * 0), val, 3, seed=1)


def _names(source):
    return [source.describe(index) for index in range(len(source))]


def test_the_same_images_for_every_encoder(runs, monkeypatch):
    read_by = []
    monkeypatch.setattr(judge, "score_classes", lambda model, config, train, *rest: read_by.append(_names(train)))
    for run in runs:
        with pytest.raises(TypeError):
            judge.main([run, "-num", "9", "-k", "3", "-shots", "1"])
    assert read_by[0] == read_by[1]
    assert len(read_by[0]) == 9


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["-seeds", "0"], "must be at least 1"),
        (["-k", "5000"], "-k 5000: there are"),
        (["-shots", "5000"], "-shots 5000: class"),
        (["-masks", "voc", "-masks_path", "/nowhere"], "-masks_path /nowhere: no such directory"),
        (["-masks_path", "/"], "needs -masks NAME"),
        (["-masks", "nosuch"], "-masks nosuch: must be one of"),
        (["-num", "7"], "-num 7: .* has 4 classes, and each needs two images"),
        (["-seeds", "100000000"], "at most 100"),
    ],
)
def test_wrong_numbers_are_told(runs, monkeypatch, flags, said):
    monkeypatch.setattr(extraction, "extract", None)  # nothing is computed before
    with pytest.raises(UserError, match=said):
        judge.main([runs[0], *flags])
    with pytest.raises(UserError, match="named twice"):
        judge.main([runs[0], f"{runs[0]}/"])


def test_encoders_of_other_data_need_one_named(trained, tiny_run, image_folder):
    folder = ["DATA.DATASET", "folder", "DATA.DATA_PATH", str(image_folder), "MODEL.NUM_CLASSES", 3]
    run = tiny_run("finetune", *folder, "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0, "RUN", "other")
    dispatch.train_or_evaluate(run)
    with pytest.raises(UserError, match="were trained on other data .*folder"):
        judge.main([str(trained("pretrain")), str(run.directory)])
