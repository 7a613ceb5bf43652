"""What a crash can cost: when checkpoints are saved, what a new run keeps of a failed one, and which run is resumed."""

import json

import pytest

import runtime
from config import get_config
from errors import UserError
from launch import launcher, run_directory
from methods import dispatch
from pipeline.samplers import TrainSampler
from storage import run_state
from tests.helpers.recipes import RECIPES
from tests.helpers.saved_runs import fit_pretrain
from training import plan
from training.log import RunLog
from training.run import Run

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_saves_at_least_every_half_hour(name):
    config = get_config(RECIPES[name])
    assert config.SAVE_EVERY_MINUTES is not None
    assert config.SAVE_EVERY_MINUTES <= 30
    assert "costs at most 30 minutes of training" in plan.describe_saving(config, 10_000, 100_000)


def test_the_plan_says_what_a_crash_costs_without_the_clock(tiny_config):
    config = tiny_config("pretrain", "SAVE_EVERY_MINUTES", None, "SAVE_FREQ_STEPS", 7)
    assert "costs at most 7 updates" in plan.describe_saving(config, 4, 20)
    assert "costs at most 20 updates" in plan.describe_saving(
        tiny_config("pretrain", "SAVE_EVERY_MINUTES", None), 4, 20
    )


# ---- the log of a run that is started again


def test_a_run_that_is_started_again_has_each_update_once_in_its_log(tiny_run):
    run = tiny_run("pretrain", "REPORT_FREQ", 1, "SAVE_FREQ", 1000, "TRAIN.NUM_EPOCHS", 1)
    lost = [{"event": "train", "step": step, "loss": 9.0, "epoch": 0.1} for step in (1, 2, 3)]
    (run.directory / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lost))
    fit_pretrain(run)
    steps = [json.loads(line)["step"] for line in (run.directory / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert all(json.loads(line)["loss"] != 9.0 for line in (run.directory / "log.jsonl").read_text().splitlines())


def saved_run(tiny_config, output, name: str) -> None:
    """Make a run with a checkpoint in a directory of this name."""
    directory = output / name
    directory.mkdir(parents=True)
    config = tiny_config("pretrain", "SAVE", str(output), "TRAIN.NUM_EPOCHS", 0, "TRAIN.WARMUP_EPOCHS", 0)
    fit_pretrain(Run(config, directory, RunLog(directory, quiet=True)))


def test_auto_takes_the_run_that_began_last_whatever_the_clock_said(tiny_config, tmp_path):
    for name in ("pretrain-20261101-030000", "pretrain-20261101-013000", "pretrain-20261101-020000"):
        saved_run(tiny_config, tmp_path, name)
    config = tiny_config("pretrain", "SAVE", str(tmp_path), "MODEL.RESUME", "auto")
    assert run_directory.find_resume(config, "pretrain").parent.name == "pretrain-20261101-020000"
    numbers = {path.name: run_state.run_number(path) for path in tmp_path.iterdir()}
    assert sorted(numbers.values()) == [1, 2, 3]


def test_runs_of_older_versions_go_by_their_names_and_before_all_others(tiny_config, tmp_path):
    for name in ("pretrain-20260101-000000", "pretrain-20270101-000000"):
        saved_run(tiny_config, tmp_path, name)
        (state,) = (tmp_path / name).glob("step-*/state.json")
        values = json.loads(state.read_text())
        del values["run_number"]
        state.write_text(json.dumps(values))
        (state.parent / "manifest.json").unlink()
    config = tiny_config("pretrain", "SAVE", str(tmp_path), "MODEL.RESUME", "auto")
    assert run_directory.find_resume(config, "pretrain").parent.name == "pretrain-20270101-000000"
    saved_run(tiny_config, tmp_path, "pretrain-20250101-000000")
    assert run_directory.find_resume(config, "pretrain").parent.name == "pretrain-20250101-000000"


def test_a_start_that_fails_leaves_no_empty_run(tiny_config, tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    config = tiny_config("finetune", "DATA.DATASET", "folder", "DATA.DATA_PATH", str(tmp_path / "nothing"))
    run_directory.write_config(directory, config)
    with pytest.raises(UserError, match="no such directory"):
        dispatch.train_or_evaluate(Run(config, directory, RunLog(directory, quiet=True)))
    assert not directory.exists()
    directory.mkdir()
    (directory / "mine.txt").write_text("stays")
    with pytest.raises(UserError, match="no such directory"):
        dispatch.train_or_evaluate(Run(config, directory, RunLog(directory, quiet=True)))
    assert (directory / "mine.txt").read_text() == "stays"


def test_without_a_data_path_the_error_says_that_it_is_missing(tiny_config):
    for name in ("folder", "imagenet2012", "cifar10"):
        with pytest.raises(UserError, match=f"-data_path is missing: the directory of the data set {name}"):
            dispatch.build_train_loader(
                Run(tiny_config("finetune", "DATA.DATASET", name), None, RunLog(None, quiet=True))
            )


# ---- costs that grow with the ranks


@pytest.mark.parametrize("num_images", [10_000_000, 9_999_999, 65_536 * 128 + 5])
def test_micro_steps_of_65536_ranks_are_checked_by_two(num_images):
    sampler = TrainSampler(num_images, 64, 2, world_size=65_536)
    plan.check_micro_steps(sampler, 1)
    shares = [sampler.micro_sizes(sampler.updates_per_epoch - 1, rank) for rank in (0, 1, 40_000, 65_535)]
    assert sum(shares[0]) - sum(shares[-1]) in (0, 1)


@pytest.mark.parametrize(("images", "ranks"), [(10, 3), (7, 8), (64, 8), (65, 8), (1, 1), (23, 5)])
def test_shares_of_ranks_are_those_of_numpy(images, ranks):
    import numpy as np

    sampler = TrainSampler(max(images, ranks), 2, 50, world_size=ranks)
    count = sampler.update_size(0)
    expected = np.array_split(np.arange(count), ranks)
    found = [sampler._places(0, rank) for rank in range(ranks)]
    assert all(np.array_equal(one, two) for one, two in zip(found, expected, strict=True))


# ---- addresses and numbers of launchers


@pytest.mark.parametrize("master", ["a" * 300 + ":6070", "x:99999999999999", ":6070", "host", "host:٣"])
def test_masters_that_no_host_can_have_are_one_line(master):
    with pytest.raises(UserError, match="expected IP:PORT"):
        launcher.split_address(master)


def test_a_name_with_a_long_part_is_one_line():
    with pytest.raises(UserError, match="-master"):
        launcher._own_address("a" * 100 + ".example", 6070)


@pytest.mark.parametrize("text", ["abc", "-1", "", "1" * 30])
def test_a_rank_that_is_no_number_is_one_line(monkeypatch, text):

    monkeypatch.setenv("PADDLE_TRAINER_ID", text)
    with pytest.raises(UserError, match="PADDLE_TRAINER_ID="):
        runtime.rank()
