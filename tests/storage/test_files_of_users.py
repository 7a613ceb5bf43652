"""Nothing of the user's is overwritten or deleted: outputs, checkpoints, runs."""

import csv
import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

import tools.evaluate
import tools.export
import tools.features
import tools.visualise
from errors import UserError
from launch import run_directory
from launch.run_lock import RunLock
from measures import extraction
from pages import tables
from storage import run_files
from storage.json_files import read_json, read_records
from tests.helpers.saved_runs import fit_pretrain, save, trained
from training.log import RunLog

pytestmark = pytest.mark.quick


@pytest.fixture
def run_dir(tiny_run):
    """Return the directory of a run that has ended."""
    run = tiny_run("finetune", "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    from methods import dispatch

    (run.directory / "config.yaml").write_text(run.config.dump())
    dispatch.train_or_evaluate(run)
    run.log.record("train", 0, {"loss": 1.0})
    return run.directory


def contents(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("place", [".", "latest", "sub", "latest/sub"])
@pytest.mark.parametrize("tool", [tools.evaluate, tools.export, tools.features])
def test_no_tool_writes_into_a_run_or_a_checkpoint(run_dir, tool, place):
    before = contents(run_dir)
    flags = ["-format", "paddle"] if tool is tools.export else []
    with pytest.raises(UserError, match="is a (run|checkpoint), which holds its own files only"):
        tool.main([str(run_dir), "-out", str(run_dir / place), *flags])
    assert contents(run_dir) == before


def test_no_picture_goes_over_an_input(run_dir, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 20)).save(photos / name)
    before = contents(photos)
    for images in ([photos / "a.png"], [photos], [photos / "b.png", tmp_path / "photos" / ".." / "photos" / "a.png"]):
        with pytest.raises(UserError, match="is an input, which would be overwritten"):
            tools.visualise.main([str(run_dir), *map(str, images), "-attention", "-out", str(photos / "a.png")])
    (tmp_path / "link.png").symlink_to(photos / "a.png")
    with pytest.raises(UserError, match="is an input"):
        tools.visualise.main([str(run_dir), str(photos / "a.png"), "-attention", "-out", str(tmp_path / "link.png")])
    assert contents(photos) == before


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


def test_an_export_needs_room(run_dir, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(tools.export.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="the disk has 1,000 bytes left"):
        tools.export.main([str(run_dir), "-out", str(tmp_path / "exported"), "-format", "paddle"])
    assert not list((tmp_path / "exported").iterdir())


# ---- checkpoints


def test_only_checkpoints_are_deleted(tmp_path):
    """What else begins with "step-" stays, and neither ends a run nor is resumed."""
    model, optimizer = trained(steps=1)
    for name in ("step-00000480-keep", "step-by-step", "step-00000001.bak", "step-7"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text('{"step": 480}')
    (tmp_path / "step-notes.txt").write_text("mine")
    before = contents(tmp_path)
    for number in range(1, 6):
        save(tmp_path, number, model, optimizer, keep_last=1)
    after = contents(tmp_path)
    assert {name: after.get(name) for name in before} == before
    assert run_directory.find(tmp_path).name == "step-00000005"
    assert [path.name for path in run_files.list_checkpoints(tmp_path)] == ["step-00000005"]


def test_a_file_that_the_user_put_into_a_checkpoint_stays(tmp_path):
    model, optimizer = trained(steps=1)
    (save(tmp_path, 1, model, optimizer) / "notes.txt").write_text("mine")
    save(tmp_path, 2, model, optimizer, keep_last=1)
    assert [path.name for path in (tmp_path / "step-00000001").iterdir()] == ["notes.txt"]
    assert run_directory.find(tmp_path).name == "step-00000002"


@pytest.mark.parametrize("name", ["step-00000002", "best", "latest"])
def test_a_place_that_is_taken_is_an_error(tmp_path, name):
    model, optimizer = trained(steps=1)
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=f"{name}: is not from here, and a checkpoint would go there"):
        save(tmp_path, 2, model, optimizer, is_best=True)
    assert (tmp_path / name / "notes.txt").read_text() == "mine"


def test_checkpoints_are_in_the_order_of_writing_whatever_their_times(tmp_path):
    model, optimizer = trained(steps=1)
    for number in (1, 2, 3):
        save(tmp_path, number, model, optimizer)
    for second, path in enumerate(sorted(tmp_path.glob("step-*"), reverse=True)):
        os.utime(path / "state.json", (second, second))  # as a copy may have them
    assert run_directory.find(tmp_path).name == "step-00000003"
    save(tmp_path, 2, model, optimizer)  # the run went back
    assert run_directory.find(tmp_path).name == "step-00000002"


def test_checkpoints_of_older_versions_are_in_the_order_of_steps(tmp_path):
    model, optimizer = trained(steps=1)
    for number in (1, 2, 3):
        path = save(tmp_path, number, model, optimizer)
        state = read_json(path / "state.json")
        del state["save_number"]
        (path / "state.json").write_text(json.dumps(state))
        (path / "manifest.json").unlink()
        os.utime(path / "state.json", (1000 - number, 1000 - number))
    assert run_directory.find(tmp_path).name == "step-00000003"
    save(tmp_path, 2, model, optimizer)
    assert run_directory.find(tmp_path).name == "step-00000002"


# ---- logs that a power failure tore


@pytest.mark.parametrize("bad", ["\0" * 40, '{"event": "train", "st', "[1, 2]", '{"event": 3, "step": 1}', "[" * 9999])
def test_damaged_lines_of_a_log_are_skipped_with_a_note(tmp_path, bad, capsys):
    log = RunLog(tmp_path)
    for step in (1, 2):
        log.record("train", step, {"loss": 0.5})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write(f"{bad}\n")
    log.record("train", 3, {"loss": 0.25})
    notes = []
    assert [record["step"] for record in read_records(tmp_path / "log.jsonl", notes.append)] == [1, 2, 3]
    assert "1 damaged lines are skipped" in notes[0]
    log.rewind(2)
    assert "1 damaged lines are skipped" in capsys.readouterr().out
    assert [record["step"] for record in read_records(tmp_path / "log.jsonl")] == [1, 2]


# ---- two processes in one directory


def hold(directory, ready):
    lock = RunLock(directory, print)
    ready.set()
    time.sleep(600)
    lock.release()


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path):
    context = multiprocessing.get_context("fork")
    for _ in range(20):
        ready = context.Event()
        first = context.Process(target=hold, args=(tmp_path, ready))
        first.start()
        assert ready.wait(20)
        with pytest.raises(UserError, match=f"another process works in it .process {first.pid} on "):
            RunLock(tmp_path, print)
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        RunLock(tmp_path, print).release()
    assert not list(tmp_path.iterdir())


def test_a_run_holds_its_lock_to_its_end(tiny_run):
    run = tiny_run("pretrain", "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 64)
    run.log._lock = RunLock(run.directory, print)
    fit_pretrain(run)
    assert not (run.directory / ".lock").exists()


# ---- tables


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "cat\x1b[31m"])
def test_no_cell_is_a_formula(tmp_path, name):
    tables.write_csv(tmp_path / "t.csv", ["class", "n"], [[name, -1], ['a, "b"\nc', 2.5]])
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert not rows[1][0].startswith(("=", "+", "-", "@", "\t"))
    assert "\x1b" not in rows[1][0]
    assert rows[1][1] == "-1", "a number stays one"
    assert rows[2] == ['a, "b"\nc', "2.5"]
