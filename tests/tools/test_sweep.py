"""tools.sweep: every combination once, what ended is not repeated, and mistakes end it before the first run."""

import json
import signal
import subprocess
import sys
import time

import pytest

import runtime
from errors import UserError
from runtime import ROOT
from tests.conftest import TINY
from tests.helpers.browser import BROWSER, check_page
from tools import sweep

GRID = ["TRAIN.BASE_LR=0.001,0.01", "TRAIN.NUM_EPOCHS/TRAIN.WARMUP_EPOCHS=1/0,2/1"]


@pytest.mark.quick
def test_combinations_and_their_names():
    points = sweep.read_grid([*GRID, "TRAIN.CROP_SCALE=[0.5,1.0],None"])
    assert len(points) == 8
    assert points[0] == {
        "TRAIN.BASE_LR": "0.001",
        "TRAIN.NUM_EPOCHS": "1",
        "TRAIN.WARMUP_EPOCHS": "0",
        "TRAIN.CROP_SCALE": "[0.5,1.0]",
    }
    assert len({sweep.run_name(point) for point in points}) == 8
    assert sweep.run_name(points[1]) == "base_lr=0.001,num_epochs=1,warmup_epochs=0,crop_scale=None"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["TRAIN.BASE_LR"], "expected KEY=VALUE"),
        (["TRAIN.BASE_LR=1,,2"], "expected KEY=VALUE"),
        (["A/B=1/2,3"], "with a value for each key"),
        (["A=1", "A=2"], "a key is there twice"),
        (["A=1,2", *[f"K{n}=1,2" for n in range(14)]], "32,768 combinations; at most 10,000"),
    ],
)
def test_grids_that_make_no_sense(words, said):
    with pytest.raises(UserError, match=said):
        sweep.read_grid(words)


def test_every_combination_is_a_run_and_is_not_repeated(tmp_path, tiny_yaml, capfd):
    cfg = tiny_yaml("finetune", "DATA.BATCH_SIZE", 256)
    arguments = ["-cfg", cfg, "-grid", *GRID, "-out", str(tmp_path / "out"), "--", "-device", "cpu"]
    rows = sweep.main(arguments)
    assert len(rows) == 4
    assert [row["acc1"] for row in rows] == sorted((row["acc1"] for row in rows), reverse=True)
    assert {row["epoch"] for row in rows} == {1.0, 2.0}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "base_lr=0.001,num_epochs=1,warmup_epochs=0" in names
    page = (tmp_path / "out" / "results.html").read_text()
    assert "TRAIN.BASE_LR" in page
    if BROWSER is not None:
        check_page(tmp_path / "out" / "results.html", tmp_path)
    capfd.readouterr()

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    del results["runs"]["base_lr=0.01,num_epochs=2,warmup_epochs=1"]  # as if it had been stopped there
    (tmp_path / "out" / "results.json").write_text(json.dumps(results))
    assert sorted(map(str, sweep.main(arguments))) == sorted(map(str, rows))
    said = capfd.readouterr().out
    assert said.count("nothing is left to do") == 1
    assert "4 of 4: base_lr=0.01,num_epochs=2,warmup_epochs=1" in said

    with pytest.raises(UserError, match=r"with other flags \(flags\); choose another -out"):
        sweep.main([*arguments[:-2], "-device", "cpu", "-opts", "SEED", "1"])
    other = tiny_yaml("finetune", "DATA.BATCH_SIZE", 256, "MODEL.DROPPATH", 0.2)
    with pytest.raises(UserError, match=r"another recipe.* \(recipe\)"):
        sweep.main(["-cfg", other, *arguments[2:]])


def test_a_signal_reaches_the_run_which_saves(tmp_path, tiny_yaml):
    cfg = tiny_yaml("finetune", "DATA.BATCH_SIZE", 64, "TRAIN.NUM_EPOCHS", 500, "VALIDATE_FREQ", 1000, "REPORT_FREQ", 1)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tools.sweep", "-cfg", cfg, "-grid", "TRAIN.BASE_LR=0.001,0.01", "-out", str(out)]
    process = subprocess.Popen(
        [*command, "--", "-device", "cpu"], cwd=ROOT, env=runtime.original_environment(), stdout=subprocess.PIPE
    )
    log = out / "base_lr=0.001" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not log.is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert list(log.parent.glob("step-*"))
    assert not (out / "base_lr=0.01").exists()
    with pytest.raises(UserError, match=r"with other flags \(flags\)"):  # although no run has ended
        sweep.main(["-cfg", cfg, "-grid", "TRAIN.BASE_LR=0.001", "-out", str(out), "--", "-amp", "bf16"])


@pytest.mark.quick
def test_mistakes_end_it_before_the_first_run(tmp_path, tiny_yaml):
    cfg, out = tiny_yaml("finetune", *TINY[:2]), ["-out", str(tmp_path / "out")]
    for arguments, said in (
        (["-grid", "TRAIN.BASE_LR=0.1,-1", *out], "TRAIN.BASE_LR=-1"),
        (["-grid", "TRAIN.NO_KEY=0.1", *out], "unknown configuration key TRAIN.NO_KEY"),
        (["-grid", "TRAIN.BASE_LR=0.1", *out, "--", "-output", "x"], "output: is set by the sweep itself"),
        (["-grid", "TRAIN.BASE_LR=0.1", *out, "--", "-cfg=x"], "cfg: is set by the sweep itself"),
        (["-grid", "TRAIN.BASE_LR=0.1", *out, "--", "-opts", "SAVE", "x"], "SAVE: is set by the sweep itself"),
        (["-grid", "RUN=a,b", *out], "RUN: is set by the sweep itself"),
        (["-grid", "MODEL.PRETRAINED=a/b,a_b", *out], "two combinations would be the run pretrained=a_b"),
        (
            ["-grid", "TRAIN.BASE_LR=0.1", *out, "--", "-opts", "TRAIN.NUM_EPOCHS"],
            "TRAIN.NUM_EPOCHS='TRAIN.BASE_LR' is not of type int",
        ),
        (["-grid", "MODEL.TYPE=MOCO", *out], "it is for MODEL.TYPE"),
    ):
        with pytest.raises(UserError, match=said):
            sweep.main(["-cfg", cfg, *arguments])
    assert not (tmp_path / "out").exists()


def test_failures_are_told_at_the_end(tmp_path, tiny_yaml, capfd):
    cfg = tiny_yaml("finetune", "DATA.BATCH_SIZE", 256, "TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0)
    arguments = ["-cfg", cfg, "-grid", "MODEL.PRETRAINED=nothing,None", "-out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"1 of 2 runs failed: pretrained=nothing \(exit code 2\)"):
        sweep.main([*arguments, "--", "-device", "cpu"])
    assert ">None</td>" in (tmp_path / "out" / "results.html").read_text()


@pytest.mark.quick
def test_a_grid_is_counted_before_it_is_made():
    started = time.monotonic()
    with pytest.raises(UserError, match="combinations; at most 10,000"):
        sweep.read_grid([f"K{n}=" + ",".join(map(str, range(100))) for n in range(12)])
    assert time.monotonic() - started < 5


@pytest.mark.quick
@pytest.mark.parametrize("runs", [{"a": 3}, {"a": {"acc1": [1]}}, {"a": None}])
def test_damaged_results_of_a_sweep_are_one_line(tmp_path, runs):
    about = {"recipe": "x", "flags": []}
    (tmp_path / "results.json").write_text(json.dumps({**about, "runs": runs}))
    with pytest.raises(UserError, match="damaged, its result of 'a'|damaged, its result of a"):
        sweep._read_done(tmp_path, about)
