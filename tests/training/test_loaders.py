"""Loaders of splits: what the log says about them."""

import pytest
from PIL import Image

from config import get_config
from errors import one_name
from training import loaders
from training.log import RunLog
from training.run import Run

pytestmark = pytest.mark.quick


def test_a_line_break_in_a_name_forges_no_line_of_the_log(tmp_path, capsys):
    folder = tmp_path / "train" / "a\nwarning: forged class"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "x\nstep 9 forged.png")
    (folder / "y\nstep 8.png").write_bytes(b"no image")
    (tmp_path / "train" / "b\nempty").mkdir()
    config = get_config(None, ["DATA.DATASET", "folder", "DATA.DATA_PATH", str(tmp_path), "DATA.BAD_IMAGES", "skip"])
    run = Run(config, None, RunLog(None))
    source = loaders.open_split(run, "train", "none")
    run.log.say(f"warning: {source.describe(1)}")
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("warning: /", "train: ")) for line in lines), lines
    assert one_name("a\nb\tc\x1b") == "a\\nb\\tc\\x1b"
    assert source.count_classes() == 2
