"""Every run script hands signals on to the training, and ends as it does, also as process 1 of a container."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime import ROOT

TRAINING = ["run_pretrain_multi.sh", "run_contrastive_multi.sh", "run_finetune_multi.sh", "run_mocov3_multi.sh"]


def wait_for(condition, secs: float = 100.0) -> None:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < secs
        time.sleep(0.05)


def start(script, tiny_yaml, tmp_path, *prefix, **settings):
    # The scripts' own interpreter writes its number down, so that it can be looked for afterwards.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'main_multi_gpu' in ' '.join(sys.orig_argv):\n"
        f"    open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
    )
    mode = "finetune" if "finetune" in script else "pretrain"
    cfg = tiny_yaml(mode, "TRAIN.NUM_EPOCHS", 2000, "SAVE_FREQ_STEPS", 10)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": sys.executable, "AMP": "none"}
    environment |= {"CFG": str(cfg), "DATASET": "synthetic", "DEVICE": "cpu", "OUTPUT": str(tmp_path / "runs")}
    return subprocess.Popen(
        [*prefix, "sh", str(ROOT / script)],
        env={**environment, "PYTHONPATH": str(tmp_path), **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGINT)],
    )


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def end_of(process, tmp_path) -> tuple[int, str]:
    """Return exit code and output, after a look that no process is left."""
    output, _ = process.communicate(timeout=100)
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()] if (tmp_path / "pids").exists() else []
    wait_for(lambda: not any(map(is_alive, pids)), 10)
    return process.returncode, output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda n: n.name)
@pytest.mark.parametrize("retries", ["", "2"], ids=["", "RETRIES"])
def test_a_training_saves_and_the_script_ends_with_75(tiny_yaml, tmp_path, number, retries):
    process = start("run_pretrain_multi.sh", tiny_yaml, tmp_path, RETRIES=retries)
    wait_for(lambda: list(tmp_path.glob("runs/*/step-*")))
    process.send_signal(number)
    code, output = end_of(process, tmp_path)
    assert code == 75, output
    assert "the run stops and saves" in output


@pytest.mark.parametrize("secs", [0.02, 0.3, 1.0, 2.5])
def test_an_early_signal_leaves_nothing_behind(tiny_yaml, tmp_path, secs):
    process = start("run_pretrain_multi.sh", tiny_yaml, tmp_path)
    time.sleep(secs)
    process.send_signal(signal.SIGTERM)
    code, output = end_of(process, tmp_path)
    assert code in (143, 75, -signal.SIGTERM), output  # the last: before the script has set its trap


def test_two_ranks_save_by_the_signal_of_the_script(tiny_yaml, tmp_path):
    process = start("run_pretrain_multi.sh", tiny_yaml, tmp_path, NPROC="2")
    wait_for(lambda: list(tmp_path.glob("runs/*/step-*")))
    process.send_signal(signal.SIGTERM)
    code, output = end_of(process, tmp_path)
    assert code == 75, output


def test_the_stages_of_contrastive_tuning_end_with_their_script(tmp_path):
    """The recipe is on digits; its head stage gets the signal."""
    weights = tmp_path / "weights"
    weights.mkdir()
    run = [sys.executable, "main_multi_gpu_pretrain.py", "-cfg", "configs/digits_pretrain.yaml", "-device", "cpu"]
    more = ["-output", str(tmp_path), "-opts", "RUN", "weights", "TRAIN.NUM_EPOCHS", "0", "TRAIN.WARMUP_EPOCHS", "0"]
    subprocess.run([*run, *more], cwd=ROOT, check=True, capture_output=True)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHON": sys.executable, "AMP": "none"}
    environment |= {"MODEL": "digits", "PRETRAINED": str(weights), "DEVICE": "cpu", "OUTPUT": str(tmp_path / "runs")}
    process = subprocess.Popen(
        ["sh", str(ROOT / "run_contrastive_multi.sh"), "-opts", "TRAIN.NUM_EPOCHS", "500"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: list(tmp_path.glob("runs/*/log.jsonl")))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 75, output
    assert list(tmp_path.glob("runs/contrastive-minimal-head/step-*"))
    assert not list(tmp_path.glob("runs/contrastive-minimal-tuning"))


def test_a_script_that_is_process_1_hands_signals_on(tiny_yaml, tmp_path):
    probe = subprocess.run(["unshare", "-p", "-f", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("needs the right to make a namespace of processes")
    process = start("run_pretrain_multi.sh", tiny_yaml, tmp_path, "unshare", "-p", "-f", "--kill-child")
    wait_for(lambda: list(tmp_path.glob("runs/*/step-*")))
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 75, output


def test_a_launcher_that_waits_for_other_nodes_ends_at_once(tiny_yaml, tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start("run_pretrain_multi.sh", tiny_yaml, tmp_path, NPROC="1", NNODES="2", MASTER=f"127.0.0.1:{port}")
    time.sleep(12.0)  # it waits for the other node by now
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    code, output = end_of(process, tmp_path)
    assert time.monotonic() - started < 20
    assert code == 143, output
    assert "ended by SIGTERM" in output


@pytest.mark.parametrize("code", [0, 1, 2, 127])
def test_exit_codes_are_handed_on(code):
    script = f". {ROOT}/run_common.sh; forward sh -c 'exit {code}'"
    assert subprocess.run(["sh", "-c", script], cwd=ROOT, check=False).returncode == code


def test_paths_in_the_last_advice_are_quoted(tmp_path):
    script = f'. {ROOT}/run_common.sh; quote "$1"; quote plain/path'
    done = subprocess.run(["sh", "-c", script, "sh", "a b'c$"], capture_output=True, text=True, cwd=ROOT, check=True)
    words = done.stdout.splitlines()
    assert words[1] == "plain/path"
    again = subprocess.run(["sh", "-c", f"printf %s {words[0]}"], capture_output=True, text=True, check=True)
    assert again.stdout == "a b'c$"
