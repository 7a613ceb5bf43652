"""Ends of jobs with several processes: soon, with the right code, and with the reason last."""

import re
import subprocess
import sys
import time

import pytest

import runtime
from launch import launcher
from runtime import ROOT

SOON_SECS = 60


# A site module that Python loads by itself. In rank 1 it acts when the first checkpoint is there.
DISTURB = """
import glob, os, signal, threading, time
def act(number, frame):
    raise RuntimeError("rank one breaks")
def watch():
    while not glob.glob(os.environ["TEST_RUNS"] + "/*/step-*"):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL if os.environ["TEST_HOW"] == "kill" else signal.SIGUSR2)
if os.environ.get("PADDLE_TRAINER_ID") == "1":
    signal.signal(signal.SIGUSR2, act)
    threading.Thread(target=watch, daemon=True).start()
"""


def run_disturbed(tmp_path, cfg, how):
    (tmp_path / "sitecustomize.py").write_text(DISTURB)
    runs = tmp_path / "runs"
    command = [sys.executable, str(ROOT / "main_multi_gpu_pretrain.py"), "-cfg", cfg, "-nproc", "2", "-device", "cpu"]
    environment = {"PYTHONPATH": str(tmp_path), "TEST_RUNS": str(runs), "TEST_HOW": how}
    process = subprocess.Popen(
        [*command, "-output", str(runs)],
        env={**runtime.original_environment(), **environment},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(runs.glob("*/step-*")) and process.poll() is None:
        time.sleep(0.05)
    started = time.monotonic()
    try:
        _, errors = process.communicate(timeout=2 * SOON_SECS)
    finally:
        process.kill()
    assert time.monotonic() - started < SOON_SECS
    return process.returncode, errors.rstrip().splitlines()


@pytest.fixture
def long_run(tiny_yaml):
    return tiny_yaml("pretrain", "TRAIN.NUM_EPOCHS", 500, "SAVE_FREQ_STEPS", 2, "DATA.NUM_WORKERS", 1)


def test_a_rank_that_raises_ends_the_job_with_its_traceback_last(tmp_path, long_run):
    code, lines = run_disturbed(tmp_path, long_run, "raise")
    assert code == 1
    first = max(index for index, line in enumerate(lines) if line == "rank 1 failed first:")
    assert lines[first + 1] == "Traceback (most recent call last):"
    assert "rank one breaks" in "".join(lines[first:])


def test_a_rank_that_is_killed_ends_the_job(tmp_path, long_run):
    code, lines = run_disturbed(tmp_path, long_run, "kill")
    assert code == 137, lines
    assert re.match(r"error: rank 1 was ended by SIGKILL", lines[-1]), lines


@pytest.mark.slow
def test_what_the_user_can_mend_is_last_and_one_line(tmp_path, tiny_yaml, image_folder):
    """One image that one rank meets; the other rank waits for it in vain."""
    from pipeline.samplers import TrainSampler

    cfg = tiny_yaml("pretrain", "DATA.DATASET", "imagenet2012", "TRAIN.NUM_EPOCHS", 200, "DATA.BATCH_SIZE", 4)
    (tmp_path / "photos").mkdir()
    names = [line.rpartition(" ")[0] for line in (image_folder / "train_list.txt").read_text().splitlines()]
    sampler = TrainSampler(24, 4, rank=1, world_size=2)
    bad = names[sampler.indices(1, rank=1)[0]]
    for name in names:
        copy = tmp_path / "photos" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"no image" if name == bad else (image_folder / name).read_bytes())
    (tmp_path / "photos" / "train_list.txt").write_text("".join(f"{name} 0\n" for name in names))
    command = [sys.executable, str(ROOT / "main_multi_gpu_pretrain.py"), "-cfg", cfg, "-nproc", "2", "-device", "cpu"]
    command += ["-data_path", str(tmp_path / "photos"), "-output", str(tmp_path / "runs")]
    environment = runtime.original_environment()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2 * SOON_SECS, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    last = done.stderr.rstrip().splitlines()[-1]
    assert last.startswith(f"error: {tmp_path / 'photos' / bad}: cannot be read as an image"), done.stderr[-2000:]
    # With "skip", the run continues, and lists what its second rank left out.
    done = subprocess.run(
        [*command, "-opts", "DATA.BAD_IMAGES", "skip", "TRAIN.NUM_EPOCHS", "1", "RUN", "skipping"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=2 * SOON_SECS,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "runs" / "skipping" / "bad_images.txt").read_text().splitlines()
    assert line.startswith(str(tmp_path / "photos" / bad))
    assert "warning: 1 images skipped so far, the last one" in done.stdout


@pytest.mark.parametrize("master", ["10.0.0.1", "10.0.0.1:", ":6170", "10.0.0.1:65535", "10.0.0.1:port"])
def test_addresses_are_checked(master):
    with pytest.raises(ValueError, match=f"-master {re.escape(master)}: expected IP:PORT"):
        launcher.split_address(master)


def test_own_address_is_the_one_towards_the_first_node():
    assert launcher._own_address("127.0.0.1", 6170) == "127.0.0.1"
    if sys.platform == "linux":
        assert launcher._find_interface("127.0.0.1") == "lo"
    with pytest.raises(ValueError, match="-master no.such.host.invalid:1"):
        launcher._own_address("no.such.host.invalid", 1)


@pytest.mark.parametrize("capability", [(9, 0), (10, 0), (3, 7)])
def test_a_gpu_without_code_in_the_build_is_named(capability):
    from training import device

    with pytest.raises(ValueError, match="Paddle 2.6.2 has no code for its compute capability .*install Paddle 3"):
        device.check_capability("2.6.2", capability, "a GPU")
    device.check_capability("3.3.1", capability, "a GPU")
    for works in ((5, 0), (8, 6), (8, 9)):
        device.check_capability("2.6.2", works, "a GPU")


def test_nodes_of_a_job_have_one_token_and_other_jobs_have_others(monkeypatch):
    from config import get_config

    def token(*opts, master="10.0.0.1:6070", nodes=2):
        return launcher.job_token(master, nodes, get_config(None, list(opts)))

    assert token("SAVE", "/a", "DATA.DATA_PATH", "/b", "RUN", "x", "DATA.NUM_WORKERS", 1) == token()
    others = [token("SEED", 1), token(master="10.0.0.1:6071"), token(nodes=3), token("TRAIN.BASE_LR", 1.0)]
    monkeypatch.setenv("MAE_JOB_SECRET", "only ours")
    others.append(token())
    monkeypatch.undo()
    assert len({token(), *others}) == 6
