"""How programs end, seen from outside: real processes, real signals, real pipes."""

import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest

import program
import runtime
from runtime import ROOT

PLANTED = "import os, pathlib; pathlib.Path({marker!r}).write_text(__name__)\n"
SOON_SECS = 60


def command(name, *flags):
    """Return the command of a main script, started by its path, or of a tool."""
    if name.startswith("tools."):
        return runtime.module_command(name, *map(str, flags))
    return [sys.executable, str(ROOT / f"main_multi_gpu_{name}.py"), *map(str, flags)]


def start(cwd, name, *flags, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    environment = {**runtime.original_environment(), **options.pop("env", {})}
    if options.get("preexec_fn") is None:  # nohup has tests ignore SIGHUP, and what they start
        options["preexec_fn"] = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
    return subprocess.Popen(command(name, *flags), cwd=cwd, env=environment, **options)


def finish(process):
    out, err = process.communicate(timeout=SOON_SECS)
    return process.returncode, out or "", err or ""


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, tiny_yaml):
    """Return a finetuning run and its YAML."""
    folder, cfg = (
        tmp_path_factory.mktemp("runs"),
        tiny_yaml("finetune", "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 64, "RUN", "finetuned"),
    )
    code, _, errors = finish(start(folder, "finetune", "-cfg", cfg, "-output", folder))
    assert code == 0, errors
    return folder / "finetuned", cfg


# ---- code in the working directory


@pytest.mark.parametrize("flags", [[], ["-nproc", "2", "-device", "cpu"]])
def test_no_module_of_the_working_directory_is_run(tmp_path, tiny_yaml, flags):
    marker = tmp_path / "was-run"
    names = ("tools/__init__", "tools/report", "paddle/__init__", "numpy", "runpy", "json", "sitecustomize", "yaml")
    for name in names:
        file = tmp_path / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(PLANTED.format(marker=str(marker)))
    (tmp_path / "matplotlibrc").write_text("backend: module://numpy\ntext.usetex: True\n")
    cfg = tiny_yaml("pretrain", "REPORT", True, "TRAIN.NUM_EPOCHS", 1, "DATA.BATCH_SIZE", 64, "RUN", "run")
    code, out, errors = finish(start(tmp_path, "pretrain", "-cfg", cfg, "-output", tmp_path / "out", *flags))
    assert (code, marker.exists()) == (0, False), errors
    assert (tmp_path / "out" / "run" / "report.html").is_file(), out


def test_commands_of_modules_take_no_relative_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", "here", str(tmp_path)]))
    assert runtime.module_environment()["PYTHONPATH"] == str(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ":")
    assert "PYTHONPATH" not in runtime.module_environment()


# ---- signals


def assert_one_line(number, code, errors):
    lines = [line for line in errors.splitlines() if "ccache" not in line and "warnings.warn" not in line]
    assert code == 128 + number, errors
    assert lines == [f"ended by {signal.Signals(number).name}"], errors


@pytest.mark.parametrize(("secs", "number"), [(0.6, signal.SIGTERM), (1.2, signal.SIGINT), (2.0, signal.SIGHUP)])
@pytest.mark.parametrize("what", ["pretrain", "finetune -eval", "tools.knn"])
def test_an_early_signal_ends_with_one_line(tmp_path, finetuned, tiny_yaml, what, secs, number):
    run, cfg = finetuned
    slow = ["-opts", "DATA.BATCH_SIZE", "1", "DATA.BATCH_SIZE_EVAL", "1"]  # so that nothing is over too soon
    flags = {
        "pretrain": ["-cfg", tiny_yaml("pretrain", "TRAIN.NUM_EPOCHS", 500), "-output", tmp_path],
        "finetune -eval": ["-cfg", cfg, "-output", tmp_path, "-eval", "-pretrained", run, *slow],
        "tools.knn": [run, *slow, "DATA.NUM_WORKERS", "1"],
    }[what]
    process = start(tmp_path, what.split()[0], *flags)
    time.sleep(secs)
    process.send_signal(number)
    code, out, errors = finish(process)
    if code == 75:  # the loop had begun
        assert "-resume continues" in errors
    elif code == 0:  # the evaluation was over
        assert what != "pretrain"
        assert re.search(r"(acc1|k=|Acc@1)", out), out
    elif code == -number:  # before the first line of the program ran, or after the last
        assert not errors.strip() or out
    else:
        assert_one_line(number, code, errors)


def test_a_signal_in_the_first_second_ends_several_ranks(tmp_path, tiny_yaml):
    cfg = tiny_yaml("pretrain", "TRAIN.NUM_EPOCHS", 5000)
    process = start(tmp_path, "pretrain", "-cfg", cfg, "-output", tmp_path, "-nproc", "2", "-device", "cpu")
    time.sleep(3.0)  # the launcher is being imported, and there are no ranks yet
    process.send_signal(signal.SIGTERM)
    code, _, errors = finish(process)
    assert code in (75, 143), errors
    assert "Traceback" not in errors
    if code == 143:
        assert errors.splitlines()[-1] == "ended by SIGTERM"


def test_a_hangup_saves_as_sigterm_does(tmp_path, tiny_yaml):
    cfg = tiny_yaml("pretrain", "TRAIN.NUM_EPOCHS", 5000, "SAVE_FREQ_STEPS", 1, "KEEP_LAST", 1, "RUN", "run")
    process = start(tmp_path, "pretrain", "-cfg", cfg, "-output", tmp_path)
    deadline = time.monotonic() + SOON_SECS
    while not list(tmp_path.glob("run/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    code, out, errors = finish(process)
    assert code == 75, errors
    assert "SIGHUP: the run stops and saves" in out


# ---- standard output that nobody reads, and disks


@pytest.mark.parametrize("how", ["head", "closed", "full"])
@pytest.mark.parametrize("what", ["pretrain -dry_run", "tools.knn", "tools.check_dataset"])
def test_output_that_goes_nowhere_is_no_traceback(tmp_path, finetuned, tiny_yaml, how, what):
    flags = {
        "pretrain -dry_run": ["-cfg", tiny_yaml("pretrain"), "-dry_run"],
        "tools.knn": [finetuned[0]],
        "tools.check_dataset": ["-dataset", "synthetic", "-num_classes", "4"],
    }[what]
    if how == "closed":
        process = start(tmp_path, what.split()[0], *flags, stdout=None, preexec_fn=lambda: os.close(1))
    elif how == "full":
        with open("/dev/full", "w") as full:
            process = start(tmp_path, what.split()[0], *flags, stdout=full)
    else:
        read, write = os.pipe()
        os.close(read)
        process = start(tmp_path, what.split()[0], *flags, stdout=write)
        os.close(write)
    code, _, errors = finish(process)
    assert code in {"head": (0, 141), "closed": (0,), "full": (0, 2)}[how], errors
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    if code == 2:
        assert errors.splitlines()[-1] == "error: standard output cannot be written: No space left on device"


@pytest.mark.parametrize(
    ("tool", "out"), [("evaluate", "scores"), ("features", "f.npz"), ("analyse", "analysis"), ("report", "r.html")]
)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, finetuned, tool, out):
    target = tmp_path / out
    if "." in out:
        target.write_text("what was there")
    most = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # bytes of a file
    code, _, errors = finish(start(tmp_path, f"tools.{tool}", finetuned[0], "-out", target, preexec_fn=most))
    last = errors.splitlines()[-1]
    assert (code, last.startswith("error: ")) == (2, True), errors
    assert "File too large" in last
    assert "Traceback" not in errors
    if "." in out:
        assert target.read_text() == "what was there"
    assert not list(tmp_path.glob("**/.[a-z]*")), "nothing half done is left"


def test_a_run_whose_log_cannot_be_written_ends_with_one_line(tmp_path, tiny_yaml):
    cfg = tiny_yaml("pretrain", "TRAIN.NUM_EPOCHS", 1)
    most = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
    code, _, errors = finish(start(tmp_path, "pretrain", "-cfg", cfg, "-output", tmp_path, preexec_fn=most))
    assert code == 2, errors
    assert "File too large" in errors.splitlines()[-1]
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "flags", [["-nproc", "99999999"], ["-nproc", "0"], ["-foo"], ["-nproc", "1e9"], ["-cfg", "loop.yaml"]]
)
def test_flags_that_cannot_be_are_one_line(tmp_path, tiny_yaml, flags):
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    cfg = [] if "-cfg" in flags else ["-cfg", tiny_yaml("pretrain")]
    code, _, errors = finish(start(tmp_path, "pretrain", *cfg, *flags, "-device", "cpu"))
    assert code == 2, errors
    lines = [line for line in errors.splitlines() if "ccache" not in line and "warnings.warn" not in line]
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")


@pytest.mark.parametrize("rank", [-1, 2, 99])
def test_a_node_rank_outside_its_range_is_refused(tmp_path, tiny_yaml, rank):
    flags = ["-nnodes", "2", "-master", "127.0.0.1:6170", "-node_rank", rank, "-device", "cpu"]
    code, _, errors = finish(start(tmp_path, "pretrain", "-cfg", tiny_yaml("pretrain"), *flags))
    assert code == 2, errors
    assert f"-node_rank {rank}: must be from 0 to 1" in errors


def test_a_port_in_use_is_an_error(tmp_path, tiny_yaml):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        flags = ["-nnodes", "2", "-master", f"127.0.0.1:{port}", "-node_rank", "0", "-device", "cpu"]
        code, _, errors = finish(start(tmp_path, "pretrain", "-cfg", tiny_yaml("pretrain"), *flags))
    assert code == 2, errors
    assert "another program uses this port" in errors


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "PreconditionNotMet: The third-party dynamic library (libcudnn.so) that Paddle depends on is not ...",
            "libcudnn.so",
        ),
        ("(PreconditionNotMet) Cannot load cudnn shared library. Cannot invoke method cudnnGetVersion.", "cudnn"),
    ],
)
def test_a_library_of_cuda_that_is_not_there_is_one_line(capsys, text, name):
    def main():
        raise RuntimeError(f"{text}\n  Suggestions:\n  1. Check if the third-party dynamic library is installed")

    handlers = {number: signal.getsignal(number) for number in runtime.ENDING_SIGNALS}
    streams = sys.stdout, sys.stderr
    try:
        with pytest.raises(SystemExit) as end:
            program.run(main)
    finally:
        sys.stdout, sys.stderr = streams
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert end.value.code == 2
    line = f"error: Paddle does not find {name}; install CUDA's libraries, see Install in README.md\n"
    assert capsys.readouterr().err == line
