"""Runs of a method through its main script, stopped ones that resume, and the same on two ranks."""

import subprocess
import sys
from pathlib import Path

import numpy as np

import runtime
from config import get_config
from launch.run_directory import find
from runtime import ROOT
from storage.run_files import EXTRA_FILE, MODEL_FILE
from tests.conftest import assert_close
from tests.helpers.joint_batch import comparable
from tests.methods.test_toy_method import tensors

STEP = "step-00000005"


def write_config(folder: Path, name: str, settings: list) -> Path:
    """Write a recipe, and return its file."""
    path = folder / f"{name}.yaml"
    path.write_text(get_config(None, settings).dump())
    return path


def train(main, folder: Path, name: str, settings: list, *flags: str) -> Path:
    """Run a main script's function with a recipe, and return the directory of the run."""
    cfg = write_config(folder, name, settings)
    main(["-cfg", str(cfg), "-output", str(folder), *flags, "-opts", "RUN", name])
    return folder / name


def stop_after_step(run: Path, folder: Path, name: str = "again") -> None:
    """Make a run of that name that was stopped after STEP of another one."""
    (folder / name / STEP).mkdir(parents=True)
    for file in (run / STEP).iterdir():
        (folder / name / STEP / file.name).write_bytes(file.read_bytes())


def assert_same(found: Path, expected: Path) -> dict[str, np.ndarray]:
    """Require that all tensors of two runs are bit-identical, and return them."""
    ours, theirs = tensors(find(found)), tensors(find(expected))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not np.array_equal(ours[name], theirs[name])] == []
    return ours


def compare_two_ranks(
    one: Path, settings: list, *flags: str, ignore: tuple[str, ...] = (), script: str = "pretrain"
) -> None:
    """Do a run once more on two ranks, and compare networks and buffers after STEP to 1e-5.

    Args:
        one: the run of a single rank.
        settings: those of the run, with half the batch.
        ignore: ends of names that are zero in exact arithmetic.
        script: "pretrain", "finetune" or "linearprobe".
    """
    folder = one.parent
    cfg = write_config(folder, "two", settings)
    command = [sys.executable, str(ROOT / f"main_multi_gpu_{script}.py"), "-cfg", str(cfg), "-output", str(folder)]
    command += [*flags, "-nproc", "2", "-device", "cpu", "-opts", "RUN", "two"]
    done = subprocess.run(
        command, env=runtime.original_environment(), cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = tensors(one / STEP), tensors(folder / "two" / STEP)
    assert ours.keys() == theirs.keys()
    for name, expected in ours.items():
        if name.startswith((MODEL_FILE, EXTRA_FILE)) and not name.endswith(ignore or "\0"):
            assert_close(comparable(name, theirs[name]), comparable(name, expected), 1e-5, name)
