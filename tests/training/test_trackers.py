"""Trackers get what log.jsonl has, are read back by their own libraries, and never end a run."""

import json
import typing

import numpy as np
import pytest
from PIL import Image

from config import get_config
from errors import UserError
from methods import dispatch
from training import trackers
from training.log import RunLog
from training.report import Page
from training.run import Run

pytestmark = pytest.mark.quick


class Kept:
    """A tracker that keeps what it gets, or fails at a word of it."""

    made: typing.ClassVar[list] = []

    def __init__(self, run_dir, first_step):
        self.first_step, self.got = first_step, []
        Kept.made.append(self)

    def scalars(self, values, step):
        self.got.append(("scalars", step, values))

    def text(self, name, text):
        self.got.append(("text", name, text))

    def picture(self, name, pixels, step):
        self.got.append(("picture", name, pixels.shape, step))

    def close(self):
        self.got.append(("close",))


class Failing(Kept):
    def scalars(self, values, step):
        raise ConnectionError("no network")


@pytest.fixture
def kinds(monkeypatch):
    Kept.made = []
    monkeypatch.setattr(trackers, "_KINDS", {"kept": (Kept, "json"), "failing": (Failing, "json")})


def records_of(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def numbers_of(record):
    return {f"{record['event']}/{name}": value for name, value in record.items() if name not in ("event", "step")}


def train(tiny_config, directory, *opts, **fields):
    config = tiny_config("pretrain", "TRAIN.NUM_EPOCHS", 1, *opts)
    directory.mkdir(exist_ok=True)
    (directory / "config.yaml").write_text(config.dump())
    log = RunLog(directory, quiet=True, trackers=trackers.tracker_names(config))
    dispatch.train_or_evaluate(Run(config, directory, log, **fields))
    return directory


def test_a_tracker_gets_what_the_log_has(tiny_config, tmp_path, kinds):
    run = train(tiny_config, tmp_path / "run", "TRACKERS", ["kept"])
    (tracker,) = Kept.made
    scalars = [
        (step, {k: v for k, v in values.items() if not k.startswith("system/")})
        for _, step, values in tracker.got[1:-1]
    ]
    assert scalars == [(record["step"], numbers_of(record)) for record in records_of(run)]
    assert tracker.got[0][:2] == ("text", "configuration")
    assert "MASK_RATIO" in tracker.got[0][2]
    assert tracker.got[1][2]["system/peak_memory_gib"] > 0.05
    assert tracker.got[-1] == ("close",)


def test_one_that_fails_is_left_out_with_one_warning(tiny_config, tmp_path, kinds):
    run = train(tiny_config, tmp_path / "run", "TRACKERS", ["failing", "kept"])
    lines = [line for line in (run / "log.txt").read_text().splitlines() if "TRACKERS" in line and "warning" in line]
    assert len(lines) == 1
    assert "failing failed and is left out from now on (ConnectionError: no network)" in lines[0]
    kept = next(tracker for tracker in Kept.made if type(tracker) is Kept)
    assert len([got for got in kept.got if got[0] == "scalars"]) == len(records_of(run))


def test_pictures_of_a_finished_run(tiny_config, tmp_path, kinds):
    run = train(tiny_config, tmp_path / "run", "TRACKERS", ["kept"])
    config = get_config(run / "config.yaml", ["REPORT", True])
    Page(Run(config, run, RunLog(run, quiet=True, trackers=["kept"]))).finish()
    picture = next(got for tracker in Kept.made for got in tracker.got if got[0] == "picture")
    assert picture[1] == "reconstructions"
    assert picture[2][2] == 3
    assert picture[3] == records_of(run)[-1]["step"]


@pytest.mark.parametrize(("names", "message"), [(["tensorbord"], "'tensorbord' is none of"), ([3], "3 is none of")])
def test_unknown_names(tmp_path, names, message):
    with pytest.raises(UserError, match=message):
        trackers.Trackers(names, tmp_path, print)


def test_what_is_not_installed_is_said_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_KINDS", {"wandb": (Kept, "no_such_package")})
    with pytest.raises(UserError, match=r"pip install -r requirements/trackers\.txt"):
        trackers.Trackers(["wandb"], tmp_path, print)


# ---- the libraries themselves


def write_resumed(name, directory):
    """Write two steps, the second of which is lost; as a resumed run that one and a third; and a picture each."""
    for before, steps in ((0, (1, 2)), (1, (2, 3))):
        own = trackers.Trackers([name], directory, pytest.fail)
        own.configuration("A: 1\n", before)
        for step in steps:
            own.scalars("train", step, {"loss": step / 8})
        own.picture("reconstructions", Image.fromarray(np.full((4, 6, 3), 7, np.uint8)), steps[1])
        own.close()


def test_tensorboard_reads_it_back(tmp_path):
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write_resumed("tensorboard", tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.125), (2, 0.25), (3, 0.375)]
    assert "reconstructions" in events.Tags()["images"]
    assert events.Tags()["tensors"] == ["configuration/text_summary"]


def test_visualdl_reads_it_back(tmp_path):
    pytest.importorskip("visualdl")
    from visualdl import LogReader

    write_resumed("visualdl", tmp_path)
    found = {}
    for file in sorted((tmp_path / "visualdl").iterdir()):
        reader = LogReader(file_path=str(file))
        found |= {record.id: record.value for record in reader.get_data("scalar", "train/loss")}
        assert reader.get_tags()["image"] == ["reconstructions"]
    assert found == {1: 0.125, 2: 0.25, 3: 0.375}


def test_wandb_keeps_one_run_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_resumed("wandb", tmp_path)
    files = [file.name for file in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")]
    assert (len(files), len(set(files))) == (2, 1), "two processes, one id"
