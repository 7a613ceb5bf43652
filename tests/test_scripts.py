"""The shell scripts, the tools and the README do what they say."""

import os
import re
import subprocess
import sys

import pytest

from runtime import ROOT

SCRIPTS = sorted(ROOT.glob("run_*.sh"))
LAUNCHERS = ["run_pretrain_multi.sh", "run_finetune_multi.sh", "run_linear_probe_multi.sh", "run_eval_multi.sh"]


def sh(script, *arguments, **environment):
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHON": sys.executable,
        **environment,
    }
    return subprocess.run(
        ["sh", str(ROOT / script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_posix_sh(script):
    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
    text = script.read_text()
    assert "[[" not in text
    assert not text.rstrip().endswith("\\")


@pytest.mark.parametrize("script", LAUNCHERS)
def test_launchers_say_what_is_missing(script):
    done = sh(script, "-dry_run", PRETRAINED="weights")
    assert done.returncode == 2
    assert "error: -data_path is missing: the directory of the data set imagenet2012 (DATA.DATA_PATH)" in done.stderr


def test_photos_without_splits_become_a_classifier(image_folder, tmp_path):
    settings = {"DATA_PATH": str(image_folder / "train"), "OUTPUT": str(tmp_path / "out"), "DEVICE": "cpu"}
    short = ["TRAIN.NUM_EPOCHS", "2", "TRAIN.WARMUP_EPOCHS", "0", "DATA.NUM_WORKERS", "0", "REPORT", "False"]
    for said in ("evaluation after", "nothing is left to do"):  # the second time it resumes
        done = sh("run_photos.sh", *short, **settings)
        assert done.returncode == 0, done.stdout + done.stderr
        assert said in done.stdout
        assert f"-m tools.predict {tmp_path / 'out' / 'labels'} PHOTOS" in done.stdout


def test_launchers_take_settings_from_the_environment(tiny_yaml, tmp_path):
    settings = {"DATASET": "synthetic", "DEVICE": "cpu", "OUTPUT": str(tmp_path / "a dir"), "BATCH_SIZE": "64"}
    done = sh(
        "run_pretrain_multi.sh", "-opts", "TRAIN.NUM_EPOCHS", "1", CFG=tiny_yaml("pretrain"), ACCUM_ITER="2", **settings
    )
    assert done.returncode == 0, done.stderr
    assert "64 per process x 2 accumulated x 1 processes" in done.stdout
    (run,) = (tmp_path / "a dir").glob("pretrain-*")
    done = sh(
        "run_finetune_multi.sh",
        CFG=tiny_yaml("finetune", "TRAIN.NUM_EPOCHS", 1),
        PRETRAINED=str(run),
        AMP="none",
        **settings,
    )
    assert done.returncode == 0, done.stderr
    assert "no effect on CPU" not in done.stdout
    (run,) = (tmp_path / "a dir").glob("finetune-*")
    accuracy = re.search(r"acc1 ([\d.]+)", done.stdout).group(1)
    done = sh("run_eval_multi.sh", CFG=tiny_yaml("finetune"), PRETRAINED=str(run), **settings)
    assert f"Acc@1 {accuracy}" in done.stdout, done.stderr


def test_retries_go_on_after_a_crash_and_only_then(tiny_yaml, tmp_path):
    """A site module that Python loads by itself kills the first process when it has saved twice."""
    (tmp_path / "sitecustomize.py").write_text(
        "import glob, os, signal, sys, threading, time\n"
        f"mark = {str(tmp_path / 'killed')!r}\n"
        "def watch():\n"
        f"    while len(glob.glob({str(tmp_path / 'runs')!r} + '/*/step-*')) < 2:\n"
        "        time.sleep(0.01)\n"
        "    open(mark, 'w').close()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if 'main_multi_gpu' in ' '.join(sys.orig_argv) and not os.path.exists(mark):\n"
        "    threading.Thread(target=watch, daemon=True).start()\n"
    )
    settings = {
        "CFG": tiny_yaml(
            "pretrain", "TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "SAVE_FREQ_STEPS", 4, "DATA.BATCH_SIZE", 32
        ),
        "DATASET": "synthetic",
        "DEVICE": "cpu",
        "OUTPUT": str(tmp_path / "runs"),
        "PYTHONPATH": str(tmp_path),
    }
    done = sh("run_pretrain_multi.sh", **settings, RETRIES="2")
    assert done.returncode == 0, done.stderr
    assert "exit code 137: resuming from the last checkpoint, retry 1 of 2" in done.stderr
    assert "resumed" in done.stdout
    assert len(list((tmp_path / "runs").iterdir())) == 1
    done = sh("run_pretrain_multi.sh", "-opts", "NO.KEY", "1", **settings, RETRIES="2")
    assert done.returncode == 2
    assert "retry" not in done.stderr


def test_two_nodes_are_the_same_script_with_two_variables(tiny_yaml, tmp_path):
    """Two launchers on this machine meet at MASTER and train as one job of two processes."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHON": sys.executable,
        "DATASET": "synthetic",
        "DEVICE": "cpu",
        "NPROC": "1",
        "NNODES": "2",
        "MASTER": f"127.0.0.1:{port}",
        "BATCH_SIZE": "64",
        "CFG": tiny_yaml("pretrain", "TRAIN.NUM_EPOCHS", 1),
    }
    nodes = [
        subprocess.Popen(
            ["sh", str(ROOT / "run_pretrain_multi.sh")],
            env={**environment, "OUTPUT": str(tmp_path / str(node))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (0, 1)
    ]
    try:
        outputs = [node.communicate(timeout=200)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert len(list(tmp_path.glob("*/pretrain-*"))) == 1, "one run directory for the job"
    assert any("2 processes" in output for output in outputs)
    assert not (ROOT / "http.log").exists(), "Paddle's store would leave it in the checkout"


def test_readme_names_only_what_exists():
    text = "\n".join((ROOT / name).read_text() for name in ("README.md", "docs/CONTRIBUTING.md"))
    named = set(re.findall(r"(?<![\w}/])((?:configs/|tools/|tests/)?\w[\w-]*\.(?:py|sh|yaml|toml|txt|md))\b", text))
    made_by_runs = {
        "config.yaml",
        "train_list.txt",
        "val_list.txt",
        "log.txt",
        "finetuned.yaml",
        "bad_images.txt",
        "utils.py",
    }  # the last is forbidden
    missing = {
        name for name in named - made_by_runs if not (ROOT / name).exists() and not (ROOT / "configs" / name).exists()
    }
    assert not missing


def test_readme_options_exist():
    from config import get_config
    from launch.command_line import make_parser
    from strict_config import all_keys

    text = (ROOT / "README.md").read_text()
    flags = {option for action in make_parser("finetune", "")._actions for option in action.option_strings}
    commands = re.findall(r"(?:python main_multi|sh run_\w+multi)[^`]*", text)
    used = {flag for command in commands for flag in re.findall(r"(?<=\s)-[a-z_]{2,}", command)}
    assert used
    assert used <= flags
    keys = set(all_keys(get_config()))
    assert set(re.findall(r"\b(?:TRAIN|MODEL|DATA)\.[A-Z0-9_.]+[A-Z]", text)) <= keys
