"""Logs of a run: console, log.txt, log.jsonl, trackers, images per second."""

import io
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from PIL import Image
from tqdm import tqdm

from errors import UserError, escape_controls
from launch.run_lock import RunLock
from program import OutputClosed, terminal
from storage import atomic
from storage.files import read_records
from storage.run_files import LOG_FILE, TEXT_LOG_FILE
from training.trackers import Trackers


class RunLog:
    """Write log.jsonl (every record) and log.txt (the lines on the console) of a run.

    Args:
        run_dir: where to write; None: write no files.
        quiet: print nothing, either.
        trackers: that get the records, too, see `trackers.Trackers`.
        lock: of the run's directory, which is held as long as the log is open.
    """

    def __init__(
        self,
        run_dir: Path | None,
        quiet: bool = False,
        trackers: Sequence[str] = (),
        stream: TextIO | None = None,
        lock: RunLock | None = None,
    ):
        self._lock = lock
        self._run_dir = run_dir
        self._quiet = quiet
        self._stream = stream or sys.stdout or io.StringIO()  # None: the caller closed it
        self._bar: tqdm | None = None
        self._trackers = Trackers(trackers, run_dir, self.say) if run_dir is not None and trackers else None

    def say(self, text: str) -> None:
        """Print a line, and append it to log.txt; a closed console does not end the run."""
        text = escape_controls(text)
        self._keep(text)
        if self._quiet:
            return
        try:
            if self._bar is not None:
                self._bar.write(text, file=self._stream)
            else:
                print(text, file=self._stream, flush=True)
        except (OutputClosed, OSError, ValueError):
            self._quiet, self._bar = True, None

    def _keep(self, text: str) -> None:
        if self._run_dir is not None:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            with open(self._run_dir / TEXT_LOG_FILE, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(f"{now} {line}\n" for line in text.splitlines()))

    def record(self, event: str, step: int, values: dict[str, float]) -> None:
        """Append one record to log.jsonl."""
        if self._run_dir is None:
            return
        with open(self._run_dir / LOG_FILE, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        if self._trackers is not None:
            numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
            self._trackers.scalars(
                event, step, {name: value for name, value in numbers.items() if math.isfinite(value)}
            )

    def track_configuration(self, text: str, step: int) -> None:
        """Give the configuration, a YAML text, to the trackers."""
        if self._trackers is not None:
            self._trackers.configuration(text, step)

    def track_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Give a picture to the trackers."""
        if self._trackers is not None:
            self._trackers.picture(name, picture, step)

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, which a resumed run is about to write again."""
        if self._run_dir is None or not (self._run_dir / LOG_FILE).is_file():
            return
        records = read_records(self._run_dir / LOG_FILE, self.say)
        kept = "".join(json.dumps(record) + "\n" for record in records if record.get("step", 0) <= step)
        atomic.write_text(self._run_dir / LOG_FILE, kept)

    def progress(self, total_steps: int, first_step: int) -> Callable[[int, str], None]:
        """Return `show(step, text)`: a bar on a terminal, plain lines elsewhere."""
        if not self._quiet and self._stream.isatty():
            stream = terminal(self._stream)  # the bar steers the terminal
            self._bar = tqdm(total=total_steps, initial=first_step, file=stream, dynamic_ncols=True, unit="step")

        def show(step: int, text: str) -> None:
            line = f"step {step}/{total_steps}  {text}"
            if self._bar is None:
                self.say(line)
            else:
                self._keep(line)
                self._bar.n = step
                self._bar.set_postfix_str(text)

        return show

    def close(self) -> None:
        """Finish the bar and the scalar files, and let other processes into the directory."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._trackers is not None:
            self._trackers.close()
        if self._lock is not None:
            self._lock.release()


def read_log(run_dir: str | Path) -> list[dict]:
    """Return the records of a run's log.jsonl, in order; damaged lines are left out, with a note."""
    if not (Path(run_dir) / "log.jsonl").is_file():
        raise UserError(f"{run_dir}: not the directory of a run, which has a log.jsonl")
    return read_records(Path(run_dir) / "log.jsonl", print)


class Means:
    """Means over the images since the last call of `pop`, of the loss and what is logged beside it."""

    def __init__(self):
        self._sums, self._num_images, self._norm = {}, 0, 0.0

    def add(self, sums: dict[str, float], num_images: int, norm: float) -> None:
        """Add sums over images of some updates, and the gradient norm of the last one."""
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._num_images, self._norm = self._num_images + num_images, norm

    def pop(self) -> tuple[dict[str, float], float]:
        """Return the means by name, the loss first, and the last gradient norm."""
        means = {name: value / self._num_images for name, value in self._sums.items()} if self._num_images else {}
        self._sums, self._num_images = {}, 0
        return {"loss": math.nan} | means, self._norm


class Throughput:
    """Images per second since the last call of `rate`, and the time that is left.

    Args:
        waited: returns the seconds that the run has waited for data up to now.
    """

    def __init__(self, waited: Callable[[], float] = lambda: 0.0):
        self._start_secs = self._last_secs = time.monotonic()
        self._images = 0
        self._paused_secs, self._waited, self._waited_before = 0.0, waited, waited()

    def count(self, num_images: int) -> None:
        """Note images of one update, of all ranks together."""
        self._images += num_images

    def pause(self, secs: float) -> None:
        """Leave out time that was spent on evaluation or saving."""
        self._last_secs += secs
        self._paused_secs += secs

    def rate(self) -> tuple[float, float]:
        """Return images per second, and the share of the time that was waiting for data, since the last call."""
        now = time.monotonic()
        secs = max(now - self._last_secs, 1e-9)
        rate, wait = self._images / secs, (self._waited() - self._waited_before) / secs
        self._last_secs, self._images, self._waited_before = now, 0, self._waited()
        return rate, wait

    def eta(self, done: float, remaining: float) -> str:
        """Return the time left, "h:mm:ss", by the work that is done since the start and the rest, in one unit."""
        spent = time.monotonic() - self._start_secs - self._paused_secs
        left = round(spent / done * remaining) if done > 0 else 0
        return f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
