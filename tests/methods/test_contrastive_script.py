"""run_contrastive_multi.sh on the digits: both stages, with a stop in the first one."""

import os
import signal
import subprocess
import sys
import time

import pytest

import main_multi_gpu_pretrain
import runtime
from runtime import ROOT
from tools import knn
from training.log import read_log


def start(tmp_path, flags=(), **settings) -> subprocess.Popen:
    environment = runtime.original_environment() | {"PYTHON": sys.executable, "OUTPUT": str(tmp_path / "output")}
    environment |= {"MODEL": "digits", "DEVICE": "cpu", "AMP": "none", "PRETRAINED": str(tmp_path / "output" / "mae")}
    command = ["sh", "run_contrastive_multi.sh", *flags, "-opts", "REPORT", "False", "SAVE_FREQ_STEPS", "5"]
    command += ["REPORT_FREQ", "1", "TRAIN.NUM_EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0"]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment | settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> str:
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_both_stages_with_a_stop_between(tmp_path):
    opts = ["-opts", "RUN", "mae", "TRAIN.NUM_EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0", "REPORT", "False"]
    main_multi_gpu_pretrain.main(
        ["-cfg", str(ROOT / "configs/digits_pretrain.yaml"), "-output", str(tmp_path / "output"), *opts]
    )
    head, tuning = (tmp_path / "output" / f"contrastive-minimal-{stage}" for stage in ("head", "tuning"))
    process = start(tmp_path)
    deadline = time.monotonic() + 60
    while not list(head.glob("step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    listed = subprocess.run(["pgrep", "-f", f"main_multi_gpu_pretrain.py.*{head.name}"], capture_output=True, text=True)
    main = listed.stdout.split()[0]
    os.kill(int(main), signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output
    assert not tuning.exists()

    output = finish(start(tmp_path))
    assert "resumed" in (head / "log.txt").read_text()
    assert (
        f"PRETRAINED={tuning} CFG=configs/mae_ct/digits_contrastive_linearprobe.yaml sh run_linear_probe_multi.sh"
        in output
    )
    steps = [record["step"] for record in read_log(head) if record["event"] == "train"]
    assert steps == sorted(set(steps))
    assert steps[-1] == 22
    assert knn.main([str(tuning), "-k", "5"])["acc1, k=5"] > 50.0


def test_a_dry_run_prints_the_plan_of_what_is_there(tmp_path):
    opts = ["-opts", "RUN", "mae", "TRAIN.NUM_EPOCHS", "0", "TRAIN.WARMUP_EPOCHS", "0", "REPORT", "False"]
    main_multi_gpu_pretrain.main(
        ["-cfg", str(ROOT / "configs/digits_pretrain.yaml"), "-output", str(tmp_path / "output"), *opts]
    )
    output = finish(start(tmp_path, flags=["-dry_run"]))
    assert "contrastive_head: ContrastiveTuning" in output
    assert "contrastive-minimal-head, so there is no plan of it yet" in output
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["mae"]


def test_settings_that_cannot_work_end_at_once(tmp_path):
    process = start(tmp_path, flags=["-output", "elsewhere"])
    assert "error: -output: differs from stage to stage; use the settings above instead" in process.communicate()[0]
    assert process.returncode == 2
    for settings, said in (
        ({"AUG": "strong"}, "AUG=strong: must be minimal or aug"),
        ({"STAGE": "last"}, "STAGE=last: must be both, head or tuning"),
        ({"PRETRAINED": ""}, "PRETRAINED is not set"),
        ({"STAGE": "tuning"}, "mae: no such file"),
    ):
        process = start(tmp_path, **settings)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 2
        assert said in output
