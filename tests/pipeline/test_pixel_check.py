"""A wrong scale is named: by a new run, and by check_dataset."""

import json

import numpy as np
import pytest
import yaml

from methods import dispatch
from tools import check_dataset

pytestmark = pytest.mark.quick
FIVE = {"IMAGE_CHANNELS": 5, "IMAGENET_MEAN": [0.5] * 5, "IMAGENET_STD": [0.1] * 5}


def write(folder, highest=1000):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in "ab":
            (folder / split / name).mkdir(parents=True)
            for index in range(8):
                array = rng.integers(0, highest, (18, 18, 5), np.uint16)
                np.save(folder / split / name / f"{index}.npy", array)
    return folder


def options(folder, **changed):
    values = FIVE | {"DATASET": "folder", "DATA_PATH": str(folder), "PIXELS": "array", "PIXEL_RANGE": [0, 1000]}
    values |= changed
    return [word for key, value in values.items() for word in (f"DATA.{key}", value)]


@pytest.mark.parametrize(
    ("changed", "said", "count"),
    [
        ({}, "", 0),
        ({"PIXEL_RANGE": [0, 980]}, "channel 0: 1.", 5),
        ({"PIXEL_RANGE": [[0, 1000]] * 4 + [[0, 100]]}, "channel 4: 8", 2),
        ({"PIXEL_RANGE": [0, 65535]}, "channel 0: the mean of its pixels is 0.00", 5),
        ({"NODATA": 7, "PIXEL_RANGE": [0, 65535]}, "channel 0: the mean", 5),
        ({"IMAGENET_MEAN": [0.5, 0.5, 0.1, 0.5, 0.5]}, "channel 2: the mean of its pixels is 0.5", 1),
        ({"VAL_FRACTION": 0.5, "PIXEL_RANGE": [0, 65535]}, "channel 0: the mean of its pixels is 0.00", 5),
    ],
)
def test_a_new_run_warns_of_a_wrong_scale(tiny_run, tmp_path, changed, said, count):
    run = tiny_run("pretrain", *options(write(tmp_path), **changed), "TRAIN.NUM_EPOCHS", 1)
    dispatch.build_train_loader(run).close()
    lines = [line for line in (run.directory / "log.txt").read_text().splitlines() if ": channel " in line]
    assert len(lines) == count, lines
    if count:
        assert said in lines[0]
        assert "tools.channel_statistics" in lines[0]


def test_check_dataset_looks_at_arrays(tmp_path, capsys):
    folder = write(tmp_path / "set")
    values = FIVE | {"PIXELS": "array", "PIXEL_RANGE": [0, 500]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"DATA": values, "MODEL": {"TYPE": "PRETRAIN"}}))
    words = ["-dataset", "folder", "-data_path", str(folder), "-cfg", str(tmp_path / "c.yaml")]
    assert check_dataset.main([*words, "-json", str(tmp_path / "r.json")]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert len(report["train"]["warnings"]) == 5
    assert "outside DATA.PIXEL_RANGE, 0 to 500, and are cut" in report["train"]["warnings"][0]
    assert "see the warnings" in capsys.readouterr().out
    (folder / "train" / "a" / "0.npy").write_bytes(b"no array")
    assert check_dataset.main([*words, "-full"]) == 1
    assert "0.npy" in capsys.readouterr().out
    (tmp_path / "c.yaml").write_text("MODEL:\n  TYPE: PRETRAIN\n")
    with pytest.raises(ValueError, match="its DATA.PIXELS is photo, and this flag is for arrays only"):
        check_dataset.main(words)
