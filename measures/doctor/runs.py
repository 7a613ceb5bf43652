"""Sections 4 and 6 with real runs of the pretraining script: waiting for data, and a run that is killed and resumed."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import runtime
from measures.doctor import children
from measures.doctor.check import Case, Check, assess
from storage.run_files import LATEST, MODEL_FILE, list_checkpoints
from training.log import read_log

_LONGEST_SECS = 300
_MOST_WAITING = 0.05
_RECIPE = "vit_micro_patch4_32_pretrain"
_SHORT = "TRAIN.WARMUP_EPOCHS 0 TRAIN.ACCUM_ITER 1 TRAIN.TOTAL_BATCH_SIZE None REPORT False"
_SMALL = f"MODEL.ENCODER.DEPTH 2 MODEL.DECODER.DEPTH 1 DATA.BATCH_SIZE 32 DATA.NUM_WORKERS 1 {_SHORT}"
_UPDATES, _UPDATES_BEFORE_KILL = 10, 3
_NUM_IMAGES = 1024  # in the synthetic training split


def _command(case: Case, name: str, recipe: str, *options: str, resume: bool = False) -> list[str]:
    command = [sys.executable, str(runtime.ROOT / "main_multi_gpu_pretrain.py"), "-dataset", "synthetic"]
    command += ["-cfg", str(runtime.ROOT / "configs" / f"{recipe}.yaml"), "-nproc", str(case.nproc)]
    command += ["-output", str(case.folder), *(["-device", case.device] if case.device else [])]
    return [*command, *(["-resume", "auto"] if resume else []), "-opts", "RUN", name, *options]


def _epochs(case: Case, batch: int) -> str:
    """Return the setting of the epochs in which a run makes _UPDATES updates or more."""
    return f"TRAIN.NUM_EPOCHS {math.ceil(_UPDATES * case.nproc * batch / _NUM_IMAGES)}"


def _finish(command: list[str], log: Path) -> None:
    """Run to the end; raise RuntimeError with the end of the log if it fails."""
    code = children.run(command, log, _LONGEST_SECS, env=children.environment())
    if code != 0:
        end = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"the run ended with exit code {code}: {' '.join(end)}")


def examine_waiting(case: Case, on_gpu: bool) -> list[Check]:
    """Check that a run on synthetic data hardly waits for its workers."""
    recipe = "vit_base_patch16_224_pretrain" if on_gpu else _RECIPE
    options = f"{_epochs(case, 32)} REPORT_FREQ 2 DATA.BATCH_SIZE 32 DATA.NUM_WORKERS 2 {_SHORT}".split()
    _finish(_command(case, "waiting", recipe, *options), case.folder / "waiting.log")
    records = [record for record in read_log(case.folder / "waiting") if record["event"] == "train"]
    return [assess_waiting([record["data_wait"] for record in records[1:]])]


def assess_waiting(shares: list[float]) -> Check:
    """Assess the shares of the time that a run waited, at each report but the first."""
    share = sorted(shares)[len(shares) // 2]
    advice = "more workers (-opts DATA.NUM_WORKERS), more cores, or fewer processes beside it; see docs/speed.md"
    found, limit = f"{share:.1%} of the time", f"{_MOST_WAITING:.0%}"
    return assess("waiting for synthetic data", share <= _MOST_WAITING, found, limit, advice, share=share)


def examine_crash(case: Case) -> list[Check]:
    """Kill a run, resume it, and compare its weights with those of a run that nobody disturbed."""
    options = f"{_epochs(case, 32)} REPORT_FREQ 1 SAVE_FREQ_STEPS 1 DETERMINISTIC True {_SMALL}".split()
    _finish(_command(case, "undisturbed", _RECIPE, *options), case.folder / "undisturbed.log")
    killed = _command(case, "killed", _RECIPE, *options)
    log = case.folder / "killed.log"
    # In a session of its own, as its ranks are killed with it.
    process = children.start(killed, log, env=children.environment(), start_new_session=True)
    try:
        updates = _wait_for_checkpoints(process, case.folder / "killed")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    _finish(_command(case, "killed", _RECIPE, *options, resume=True), log)
    runs = (case.folder / name / LATEST for name in ("undisturbed", "killed"))
    return [assess_crash(case.nproc, updates, *((run / MODEL_FILE).read_bytes() for run in runs))]


def _wait_for_checkpoints(process: subprocess.Popen, run: Path) -> int:
    """Return the number of a run's checkpoints as soon as there are some."""
    deadline = time.monotonic() + _LONGEST_SECS
    while process.poll() is None and len(list_checkpoints(run)) < _UPDATES_BEFORE_KILL and time.monotonic() < deadline:
        time.sleep(0.005)
    if process.poll() is not None:
        raise RuntimeError(f"the run ended with exit code {process.returncode} before it could be killed")
    return len(list_checkpoints(run))


def assess_crash(nproc: int, updates: int, undisturbed: bytes, resumed: bytes) -> Check:
    """Assess the weights of a run that was killed after some updates, and resumed."""
    is_same = undisturbed == resumed
    found = f"{'the same' if is_same else 'other'} weights, killed after {updates} checkpoints, {nproc} rank(s)"
    advice = "runs are not reproducible on this device, also with DETERMINISTIC: report doctor.json"
    return assess("killed and resumed run", is_same, found, "bit-identical to an undisturbed one", advice)
