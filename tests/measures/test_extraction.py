"""Features of layers and of data sets."""

import shutil

import numpy as np
import paddle
import pytest

import tools.evaluate
import tools.export
import tools.features
import tools.visualise
from errors import UserError
from measures import extraction
from methods import dispatch, load_models
from tests.helpers.saved_runs import contents
from tools import features

pytestmark = pytest.mark.quick


NOTHING = ("TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)


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


def test_nothing_to_compute_features_of(tiny_run, image_folder, tmp_path):
    run = tiny_run("pretrain", *NOTHING)
    dispatch.train_or_evaluate(run)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.jpg").write_bytes(b"no image")
    flags = ["-dataset", "folder", "-data_path", str(tmp_path / "data"), "-opts", "DATA.BAD_IMAGES", "skip"]
    with pytest.raises(UserError, match="none of its images can be read"):
        features.main([str(run.directory), "-out", str(tmp_path / "out"), *flags])


def test_features_that_fail_leave_the_old_ones(run_dir, tmp_path, monkeypatch):
    out = tmp_path / "features"
    tools.features.main([str(run_dir), "-out", str(out)])
    (out / "layer_notes.npy").write_bytes(b"the user's")
    before = contents(out)
    monkeypatch.setattr(extraction, "extract", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tools.features.main([str(run_dir), "-out", str(out), "-layers", "1"])
    assert {name: data for name, data in contents(out).items() if ".writing" not in name} == before
    monkeypatch.undo()
    tools.features.main([str(run_dir), "-out", str(out), "-layers", "1"])
    assert {path.name for path in out.iterdir()} >= {"layer_1.npy", "labels.npy", "about.json", "layer_notes.npy"}
    assert not (out / "features.npy").exists()


def test_features_take_no_place_of_the_users(run_dir, tmp_path):
    np.save(tmp_path / "features.npy", np.zeros(3))
    with pytest.raises(UserError, match="features.npy in it is not from here"):
        tools.features.main([str(run_dir), "-out", str(tmp_path)])
    assert np.load(tmp_path / "features.npy").tolist() == [0, 0, 0]


def test_features_that_do_not_fit_the_disk_are_an_error(run_dir, tmp_path, monkeypatch):
    def full(descriptor, offset, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(extraction.os, "posix_fallocate", full)
    with pytest.raises(UserError, match="features: cannot be written: No space left on device"):
        tools.features.main([str(run_dir), "-out", str(tmp_path / "features")])
