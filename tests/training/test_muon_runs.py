"""Pretraining by Muon: stopped and resumed, sharded over two ranks, refused and warned of where it does not fit."""

import subprocess
import sys

import numpy as np
import pytest

import main_multi_gpu_pretrain
import runtime
from errors import UserError
from launch.run_directory import find
from methods import dispatch
from runtime import ROOT
from tests.conftest import TINY
from tests.helpers import script_runs
from tests.methods.test_toy_method import tensors

MUON = [*TINY, "MODEL.TYPE", "PRETRAIN", "TRAIN.OPTIMIZER.NAME", "Muon", "TRAIN.BASE_LR", 0.05, "TRAIN.NUM_EPOCHS", 1]
MUON += ["SAVE_FREQ_STEPS", 5, "KEEP_LAST", 9, "DATA.BATCH_SIZE", 128, "DATA.BATCH_FIT", "none", "DATA.DROP_LAST", True]


@pytest.mark.quick
def test_a_stopped_run_is_bit_identical(tmp_path):
    run = script_runs.train(main_multi_gpu_pretrain.main, tmp_path, "whole", MUON)
    script_runs.stop_after_step(run, tmp_path)
    script_runs.train(main_multi_gpu_pretrain.main, tmp_path, "again", MUON, "-resume", str(tmp_path / "again"))
    state = script_runs.assert_same(tmp_path / "again", run)
    assert any("mlp.fc1.weight/" in name and "velocity" in name for name in state)
    assert not any("mlp.fc1.weight/" in name and "moment1" in name for name in state)
    adamw = [*MUON, "TRAIN.OPTIMIZER.NAME", "AdamW"]
    with pytest.raises(UserError, match="has optimizer Muon, this one AdamW"):
        script_runs.train(main_multi_gpu_pretrain.main, tmp_path, "again", adamw, "-resume", str(tmp_path / "again"))


def test_matrices_that_are_distributed_whole_give_the_same_weights(tmp_path):
    found = []
    for sharding in ("none", "optimizer"):
        cfg = script_runs.write_config(tmp_path, sharding, [*MUON, "DATA.BATCH_SIZE", 64, "TRAIN.SHARDING", sharding])
        command = [sys.executable, str(ROOT / "main_multi_gpu_pretrain.py"), "-cfg", str(cfg), "-nproc", "2"]
        command += ["-output", str(tmp_path), "-device", "cpu", "-opts", "RUN", sharding]
        done = subprocess.run(
            command, env=runtime.original_environment(), cwd=tmp_path, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stdout + done.stderr
        weights = tensors(find(tmp_path / sharding))
        found.append({name: value for name, value in weights.items() if name.startswith("model.pdparams")})
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.quick
def test_where_it_does_not_fit(tiny_run, trained):
    with pytest.raises(UserError, match="no matrix of a block trains here; use AdamW"):
        dispatch.build_task(tiny_run("linearprobe", "TRAIN.OPTIMIZER.NAME", "Muon"))
    run = tiny_run("finetune", "TRAIN.OPTIMIZER.NAME", "Muon", "MODEL.PRETRAINED", str(trained("pretrain")))
    dispatch.build_task(run)
    assert "warning: TRAIN.OPTIMIZER.NAME=Muon" in (run.directory / "log.txt").read_text()
