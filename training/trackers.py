"""Trackers that get what log.jsonl has, the configuration and pictures: VisualDL, TensorBoard, Weights & Biases."""

import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from errors import UserError, one_line
from training.device import peak_bytes

_INSTALL = "pip install -r requirements/trackers.txt"
_PROJECT = "mae"  # in Weights & Biases, unless WANDB_PROJECT names another


class _VisualDL:
    """Files for `visualdl --logdir RUN`."""

    def __init__(self, run_dir: Path, first_step: int):
        from visualdl import LogWriter

        self._writer = LogWriter(logdir=str(run_dir / "visualdl"))

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, name: str, text: str) -> None:
        self._writer.add_text(name, text, 0)

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._writer.add_image(name, pixels, step)

    def close(self) -> None:
        self._writer.close()


class _TensorBoard:
    """Files for `tensorboard --logdir RUN`; it does not show what other files have from `first_step` on."""

    def __init__(self, run_dir: Path, first_step: int):
        from tensorboardX import SummaryWriter

        suffix = f".{first_step:08d}"  # the rest of a file's name is the second in which it was opened
        folder = str(run_dir / "tensorboard")
        self._writer = SummaryWriter(logdir=folder, purge_step=first_step, filename_suffix=suffix)

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, name: str, text: str) -> None:
        indented = "".join(f"    {line}\n" for line in text.splitlines())  # Markdown's form of code
        self._writer.add_text(name, indented, 0)

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases, the same one after a resume; WANDB_MODE=offline keeps it on this machine.

    It adds figures of the system by itself.
    """

    def __init__(self, run_dir: Path, first_step: int):
        import wandb

        self._wandb = wandb
        path = run_dir.resolve()
        digest = hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:8]
        name = re.sub(r"[^\w.-]", "_", path.name)[:64]
        settings = {"name": name, "id": f"{name}-{digest}", "resume": "allow"}
        self._run = wandb.init(dir=str(run_dir), project=_project(), **settings)

    def scalars(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def text(self, name: str, text: str) -> None:
        self._run.config.update({name: text}, allow_val_change=True)

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._run.log({name: self._wandb.Image(pixels)}, step=step)

    def close(self) -> None:
        self._run.finish()


def _project() -> str | None:
    return None if "WANDB_PROJECT" in os.environ else _PROJECT


_KINDS = {
    "visualdl": (_VisualDL, "visualdl"),
    "tensorboard": (_TensorBoard, "tensorboardX"),
    "wandb": (_Wandb, "wandb"),
}


def tracker_names(config) -> list[str]:
    """Return TRACKERS, with VISUALDL, the key of older files."""
    return [*config.TRACKERS, *["visualdl"] * config.VISUALDL]


class Trackers:
    """The trackers of a run. One that fails is left out from then on, with a warning: it never ends a run.

    Args:
        names: of `_KINDS`.
        run_dir: of the run.
        say: gets the warning.

    Raises:
        UserError: if there is no such tracker, or it is not installed.
    """

    def __init__(self, names: Sequence[str], run_dir: Path, say: Callable[[str], None]):
        unknown = [name for name in names if name not in _KINDS]
        if unknown:
            raise UserError(f"TRACKERS={list(names)}: {unknown[0]!r} is none of {', '.join(_KINDS)}")
        for name in names:
            if importlib.util.find_spec(_KINDS[name][1]) is None:
                raise UserError(f"TRACKERS: {name} needs {_KINDS[name][1]}, which is not installed: {_INSTALL}")
        self._run_dir, self._say = run_dir, say
        self._names = list(dict.fromkeys(names))
        self._open: dict[str, object] = {}

    def scalars(self, event: str, step: int, values: dict[str, float]) -> None:
        """Note numbers of an event, "train" or "eval", and the memory of the process."""
        named = {f"{event}/{name}": value for name, value in values.items()}
        named["system/peak_memory_gib"] = peak_bytes() / 2**30
        self._each(step, lambda tracker: tracker.scalars(named, step))

    def configuration(self, text: str, step: int) -> None:
        """Note the configuration, a YAML text."""
        self._each(step, lambda tracker: tracker.text("configuration", text))

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Note a picture."""
        pixels = np.asarray(picture.convert("RGB"))
        self._each(step, lambda tracker: tracker.picture(name, pixels, step))

    def close(self) -> None:
        """End all; what is noted is written."""
        self._each(0, lambda tracker: tracker.close(), opens=False)
        self._open.clear()

    def _each(self, step: int, work: Callable[[object], None], opens: bool = True) -> None:
        for name in list(self._names):
            try:
                if name not in self._open and opens:
                    self._open[name] = _KINDS[name][0](self._run_dir, step + 1)  # the log resumes behind this step
                if name in self._open:
                    work(self._open[name])
            except Exception as error:  # whatever a tracker raises, the run is worth more
                self._names.remove(name)
                self._open.pop(name, None)
                self._say(f"warning: TRACKERS: {name} failed and is left out from now on ({one_line(error)})")
