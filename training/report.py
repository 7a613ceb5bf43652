"""The page of a run, report.html: written by another process, while the run trains and when it has ended."""

import contextlib
import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

from PIL import Image

import runtime
from config import network_kind
from storage.architecture import CLASSIFIERS
from storage.run_files import LATEST, LOG_FILE, REPORT_FILE, checkpoint_step
from training.run import Run
from training.trackers import tracker_names

_SHARE = 0.05  # part of one core's time that pages may take while a run trains
_LOWEST_PRIORITY = 19
_PICTURE = "reconstructions"


class Page:
    """Has report.html written, and gives its pictures to the run's TRACKERS. A failure is a warning, never raised.

    Args:
        run: nothing is written where it has no directory, or REPORT is False.
    """

    def __init__(self, run: Run):
        self._run, self._process, self._not_before = run, None, 0.0
        self._pictures: tempfile.TemporaryDirectory | None = None
        self._started, self._step = 0.0, 0

    def refresh(self) -> None:
        """Begin to write the page of a run that trains, unless it is being written, or has taken too much time."""
        if self._process is not None:
            self._collect(waits=False)
        if self._process is None and time.monotonic() >= self._not_before and self._start():
            with contextlib.suppress(OSError):  # it has ended already
                os.setpriority(os.PRIO_PROCESS, self._process.pid, _LOWEST_PRIORITY)

    def finish(self) -> None:
        """Write the page of a run that has ended."""
        self.stop()
        if self._start() and self._collect(waits=True):
            run = self._run
            run.log.say(f"report: {run.directory / REPORT_FILE}")
            for purpose, command in next_commands(run.directory, run.config).items():
                run.log.say(f"to {purpose}: {command}")

    def stop(self) -> None:
        """End a page that is being written; the one before it stays."""
        if self._process is not None:
            with self._process:  # waits for it
                self._process.kill()
            self._process = None

    def _start(self) -> bool:
        run = self._run
        if run.directory is None or not run.config.REPORT or not (run.directory / LOG_FILE).is_file():
            return False
        step, pictures = checkpoint_step((run.directory / LATEST).resolve()), []
        if tracker_names(run.config) and step is not None:
            self._pictures = self._pictures or tempfile.TemporaryDirectory(prefix="report-")
            pictures = ["-pictures", self._pictures.name]
        command = runtime.module_command("tools.report", str(run.directory.resolve()), *pictures)
        environment = runtime.module_environment() | {"CUDA_VISIBLE_DEVICES": ""}
        environment = {key: value for key, value in environment.items() if not key.startswith("PADDLE_")}
        self._started, self._step = time.monotonic(), step
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        return True

    def _collect(self, waits: bool) -> bool:
        """Return True if the page is written."""
        pid, status, usage = os.wait4(self._process.pid, 0 if waits else os.WNOHANG)
        if pid == 0:
            return False
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._not_before = self._started + (usage.ru_utime + usage.ru_stime) / _SHARE
        with self._process.stderr as stderr:
            errors = stderr.read()
        is_written, self._process = self._process.returncode == 0, None
        if not is_written:
            lines = errors.decode("utf-8", "replace").strip().splitlines() or ["?"]
            self._run.log.say(f"warning: no report: {lines[-1]}")
            self._not_before = float("inf")
        elif self._pictures is not None and (picture := Path(self._pictures.name) / f"{_PICTURE}.png").is_file():
            with Image.open(picture) as opened:
                self._run.log.track_picture(_PICTURE, opened, self._step)
        return is_written


def next_commands(run_dir: Path, config) -> dict[str, str]:
    """Return what to do with a run next: {purpose: command}."""
    run, kind = shlex.quote(str(run_dir)), network_kind(config)
    if not (run_dir / LATEST).exists():
        return {}
    if kind == "autoencoder":
        return {
            "look at its reconstructions": f"python -m tools.visualise {run} -out reconstruction.html",
            "finetune it": f"python main_multi_gpu_finetune.py -cfg CONFIG -pretrained {run}",
            "measure its features": f"python -m tools.knn {run}",
        }
    if kind in CLASSIFIERS:
        return {
            "label new photos": f"python -m tools.predict {run} PHOTOS -html labels.html",
            "see the scores of each class": f"python -m tools.evaluate {run} -out scores",
            "deploy it": f"python -m tools.export {run} -out exported -format paddle",
        }
    return {"measure its features": f"python -m tools.knn {run}"}
