"""The benchmarks run, and say what they measured; no test asks how fast."""

import json

import pytest

from benchmarks import knn, loader, measure, model, train
from errors import UserError


def test_model_steps_of_both_sides(tiny_yaml, tmp_path):
    pytest.importorskip("transformers")
    flags = ["-batch_size", "4", "-pairs", "1", "-steps", "2", "-peer", "torch", "-json", str(tmp_path / "rows.jsonl")]
    for mode, extra in (("pretrain", ["-eval"]), ("finetune", [])):
        rows = model.main(["-cfg", tiny_yaml(mode), *flags, *extra])
        assert [row["side"] for row in rows] == ["ours", "torch"]
        assert all(row["images_per_sec"] > 0 and row["peak_mb"] > 50 for row in rows)
        assert 0 < rows[1]["ours/ratio_min"] <= rows[1]["ours/ratio"] <= rows[1]["ours/ratio_max"]
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert lines[0]["environment"]["versions"]["numpy"]


def test_steps_with_each_value_of_a_key(tiny_yaml):
    rows = model.main(
        ["-cfg", tiny_yaml("pretrain"), "-pairs", "1", "-steps", "1", "-vary", "DATA.BATCH_SIZE", "2", "4"]
    )
    assert [row["side"] for row in rows] == ["DATA.BATCH_SIZE 2", "DATA.BATCH_SIZE 4"]
    assert [row["batch"] for row in rows] == [2, 4]
    assert "ratio" not in rows[0]
    assert rows[1]["ratio"] > 0
    assert {row["device"] for row in rows} == {"cpu"}
    assert {row["precision"] for row in rows} == {"float32"}
    with pytest.raises(UserError, match="-vary"):
        model.main(["-cfg", tiny_yaml("pretrain"), "-vary", "MODEL.MASK_RATIO"])


def test_loader_against_a_plain_one(tiny_yaml, image_folder, tmp_path, capsys):
    from tools import pack_dataset

    pack_dataset.main([str(image_folder), str(tmp_path / "packed"), "-size", "16"])
    flags = ["-data_path", str(image_folder), "-packed", str(tmp_path / "packed"), "-pairs", "1", "-steps", "1"]
    rows = loader.main([*flags, "-cfg", tiny_yaml("pretrain")])
    assert [row["side"] for row in rows] == ["plain", "files, exact", "files, fast", "packed, exact", "packed, fast"]
    assert rows[0]["ratio"] == 1.0
    assert all(0 < row["difference"] < 20 for row in rows if "fast" in row["side"])  # the photos are noise
    assert "images_per_sec" in capsys.readouterr().out


def test_whole_runs(tiny_yaml):
    rows = train.main(
        ["-cfg", tiny_yaml("pretrain"), "-dataset", "synthetic", "-pairs", "1", "-opts", "DATA.BATCH_SIZE", "64"]
    )
    assert rows[0]["processes"] == 1
    assert rows[0]["images_per_sec"] > 0
    assert 0 <= rows[0]["data_wait"] < 1


def test_ratios_and_medians():
    assert measure.summarise([[1.0, 3.0], [2.0]], 8)["images_per_sec"] == 4.0
    assert measure.ratio([[1.0, 1.0], [3.0]], [[2.0, 2.0], [1.0]]) == {
        "ratio": 1.75,
        "ratio_min": 0.5,
        "ratio_max": 3.0,
    }


def test_nearest_neighbours_against_scikit_learn():
    rows = knn.main(["-bank", "500", "-queries", "100", "-dim", "16", "-pairs", "1"])
    assert [row["side"] for row in rows] == ["ours", "scikit-learn"]
    assert rows[1]["same classes"]
    assert rows[1]["ours/ratio"] > 0


def test_a_recipe_against_another(tiny_yaml, tmp_path):
    from config import get_config
    from tests.methods.test_contrastive_tuning import OPTS, TUNING

    for name, opts in (("tuning", TUNING), ("head", [])):
        (tmp_path / f"{name}.yaml").write_text(get_config(None, [*OPTS, *opts]).dump())
    flags = ["-batch_size", "8", "-pairs", "1", "-steps", "1", "-against", tiny_yaml("finetune")]
    rows = model.main(["-cfg", str(tmp_path / "tuning.yaml"), *flags])
    assert [row["step"] for row in rows] == ["train", "train"]
    assert rows[1]["side"] == "tuning"
    assert rows[1]["ratio"] > 0
    rows = model.main(["-cfg", str(tmp_path / "head.yaml"), *flags, "-eval"])
    assert [row["step"] for row in rows] == ["forward", "train"]
    with pytest.raises(UserError, match="-against goes without"):
        model.main(["-cfg", str(tmp_path / "head.yaml"), *flags, "-peer", "torch"])
