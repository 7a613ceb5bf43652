"""Features of splits: the cache, labels, damaged files."""

import json

import numpy as np
import pytest

from errors import UserError
from methods import dispatch
from tests.helpers.saved_runs import fit_pretrain
from tools import cluster, features, knn, lowshot

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("damage", ["cut", "nan", "empty", "text"])
def test_damaged_features_are_computed_again(tiny_run, tmp_path, capsys, damage):
    run = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    fit_pretrain(run)
    arguments = [str(run.directory), "-k", "1", "-cache", str(tmp_path / "cache")]
    wanted = knn.main(arguments)
    file = tmp_path / "cache" / "train" / "features.npy"
    content = file.read_bytes()
    array = np.load(file).copy()
    array[:] = np.nan
    if damage == "nan":
        np.save(file, array)
    else:
        file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"no features"}[damage])
    capsys.readouterr()
    assert knn.main(arguments) == wanted
    assert "the features are computed again" in capsys.readouterr().out
    assert knn.main(arguments) == wanted
    assert capsys.readouterr().out.count("are taken from") == 2


NOTHING = ("TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)


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
