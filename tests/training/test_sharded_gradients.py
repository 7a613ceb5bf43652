"""Runs whose gradients and checkpoints are distributed over ranks, against runs that keep them whole."""

import json

import numpy as np
import pytest

from runtime import ROOT
from storage.run_files import optimizer_files
from storage.weight_files import read, read_nested
from tests.training.test_distributed import launch, run_two_and_one
from tests.training.test_host_copies import METHODS

OPTIONS = ["TRAIN.NUM_EPOCHS", 4, "REPORT_FREQ", 1, "TRAIN.EMA_DECAY", 0.9, "TRAIN.GRAD_CLIP", 0.5, "RUN", "run"]


def train(tmp_path, cfg, data, ranks, stop, accum=1):
    script = ROOT / "tests" / "helpers" / "sharded_run.py"
    flags = ["-cfg", cfg, "-data_path", data, "-batch_size", 12 // ranks // accum]
    code, output = launch(tmp_path, script, tmp_path, stop, *flags, nproc=ranks)
    assert code == 0, output
    assert output.count(f"{ranks} processes") >= 3


def tensors(run):
    """Return all tensors of a run's last checkpoint by file and name."""
    found = {}
    for file in ("model.pdparams", "ema.pdparams"):
        found |= {f"{file}/{name}": stored.read() for name, stored in read(run / "latest" / file).tensors.items()}
    for part in optimizer_files(run / "latest"):
        for name, value in read_nested(part, "optimizer").items():
            assert name not in found, "each part of the state is written once"
            found[name] = value if isinstance(value, np.ndarray) else value.read()
    return found


def test_every_method_has_the_same_bits_with_gradients_on_their_owners(tmp_path):
    """On two ranks, where no order of addition can matter; also with recomputation, and one in bfloat16."""
    code, output = launch(tmp_path, ROOT / "tests" / "helpers" / "sharded_methods.py", tmp_path / "result.json")
    assert code == 0, output
    differences = json.loads((tmp_path / "result.json").read_text())
    assert differences == dict.fromkeys(differences, 0.0)
    assert len(differences) == 2 * len(METHODS) + 1


@pytest.mark.slow
def test_a_run_on_4_2_1_and_3_ranks_is_bit_identical_with_and_without_sharding(tmp_path, tiny_yaml, image_folder):
    """With layer decay, averaged weights and clipping; two updates an epoch, and stops within and between epochs."""
    cfg = tiny_yaml("finetune", *OPTIONS, "DATA.DATASET", "imagenet2012")
    for ranks, stop in ((4, 3), (2, 4), (1, 5), (3, 8)):
        train(tmp_path, cfg, image_folder, ranks, stop)
        runs = {mode: tmp_path / mode / "run" for mode in ("none", "optimizer", "gradients")}
        expected = tensors(runs["none"])
        assert {(run / "latest").resolve().name for run in runs.values()} == {f"step-{stop:08d}"}
        for mode, run in runs.items():
            assert len(optimizer_files(run / "latest")) == (1 if mode == "none" else ranks)
            actual = tensors(run)
            assert actual.keys() == expected.keys()
            different = [name for name, value in expected.items() if not np.array_equal(actual[name], value)]
            assert not different, (ranks, mode, different)
        for rank in range(ranks if ranks > 1 else 0):
            held = json.loads((tmp_path / f"held-{ranks}-{rank}.json").read_text())
            assert held["owned"] <= 1.5 * sum(value.size for n, value in expected.items() if "moment1" in n) / ranks
            assert held["sums"] <= held["owned"]
            assert held["most"] <= 2 * held["largest"], "a bucket that fills and one that is sent"


def test_micro_steps_add_up_on_the_owners(tmp_path):
    """Two ranks with two micro-steps each are one process with all images."""
    run_two_and_one(tmp_path, 2, 1e-5, "TRAIN.SHARDING", "gradients")
