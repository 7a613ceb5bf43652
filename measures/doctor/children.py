"""Processes that the doctor starts, and that end with it: also when it is killed, or a limit of time is over."""

import signal
import subprocess
from pathlib import Path

import runtime


def environment() -> dict[str, str]:
    """Return the environment without what a launcher of this process has set."""
    return {name: value for name, value in runtime.original_environment().items() if not name.startswith("PADDLE_")}


def start(command: list[str], log: Path, **options: object) -> subprocess.Popen:
    """Start a process whose output goes to the end of a file; it is killed when this process ends."""
    end_with_parent = lambda: runtime.end_with_parent(signal.SIGKILL)
    with open(log, "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, preexec_fn=end_with_parent, **options)


def run(command: list[str], log: Path, longest_secs: float, **options: object) -> int:
    """Run a command, and return its exit code; raise subprocess.TimeoutExpired if it takes longer."""
    with start(command, log, **options) as process:
        try:
            return process.wait(longest_secs)
        except BaseException:
            process.kill()
            raise
