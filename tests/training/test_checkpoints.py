import json
import os

import numpy as np
import paddle
import pytest

import checkpoint
from errors import UserError
from launch import run_directory
from optim import build_optimizer, param_groups
from storage import run_files, weight_files
from storage.files import read_json
from storage.run_state import RunState
from tests.helpers.saved_runs import contents, save, snapshot, step, trained
from tests.helpers.small_models import equal, make_vit
from training import checkpoints
from training.optimizers import WeightAverage
from training.task import Task

pytestmark = pytest.mark.quick


def test_optimizer_state_survives_other_automatic_names(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, 2, model, optimizer)
    paddle.nn.Linear(2, 2)  # shifts Paddle's automatic names
    other, other_optimizer = trained(seed=5, steps=0)
    assert [p.name for p in other.parameters()] != [p.name for p in model.parameters()]
    state = checkpoints.load(path, Task("test", other, other_optimizer, None))
    assert state == RunState(2, best=1.0, save_number=1)
    step(model, optimizer)
    step(other, other_optimizer)
    assert equal(model, other)


def test_checkpoint_reads_with_plain_paddle(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, 2, model, optimizer)
    other = make_vit(seed=9)
    missing, unexpected = other.set_state_dict(paddle.load(str(path / "model.pdparams")))
    assert not missing
    assert not unexpected
    assert equal(model, other)


def test_latest_best_and_retention(tmp_path):
    model, optimizer = trained(steps=1)
    for number in range(1, 7):
        save(tmp_path, number, model, optimizer, is_best=number == 2, keep_last=2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000002", "step-00000005", "step-00000006"]
    assert run_directory.find(tmp_path).name == "step-00000006"
    assert weight_files.resolve(tmp_path) == tmp_path / "best" / "model.pdparams"
    assert not list(tmp_path.glob(".*"))


def test_half_written_checkpoint_is_no_checkpoint(tmp_path, monkeypatch):
    model, optimizer = trained(steps=1)
    save(tmp_path, 1, model, optimizer)
    monkeypatch.setattr(json, "dumps", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(tmp_path, 2, model, optimizer)
    monkeypatch.undo()
    assert run_directory.find(tmp_path).name == "step-00000001"
    save(tmp_path, 2, model, optimizer)
    assert run_directory.find(tmp_path).name == "step-00000002"


def test_averaged_weights_are_kept_and_meant(tmp_path):
    model, optimizer = trained(steps=1)
    average = WeightAverage(model, 0.5)
    step(model, optimizer)
    average.update(model)
    path = save(tmp_path, 1, model, optimizer, ema=average)
    other = make_vit(seed=3)
    checkpoint.load_weights(other, path)
    assert (other.head.weight == average.state_dict()["classifier.weight"]).all()
    restored = WeightAverage(other, 0.5)
    other_optimizer = build_optimizer("AdamW", param_groups(other, 0.05, 0.5))
    checkpoints.load(path, Task("test", other, other_optimizer, None, ema=restored))
    assert equal(other, model)
    assert all((restored.state_dict()[name] == value).all() for name, value in average.state_dict().items())


def test_resume_needs_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="neither a checkpoint nor a run directory"):
        run_directory.find(tmp_path)


@pytest.mark.parametrize("change", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("file", ["model", "optimizer", "ema", "state", "config", "manifest"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(tmp_path, file, change):
    model, optimizer = trained(steps=1)
    average = WeightAverage(model, 0.5)
    for number in (1, 2):
        path = save(tmp_path, number, model, optimizer, ema=average)
    (damaged,) = path.glob(f"{file}.*")
    content = damaged.read_bytes()
    if change == "flip":
        middle = len(content) // 2
        damaged.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif change == "truncate":
        damaged.write_bytes(content[: len(content) // 2])
    else:
        damaged.unlink()
    if file == "manifest" and change == "delete":  # a checkpoint of an older version has none
        assert run_directory.find(tmp_path).name == "step-00000002"
        return
    warnings = []
    assert run_directory.find(tmp_path, warnings.append).name == "step-00000001"
    assert len(warnings) == 1
    assert damaged.name in warnings[0] or file == "manifest"  # with a flipped sum, another file looks damaged
    with pytest.raises(ValueError, match="name the run's directory to resume"):
        run_directory.find(path)
    if file == "model":
        with pytest.raises(ValueError, match=r"model.pdparams.*take another checkpoint of the run|no such file"):
            checkpoint.load_weights(make_vit(), path / "model.pdparams")


def test_no_whole_checkpoint(tmp_path):
    model, optimizer = trained(steps=1)
    for number in (1, 2):
        (save(tmp_path, number, model, optimizer) / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="none of its 2 checkpoints is whole"):
        run_directory.find(tmp_path, warn=lambda line: None)


def test_a_run_that_went_back_goes_on_from_what_it_wrote_last(tmp_path):
    model, optimizer = trained(steps=1)
    for number in (1, 2, 3, 2):
        save(tmp_path, number, model, optimizer)
    assert run_directory.find(tmp_path).name == "step-00000002"


def test_writing_in_the_background_saves_what_was_there(tmp_path):
    model, optimizer = trained(steps=1)
    writer = checkpoints.Writer(tmp_path)
    expected = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    writer.submit(snapshot(1, model, optimizer))
    step(model, optimizer)  # meanwhile the weights change
    writer.submit(snapshot(2, model, optimizer))
    writer.wait()
    saved = checkpoint.read_weights(tmp_path / "step-00000001")
    assert all((saved[name] == value).all() for name, value in expected.items())
    assert any((saved[name] != value.numpy()).any() for name, value in model.state_dict().items())


def test_a_failed_write_is_raised(tmp_path, monkeypatch):
    model, optimizer = trained(steps=1)
    writer = checkpoints.Writer(tmp_path)
    monkeypatch.setattr(checkpoints, "write_tensors", lambda *arguments: (_ for _ in ()).throw(OSError(28, "no space")))
    writer.submit(snapshot(1, model, optimizer))
    with pytest.raises(
        ValueError, match="step-00000001: the checkpoint cannot be written: no space; the ones before it"
    ):
        writer.wait()
    writer.wait()  # it is raised once


@pytest.mark.parametrize(
    "change", [lambda a: a[:1], lambda a: a.reshape(-1), lambda a: np.float32(1), lambda a: a * np.nan]
)
def test_moments_of_another_shape_are_refused(tmp_path, change):
    model, optimizer = trained(steps=1)
    state = {name: value.numpy() for name, value in checkpoints.optimizer_state_by_name(model, optimizer).items()}
    key = next(key for key in state if key.endswith("moment1_0") and state[key].ndim > 1)
    with pytest.raises(UserError, match="optimizer state .* (is not as this run's|not finite)"):
        checkpoints.set_optimizer_state_by_name(model, optimizer, {**state, key: change(state[key])}, tmp_path)


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
