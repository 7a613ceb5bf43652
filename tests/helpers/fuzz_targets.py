"""Readers of files that users give, fed with any bytes: nothing but `UserError` may come out of them.

test_fuzz.py does it for some seconds, `python -m tests.fuzz` for as long as one likes.
"""

import contextlib
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import checkpoint
import datasets
from config import get_config
from errors import UserError
from launch import run_directory
from tests.conftest import MODES, TINY
from tests.helpers.saved_runs import save, trained
from training import checkpoints
from training.optimizers import WeightAverage
from training.task import Task

CHECKPOINT_FILES = ("model.pdparams", "optimizer.pdopt", "ema.pdparams", "state.json", "config.yaml", "manifest.json")


class Targets:
    """The readers, with a directory to put their files into."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        self.root = Path(self._folder.name)
        model, optimizer = trained(steps=1)
        self._average = WeightAverage(model, 0.5)
        self._checkpoint = save(self.root / "run", 1, model, optimizer, ema=self._average)
        self._good = {name: (self._checkpoint / name).read_bytes() for name in CHECKPOINT_FILES}
        self._model, self._optimizer = trained(seed=1, steps=0)

    def all(self) -> dict[str, Callable[[bytes], None]]:
        """Return the readers by name."""
        return {"list": self.read_list, "config": self.read_config, "checkpoint": self.read_checkpoint}

    def seeds(self, name: str) -> list[bytes]:
        """Return inputs that a reader takes, to begin with."""
        if name == "list":
            return [b"train/a b/1.jpg 0\ntrain/c.jpg 9\n", b"a.jpg -1\n\n\xef\xbb\xbfb.jpg 2\r\n"]
        if name == "config":
            tiny = get_config(None, [*TINY, *MODES["finetune"]]).dump().encode()
            return [b"\0" + tiny, b"\1DATA.IMAGE_SIZE\n[8, 8]\nAMP\nbf16\nTRAIN.OPTIMIZER.BETAS\n(0.9, 0.95)"]
        return [bytes([index]) + self._good[file] for index, file in enumerate(CHECKPOINT_FILES)]

    def read_list(self, data: bytes) -> None:
        """Read a list file, and check what it lists."""
        (self.root / "train_list.txt").write_bytes(data)
        with contextlib.suppress(UserError):
            source = datasets.open_source("imagenet2012", str(self.root), "train", num_classes=10)
            source.check(num_classes=10, channels=3)

    def read_config(self, data: bytes) -> None:
        """Read a YAML file, or KEY VALUE words if the first byte is odd."""
        with contextlib.suppress(UserError):
            if data[:1] and data[0] % 2:
                get_config(None, data[1:].decode("utf-8", "surrogateescape").split("\n"))
            else:
                (self.root / "fuzz.yaml").write_bytes(data[1:])
                get_config(self.root / "fuzz.yaml")

    def read_checkpoint(self, data: bytes) -> None:
        """Resume from a checkpoint in which one file, chosen by the first byte, is something else."""
        changed = CHECKPOINT_FILES[data[0] % len(CHECKPOINT_FILES)] if data else CHECKPOINT_FILES[0]
        (self._checkpoint / changed).write_bytes(data[1:])
        if changed != "manifest.json":  # it would find every change
            (self._checkpoint / "manifest.json").unlink()
        try:
            with contextlib.suppress(UserError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = run_directory.find(self.root / "run", warn=lambda line: None)
                get_config(found / "config.yaml")
                checkpoints.load(found, Task("fuzz", self._model, self._optimizer, None, ema=self._average))
            with contextlib.suppress(UserError):
                checkpoint.load_weights(self._model, self.root / "run")
        finally:
            for name in {changed, "manifest.json"}:
                (self._checkpoint / name).write_bytes(self._good[name])
