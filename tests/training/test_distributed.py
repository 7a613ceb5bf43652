"""Two processes on one machine (gloo), against one process with the joint batch."""

import subprocess
import sys

import numpy as np
import pytest

import runtime
from checkpoint import read_weights
from config import get_config
from methods import dispatch
from runtime import ROOT
from tests.conftest import MODES, TINY, assert_close
from tests.helpers.joint_batch import comparable, train
from training.log import RunLog, read_log
from training.run import Run


def launch(tmp_path, script, *arguments, nproc=2):
    command = [
        sys.executable,
        "-m",
        "paddle.distributed.launch",
        "--nproc_per_node",
        str(nproc),
        "--log_dir",
        str(tmp_path / "logs"),
        str(script),
        *map(str, arguments),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=runtime.original_environment(), cwd=tmp_path
    )
    logs = "".join(path.read_text() for path in (tmp_path / "logs").glob("workerlog.*"))
    return done.returncode, done.stdout + done.stderr + logs


@pytest.mark.parametrize(("accum", "recomputes"), [(1, False), (2, False), (2, True)])
def test_two_processes_are_one_with_the_joint_batch(tmp_path, accum, recomputes):
    run_two_and_one(tmp_path, accum, 1e-5, "TRAIN.RECOMPUTE", recomputes)


def test_gradients_sent_in_bfloat16_are_close(tmp_path):
    """They have 8 bits, so weights may differ by less than a percent of the norm; checked that they do differ."""
    largest = run_two_and_one(tmp_path, 2, 1e-2, "TRAIN.BF16_ALLREDUCE", True)
    assert largest > 1e-6


def test_two_processes_with_static_graphs_are_one_without(tmp_path, tiny_yaml, tiny_run):
    """To 1e-4 of the largest weight: other kernels than the eager ones on CPU. Ends with a smaller micro-step."""
    options = ["TRAIN.NUM_EPOCHS", 1, "MODEL.DROPPATH", 0.0, "TRAIN.MIXUP_PROB", 0.0, "TRAIN.RANDOM_ERASE_PROB", 0.0]
    one = tiny_run("finetune", *options, "DATA.BATCH_SIZE", 400)
    dispatch.train_or_evaluate(one)
    cfg = tiny_yaml("finetune", *options, "DATA.BATCH_SIZE", 100, "TRAIN.ACCUM_ITER", 2, "TRAIN.TO_STATIC", True)
    command = [sys.executable, str(ROOT / "main_multi_gpu_finetune.py"), "-cfg", cfg, "-nproc", "2", "-device", "cpu"]
    command += ["-output", str(tmp_path), "-opts", "RUN", "static"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, cwd=tmp_path, env=runtime.original_environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "runs as a static graph" in done.stdout
    eager, static = (read_weights(run / "latest" / "model.pdparams") for run in (one.directory, tmp_path / "static"))
    for name, expected in eager.items():
        assert_close(comparable(name, static[name]), comparable(name, expected), 1e-4, name)


def run_two_and_one(tmp_path, accum, tolerance, *options):
    opts = [*TINY, *MODES["pretrain"], "TRAIN.NUM_EPOCHS", 2]  # updates of 8, 8 and 5 images, twice
    split = [*opts, *options, "DATA.BATCH_SIZE", 4 // accum, "TRAIN.ACCUM_ITER", accum]
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    code, output = launch(
        tmp_path, ROOT / "tests" / "helpers" / "joint_batch.py", tmp_path / "two", tmp_path / "two.npz", *split
    )
    assert code == 0, output
    joint = train(Run(get_config(None, opts), tmp_path / "one", RunLog(tmp_path / "one", quiet=True)))
    with np.load(tmp_path / "two.npz") as two:
        pairs = {name: (comparable(name, two[name]), comparable(name, expected)) for name, expected in joint.items()}
    for name, (actual, expected) in pairs.items():
        assert_close(actual, expected, tolerance, name)
    losses = [[record["loss"] for record in read_log(tmp_path / run)] for run in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    return max(np.abs(actual - expected).max() for actual, expected in pairs.values())


def test_main_script_starts_its_own_processes(tmp_path, tiny_yaml):
    """`-nproc 2` trains, evaluates every image once, and writes one run directory."""

    def run_main(*flags):
        command = [sys.executable, str(ROOT / "main_multi_gpu_linearprobe.py"), *flags]
        environment = runtime.original_environment()
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)

    cfg = tiny_yaml(
        "linearprobe", "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE_EVAL", 63
    )  # 256 images: ragged on both ranks
    done = run_main("-cfg", cfg, "-nproc", "2", "--output", str(tmp_path / "out"), "-opts", "DATA.BATCH_SIZE", "64")
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (tmp_path / "out").glob("linearprobe-*")
    assert "2 processes" in (run / "log.txt").read_text()
    last = read_log(run)[-1]
    assert (last["event"], last["step"]) == ("eval", 1024 // 128)
    alone = run_main("-cfg", cfg, "-eval", "-pretrained", str(run))
    assert f"Acc@1 {last['acc1']:.3f}, Acc@5 {last['acc5']:.3f}" in alone.stdout, alone.stdout + alone.stderr


def test_ranks_draw_other_masks(tmp_path):
    script = tmp_path / "masks.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import numpy as np, paddle\n"
        "from layers import across_ranks\n"
        "from training import engine\n"
        "paddle.set_device('cpu'); across_ranks.join()\n"
        "engine._seed_micro_step(0, 3, 0)\n"
        "noise = paddle.rand([4]).numpy().astype('float64')\n"
        "spread = across_ranks.sum_across_ranks(noise) - 2 * noise\n"
        "assert np.abs(spread).max() > 1e-3\n"
    )
    code, output = launch(tmp_path, script)
    assert code == 0, output


def test_nodes_that_see_other_checkpoints_stop(tmp_path):
    """A run directory on a disk of one node only must not let its ranks start at different steps."""
    opts = [*TINY, *MODES["pretrain"], "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 4]
    script = tmp_path / "resume.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import runtime\n"
        "import pathlib, zlib, paddle\n"  # zlib after Paddle 2.6 would crash
        "from launch import command_line, run_directory\n"
        "from layers import across_ranks\n"
        "from config import get_config\n"
        "from training.run import Run\n"
        "from training.log import RunLog\n"
        "from tests.helpers.joint_batch import train\n"
        "paddle.set_device('cpu'); across_ranks.join()\n"
        "directory = pathlib.Path(sys.argv[1]) if runtime.is_main() else None\n"
        f"config = get_config(None, {opts!r})\n"
        "resume_from = run_directory.find(directory) if directory and len(sys.argv) > 2 else None\n"
        "command_line.run(lambda: train(Run(config, directory, RunLog(directory, quiet=True), resume_from)))\n"
    )
    (tmp_path / "run").mkdir()
    assert launch(tmp_path, script, tmp_path / "run")[0] == 0
    code, output = launch(tmp_path, script, tmp_path / "run", "resume")
    assert code != 0
    assert "error: -resume: not all nodes see the same checkpoint" in output
