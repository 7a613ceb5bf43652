"""Pages about runs: what they hold, that runs write their own, and that a failure of it does not fail the run."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

import runtime
from errors import UserError
from methods import dispatch
from pages import run_page
from tests.helpers.browser import check_page, needs_browser
from tools import report
from training.log import RunLog
from training.report import Page

pytestmark = pytest.mark.quick
from runtime import ROOT


@pytest.fixture
def finished(tiny_run):
    def make(mode, *opts):
        run = tiny_run(mode, "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 64, "REPORT_FREQ", 2, *opts)
        (run.directory / "config.yaml").write_text(run.config.dump())
        dispatch.train_or_evaluate(run)
        return run

    return make


@pytest.mark.parametrize(
    ("mode", "pictures"),
    [("pretrain", "by the means of the patches alone"), ("finetune", "Below each image: the prediction")],
)
def test_a_run_writes_its_report(finished, mode, pictures):
    run = finished(mode, "REPORT", True)
    Page(run).finish()
    page = (run.directory / "report.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == ["Curves", "Pictures", "Configuration"]
    assert pictures in page
    assert "NUM_EPOCHS: 1" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    losses = [record["loss"] for record in run_page.read_log(run.directory) if record["event"] == "train"]
    assert f"<dt>last loss</dt><dd>{losses[-1]:.4g}</dd>" in page


def test_the_page_is_written_while_a_run_trains(finished, monkeypatch):
    run = finished("pretrain", "REPORT", True)
    started, page = [], Page(run)
    monkeypatch.setattr(os, "setpriority", lambda *args: started.append(args))
    page.refresh()
    page.refresh()  # one at a time
    assert len(started) == 1
    while page._process is not None:
        time.sleep(0.2)
        page._collect(waits=False)
    assert "by the means of the patches alone" in (run.directory / "report.html").read_text()
    page.refresh()  # twenty times as long as this one has taken has not passed
    assert len(started) == 1
    page._not_before = 0.0
    page.refresh()
    page.stop()
    assert len(started) == 2
    assert page._process is None


def test_without_its_images_a_run_still_has_curves(finished):
    run = finished("pretrain")
    config = run.directory / "config.yaml"
    config.write_text(config.read_text().replace("DATASET: synthetic", "DATASET: folder"))
    page = report.main([str(run.directory)]).read_text()
    assert "No pictures: -data_path is missing" in page
    assert '"curves": [["train", ' in page


def test_reports_of_runs_started_elsewhere(tmp_path, tiny_yaml, image_folder):
    """Their configurations have paths that are relative to where they were started; -eval and -resume have others."""
    shutil.copytree(image_folder, tmp_path / "photos")
    cfg = tiny_yaml("finetune", "DATA.DATASET", "imagenet2012", "TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0)
    command = [sys.executable, str(ROOT / "main_multi_gpu_finetune.py"), "-cfg", cfg, "-data_path", "photos"]
    for name, more in (("run", []), ("resumed", ["-eval", "-resume", "out/run"])):
        options = ["-output", "out", *more, "-opts", "RUN", name, "REPORT", "True", "MODEL.NUM_CLASSES", "None"]
        done = subprocess.run(
            [*command, *options], cwd=tmp_path, env=runtime.original_environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Below each image: the prediction" in (tmp_path / "out" / name / "report.html").read_text(), done.stdout


def test_runs_compared(finished, tmp_path):
    first, second = finished("finetune"), finished("finetune", "TRAIN.BASE_LR", 2e-2)
    out = tmp_path / "page.html"
    report.main([str(first.directory), str(second.directory), "-out", str(out)])
    page = out.read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == ["Figures", "Curves", "Differences"]
    assert re.search(r"<td>TRAIN.BASE_LR</td><td>0.01</td><td>0.02</td>", page)
    assert "TRAIN.END_LR" not in page
    with pytest.raises(UserError, match="-out is missing"):
        report.main([str(first.directory), str(second.directory)])
    with pytest.raises(UserError, match="not the directory of a run"):
        report.main([str(tmp_path)])


def test_a_report_that_fails_is_a_warning(finished, capsys):
    run = finished("pretrain", "REPORT", True)
    (run.directory / "config.yaml").unlink()
    run.log = RunLog(run.directory)
    Page(run).finish()
    assert "warning: no report: error: " in capsys.readouterr().out
    silent = finished("pretrain")  # REPORT False
    Page(silent).finish()
    assert not (silent.directory / "report.html").exists()


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    (tmp_path / "log.jsonl").write_text(
        json.dumps({"event": "train", "loss": float("nan"), "epoch": 1}) + '\n{"event": "tr'
    )
    records = run_page.read_log(tmp_path)
    assert len(records) == 1
    assert run_page.curve(records, "train", "loss") == []


@needs_browser
@pytest.mark.parametrize("mode", ["pretrain", "finetune"])
def test_a_page_fits_every_window(finished, tmp_path, mode):
    run = finished(mode, "REPORT", True)
    page = report.main([str(run.directory)])
    assert all(found["lines"] >= 3 for found in check_page(page, tmp_path))
