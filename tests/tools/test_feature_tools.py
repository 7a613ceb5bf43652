from pathlib import Path

"""Features and what is computed from them, against scikit-learn and against the model's own parts."""

import json
import shutil

import numpy as np
import paddle
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from errors import UserError
from measures import extraction, image_sets, neighbours
from methods import dispatch, load_models
from pipeline.file_images import FileImages
from pipeline.sources import find_listed
from tools import cluster, features, knn, lowshot

pytestmark = pytest.mark.quick
NOTHING = ("TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    pixels, labels = data.data[order].astype(np.float32), data.target[order]
    return {"features": pixels[:1000], "labels": labels[:1000]}, {"features": pixels[1000:], "labels": labels[1000:]}


@pytest.mark.parametrize("standardise", [False, True])
def test_nearest_neighbours_are_those_of_scikit_learn(digits, standardise):
    train, val = digits
    ours = neighbours.classify(train["features"], train["labels"], val["features"], [1, 7, 20, 1000], 0.07, standardise)
    bank, queries = (part["features"].astype(np.float64) for part in digits)
    if standardise:
        mean, scale = bank.mean(axis=0), bank.std(axis=0, ddof=1) + 1e-5
        bank, queries = (bank - mean) / scale, (queries - mean) / scale
    for k, classes in ours.items():
        theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
        expected = theirs.fit(bank, train["labels"]).predict(queries)
        assert np.mean(classes == val["labels"]) == np.mean(expected == val["labels"])
        assert np.mean(classes == expected) > 0.998  # equal votes to the last bit of float32


@pytest.mark.parametrize(("columns", "count"), [(5000, 20), (4999, 1), (640, 20), (20, 20), (64, 3)])
def test_the_largest_values_of_rows(columns, count):
    values = np.random.default_rng(0).standard_normal((30, columns)).astype(np.float32)
    places = np.sort(neighbours._largest(values, count), axis=1)
    assert np.array_equal(places, np.sort(np.argsort(-values, axis=1)[:, :count], axis=1))


def test_neighbours_that_cannot_be(digits):
    train, val = digits
    with pytest.raises(UserError, match="from 1 to the number of training images, 1000"):
        neighbours.classify(train["features"], train["labels"], val["features"], [1001])


def test_few_shots_are_scikit_learns_regression(digits):
    train, val = digits
    chosen = lowshot.draw(train["labels"], 5, seed=3)
    assert np.array_equal(np.bincount(train["labels"][chosen]), [5] * 10)

    def prepare(values):
        return normalize(values.astype(np.float64) - values.mean(axis=1, keepdims=True, dtype=np.float64))

    model = LogisticRegression(C=4000.0, fit_intercept=False, max_iter=1000)
    model.fit(prepare(train["features"][chosen]), train["labels"][chosen])
    expected = 100 * model.score(prepare(val["features"]), val["labels"])
    assert lowshot.fit_and_score(train, chosen, val) == pytest.approx(expected, abs=1e-9)
    with pytest.raises(UserError, match="-shots 200: class"):
        lowshot.draw(train["labels"], 200, 0)


def test_clusters_are_scikit_learns(digits):
    train, _ = digits
    clusters = cluster.cluster(train["features"], 10, seed=1)
    expected = KMeans(10, n_init=1, random_state=1).fit_predict(normalize(train["features"]))
    scores = cluster.score(clusters, train["labels"])
    assert scores["nmi"] == pytest.approx(normalized_mutual_info_score(train["labels"], expected), abs=1e-6)
    assert scores["ari"] == pytest.approx(adjusted_rand_score(train["labels"], expected), abs=1e-6)


def test_accuracy_of_clusters_is_that_of_the_best_assignment():
    labels = np.array([0, 0, 0, 1, 1, 2])
    assert cluster.score(np.array([5, 5, 7, 7, 7, 9]), labels)["acc"] == pytest.approx(500 / 6)


@pytest.mark.parametrize("mode", ["pretrain", "finetune"])
def test_features_are_what_the_layers_put_out(tiny_run, mode):
    run = tiny_run(mode, *NOTHING)
    dispatch.train_or_evaluate(run)
    model, config = load_models.load_encoder(run.directory)
    images = paddle.rand([2, 3, 16, 16])
    depth = len(model.encoder.layers)
    with paddle.no_grad():
        tokens = model.patch_embedding(images)
        tokens = paddle.concat([model.cls_token.expand([2, 1, -1]), tokens], axis=1) + model.encoder_position_embedding
        expected = []
        for layer in model.encoder.layers:
            tokens = layer(tokens)
            expected.append(tokens.numpy())
    found = extraction.extract(model, images, layers=[1, -1], pool="tokens")
    np.testing.assert_array_equal(found[1].numpy(), expected[0])
    np.testing.assert_array_equal(found[-1].numpy(), expected[depth - 1])
    means = extraction.extract(model, images, layers=[1], pool="mean")[1]
    np.testing.assert_allclose(means.numpy(), expected[0][:, 1:].mean(axis=1), atol=1e-6)
    whole = extraction.extract(model, images)
    np.testing.assert_array_equal(whole.numpy(), model(images).numpy())
    pool = "mean" if config.MODEL.GLOBAL_POOL else "cls"
    np.testing.assert_allclose(extraction.extract(model, images, pool=pool).numpy(), whole.numpy(), atol=1e-6)
    assert extraction.extract(model, images, pool="tokens").shape == [2, 17, model.cls_token.shape[-1]]
    assert not any(layer._forward_post_hooks for layer in model.encoder.layers)
    with pytest.raises(UserError, match="layers 1 to"):
        extraction.extract(model, images, layers=[depth + 1])
    with pytest.raises(UserError, match="pool='max'"):
        extraction.extract(model, images, pool="max")


def test_files_of_features(tiny_run, image_folder, tmp_path):
    run = tiny_run("pretrain", *NOTHING)
    dispatch.train_or_evaluate(run)
    flags = [str(run.directory), "-dataset", "folder", "-data_path", str(image_folder), "-split", "train"]
    features.main([*flags, "-out", str(tmp_path / "all.npz"), "-layers", "1", "2", "-batch_size", "5"])
    features.main([*flags, "-out", str(tmp_path / "all"), "-layers", "1", "2", "-pool", "cls"])
    with np.load(tmp_path / "all.npz") as arrays:
        assert sorted(arrays) == ["labels", "layer_1", "layer_2"]
        assert arrays["layer_1"].shape == (24, 32)
        mapped = np.load(tmp_path / "all" / "layer_2.npy", mmap_mode="r")
        np.testing.assert_allclose(mapped, arrays["layer_2"], atol=1e-5)
    with pytest.raises(UserError, match=r"must be a \.npz file"):
        features.main([*flags, "-out", str(tmp_path / "all.csv")])


def test_images_that_cannot_be_read_are_left_out(tiny_run, image_folder, tmp_path):
    shutil.copytree(image_folder / "train", tmp_path / "data" / "train")
    next((tmp_path / "data" / "train" / "cat").iterdir()).write_bytes(b"no image")
    run = tiny_run("pretrain", *NOTHING)
    dispatch.train_or_evaluate(run)
    flags = [str(run.directory), "-dataset", "folder", "-data_path", str(tmp_path / "data"), "-split", "train"]
    features.main([*flags, "-out", str(tmp_path / "out"), "-opts", "DATA.BAD_IMAGES", "skip"])
    assert len(np.load(tmp_path / "out" / "features.npy")) == len(np.load(tmp_path / "out" / "labels.npy")) == 23


def test_names_of_a_list_that_several_images_have(tmp_path):
    images = [Path(name) for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg")]
    source = FileImages(images, np.zeros(3, np.int64), tmp_path)
    (tmp_path / "list.txt").write_text("b/1.jpg\n2.jpg\n")
    assert find_listed(source, str(tmp_path / "list.txt"), "-list").tolist() == [1, 2]
    (tmp_path / "list.txt").write_text("1.jpg\n")
    with pytest.raises(UserError, match=r"1\.jpg"):
        find_listed(source, str(tmp_path / "list.txt"), "-list")


def damaged_copy(image_folder, root, count):
    """Copy the photos, and damage some of the first class."""
    shutil.copytree(image_folder, root)
    for path in sorted((root / "train" / "cat").iterdir())[:count]:
        path.write_bytes(b"no image")
    for split in ("train", "val"):
        (root / f"{split}_list.txt").unlink()
    return ["-dataset", "folder", "-data_path", str(root), "-opts", "DATA.BAD_IMAGES", "skip"]


def test_few_shots_are_drawn_from_what_can_be_read(tiny_run, image_folder, tmp_path):
    run = tiny_run("pretrain", *NOTHING)
    dispatch.train_or_evaluate(run)
    flags = damaged_copy(image_folder, tmp_path / "data", 3)
    lowshot.main([str(run.directory), "-shots", "5", *flags])
    with pytest.raises(UserError, match="-shots 6: class 0 has 5 training images"):
        lowshot.main([str(run.directory), "-shots", "6", *flags])
    (tmp_path / "list.txt").write_text("cat/6 0.jpg\ndog/1 1.jpg\n")
    with pytest.raises(UserError, match="3 training images were skipped"):
        lowshot.main([str(run.directory), "-list", str(tmp_path / "list.txt"), *flags])


def test_nothing_to_compute_features_of(tiny_run, image_folder, tmp_path):
    run = tiny_run("pretrain", *NOTHING)
    dispatch.train_or_evaluate(run)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.jpg").write_bytes(b"no image")
    flags = ["-dataset", "folder", "-data_path", str(tmp_path / "data"), "-opts", "DATA.BAD_IMAGES", "skip"]
    with pytest.raises(UserError, match="none of its images can be read"):
        features.main([str(run.directory), "-out", str(tmp_path / "out"), *flags])


def test_labels_are_kept_and_needed(tiny_run, image_folder, tmp_path):
    run = tiny_run("pretrain", *NOTHING)
    dispatch.train_or_evaluate(run)
    flags = [str(run.directory), "-dataset", "folder", "-data_path", str(image_folder)]
    features.main([*flags, "-split", "train", "-out", str(tmp_path / "out")])
    assert np.bincount(np.load(tmp_path / "out" / "labels.npy")).tolist() == [8, 8, 8]
    features.main([*flags, "-split", "train", "-layers", "1", "-out", str(tmp_path / "out")])
    assert not (tmp_path / "out" / "features.npy").exists()
    for split in ("train", "val"):
        (tmp_path / f"{split}_list.txt").write_text(f"{image_folder}/{split}/cat/0 0.jpg\n")
    flags = [str(run.directory), "-dataset", "lists", "-data_path", str(tmp_path), "-k", "1"]
    with pytest.raises(UserError, match="none of its 1 images has labels"):
        knn.main([*flags, "-opts", "DATA.LIST_OUTSIDE", "True"])


def test_wrong_numbers_and_files_are_told_before_anything_is_computed(tmp_path):
    run = str(tmp_path / "no run, as it is not looked at")
    with pytest.raises(UserError, match="-k 0"):
        knn.main([run, "-k", "0"])
    with pytest.raises(UserError, match="-json nowhere/x.json"):
        knn.main([run, "-json", "nowhere/x.json"])
    with pytest.raises(UserError, match="-clusters at least 2"):
        cluster.main([run, "-clusters", "0"])


def test_commands_and_their_cache(tiny_run, image_folder, tmp_path, capsys):
    run = tiny_run("pretrain", *NOTHING)
    dispatch.train_or_evaluate(run)
    flags = [str(run.directory), "-dataset", "folder", "-data_path", str(image_folder), "-cache", str(tmp_path / "c")]
    first = knn.main([*flags, "-k", "1", "3", "-json", str(tmp_path / "knn.json")])
    assert "computing" in capsys.readouterr().out
    assert knn.main([*flags, "-k", "1", "3"]) == first == json.loads((tmp_path / "knn.json").read_text())
    assert "computing" not in capsys.readouterr().out
    assert set(lowshot.main([*flags, "-shots", "1", "2"])) == {
        f"{kind}, {count} per class" for kind in ("acc1", "deviation") for count in (1, 2)
    }
    (tmp_path / "list.txt").write_text("cat/0 0.jpg\ndog/3 1.jpg\n0 2.jpg\n")
    assert "acc1, given splits" in lowshot.main([*flags, "-list", str(tmp_path / "list.txt")])
    (tmp_path / "list.txt").write_text("cat/0 0.jpg\nfish/1.jpg\n")
    with pytest.raises(UserError, match=r"not one image of the train split each: fish/1\.jpg"):
        lowshot.main([*flags, "-list", str(tmp_path / "list.txt")])
    assert 0 <= cluster.main([*flags, "-clusters", "3"])["acc, mean"] <= 100
    for other in (["-pool", "mean"], ["-opts", "DATA.CROP_PCT", "0.5"]):
        capsys.readouterr()
        knn.main([*flags, *other])
        assert "computing" in capsys.readouterr().out  # other features than those of the cache


def test_a_balanced_choice():
    labels = np.repeat([0, 1, 2], [50, 5, 3])
    chosen = image_sets.choose_balanced(labels, 12, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [4, 5, 3] or np.bincount(labels[chosen]).tolist() == [5, 4, 3]
    assert np.array_equal(chosen, image_sets.choose_balanced(labels, 12, seed=0))
    assert not np.array_equal(chosen, image_sets.choose_balanced(labels, 12, seed=1))
    assert len(image_sets.choose_balanced(labels, 100, seed=0)) == 58
