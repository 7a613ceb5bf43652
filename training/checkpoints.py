"""Checkpoints of a run: written whole or not at all, with sums, and read back exactly.

A checkpoint is a directory:

    step-00000312/model.pdparams     flat state dict, readable with plain paddle.load
                  optimizer.pdopt    optimizer state under structured parameter names; of a sharded optimizer there is
                                     a file of each rank instead, see `sharded_checkpoints.py`
                  ema.pdparams       averaged weights, if the run keeps them
                  extra.pdparams     other tensors of the method (heads, queues), if it has any
                  state.json         step, best metric, loss scaler, ...; see `resume.py`
                  config.yaml        the configuration that builds the model
                  manifest.json      size and SHA-256 sum of each of these

It is written under another name, synced to the disk, and renamed. Then `latest` and `best` in the run directory point
to it, and old checkpoints are deleted. So a process that dies at any moment leaves the newest whole checkpoint. Tensors
are copied while the training waits, and written by a thread while it continues, one checkpoint at a time.
"""

import contextlib
import dataclasses
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor, nn

import checkpoint
from errors import UserError, abridge, printable
from storage import atomic, manifest, weight_files
from storage.architecture import Architecture
from storage.run_files import (
    BEST,
    CONFIG_FILE,
    EMA_FILE,
    EXTRA_FILE,
    LATEST,
    MANIFEST_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    checkpoint_name,
    checkpoint_step,
    is_checkpoint,
    list_checkpoints,
    optimizer_files,
    own_optimizer_files,
)
from storage.run_state import RunState, newest_first, next_save_number, read_state
from storage.stored_tensor import StoredTensor
from training.task import Task

_WRITING = ".writing-"  # before the name of a checkpoint that is not whole


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Everything of a checkpoint.

    Attributes:
        weights, extra, optimizer, ema: tensors by name; `ema` may be None.
        state: what state.json holds, but for the number of the save.
        config_yaml: the configuration.
        architecture: of the weights; None for a network of another kind than `architecture.py` describes.
        is_best: whether `best` shall point to it.
        keep_last: number of checkpoints to keep.
        are_written: the tensors are in the checkpoint's files already.
    """

    weights: dict[str, StoredTensor]
    extra: dict[str, StoredTensor]
    optimizer: dict[str, StoredTensor]
    ema: dict[str, StoredTensor] | None
    state: RunState
    config_yaml: str
    architecture: Architecture | None
    is_best: bool = False
    keep_last: int = 3
    are_written: bool = False


def snapshot(task: Task, *, copies: bool = True, **fields: object) -> Snapshot:
    """Take the tensors of a task.

    Args:
        copies: copy them to the host now; else they are read, one at a time, when they are written.
        fields: `state`, `config_yaml`, `is_best` and `keep_last` of `Snapshot`.
    """

    def stored(tensors: dict[str, Tensor]) -> dict[str, StoredTensor]:
        if copies:
            return {name: StoredTensor.of(value.numpy()) for name, value in tensors.items()}
        return {name: StoredTensor(tuple(t.shape), _dtype_name(t), t.numpy) for name, t in tensors.items()}

    return Snapshot(
        weights=stored(task.saved_state()),
        extra=stored(task.extra_state()),
        optimizer=stored(optimizer_state_by_name(task.model, task.optimizer)),
        ema=None if task.ema is None else stored(task.ema.state_dict()),
        architecture=task.architecture,
        **fields,
    )


def write(run_dir: Path, saved: Snapshot) -> Path:
    """Write a checkpoint, point `latest` (and `best`) to it, then delete old ones; `best` is kept.

    Returns:
        The checkpoint's directory.

    Raises:
        UserError: if it cannot be written; the older checkpoints are intact.
    """
    run_dir = Path(run_dir)
    final, temporary = run_dir / checkpoint_name(saved.state.step), writing_directory(run_dir, saved.state.step)
    try:
        with named_errors(run_dir, saved.state.step):
            if not saved.are_written:
                begin(run_dir, saved.state.step)
                write_tensors(temporary, saved, OPTIMIZER_FILE)
            _write_description(temporary, saved, next_save_number(list_checkpoints(run_dir)))
            if final.exists():  # saved before, by a run that was then continued from an earlier step
                replaced = _free_name(run_dir / f".replaced-{final.name}")
                final.rename(replaced)
                temporary.rename(final)
                atomic.sync(run_dir)
                _delete(replaced)
            else:
                temporary.rename(final)
                atomic.sync(run_dir)
            _point(run_dir / LATEST, final.name)
            if saved.is_best:
                _point(run_dir / BEST, final.name)
            atomic.sync(run_dir)
            _delete_old(run_dir, saved.keep_last)
    except UserError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def writing_directory(run_dir: Path, step: int) -> Path:
    """Return the directory of a checkpoint that is being written."""
    return run_dir / f"{_WRITING}{checkpoint_name(step)}"


@contextlib.contextmanager
def named_errors(run_dir: Path, step: int) -> Iterator[None]:
    """Turn OSError into a UserError that says what it means for the run."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{run_dir / checkpoint_name(step)}: the checkpoint cannot be written: {error.strerror or error}; the ones "
            "before it are intact, and -resume continues from there"
        ) from error


def begin(run_dir: Path, step: int) -> None:
    """Make an empty directory to write a checkpoint into.

    Raises:
        UserError: if something else is where the checkpoint would go.
    """
    final = run_dir / checkpoint_name(step)
    for path in (final, run_dir / LATEST, run_dir / BEST):
        if path.exists() and not (path.is_symlink() if path != final else is_checkpoint(path)):
            raise UserError(f"{path}: is not from here, and a checkpoint would go there; move it away")
    for left in run_dir.glob(f"{_WRITING}*"):  # by a run that was killed
        if checkpoint_step(left.with_name(left.name.removeprefix(_WRITING))) is not None:
            shutil.rmtree(left, ignore_errors=True)
    writing_directory(run_dir, step).mkdir(parents=True)


def _free_name(path: Path) -> Path:
    number = 0
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name}-{number}")
    return path


def write_tensors(directory: Path, saved: Snapshot, optimizer_file: str) -> None:
    """Write the files of a checkpoint that hold tensors."""
    description = {} if saved.architecture is None else {saved.architecture.KEY: saved.architecture.to_dict()}
    for name, arrays in ((MODEL_FILE, saved.weights), (EMA_FILE, saved.ema)):
        if arrays is not None:
            weight_files.write_pdparams(directory / name, arrays, description)
    if saved.extra:
        weight_files.write_pdparams(directory / EXTRA_FILE, saved.extra)
    weight_files.write_nested(directory / optimizer_file, "optimizer", saved.optimizer)


def _write_description(directory: Path, saved: Snapshot, save_number: int) -> None:
    dataclasses.replace(saved.state, save_number=save_number).write(directory)
    (directory / CONFIG_FILE).write_text(saved.config_yaml, encoding="utf-8")
    manifest.write(directory)
    for file in directory.iterdir():
        atomic.sync(file)
    atomic.sync(directory)


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).split(".")[-1]


class SaveTimer:
    """Counts SAVE_EVERY_MINUTES since the last checkpoint; None: it is never due."""

    def __init__(self, minutes: float | None):
        self._minutes = minutes
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        self._started = time.monotonic()

    def is_due(self) -> bool:
        """Return True if the minutes have passed."""
        return self._minutes is not None and time.monotonic() - self._started >= 60 * self._minutes


class Writer:
    """Writes checkpoints in a background thread. An error is raised by the next `submit` or `wait`."""

    def __init__(self, run_dir: Path, done: Callable[[Path, bool], None] = lambda path, is_best: None):
        self._run_dir, self._done = run_dir, done
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, saved: Snapshot) -> None:
        """Write a checkpoint as soon as the one before it is written."""
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(saved,), name="checkpoint writer")
        self._thread.start()

    def join(self) -> None:
        """Return when nothing is being written any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Return when everything is on the disk; raise what went wrong."""
        self.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, saved: Snapshot) -> None:
        try:
            self._done(write(self._run_dir, saved), saved.is_best)
        except BaseException as error:
            self._error = error


# ---- reading -----------------------------------------------------------------------------------


def load(checkpoint_dir: Path, task: Task) -> RunState:
    """Restore all tensors of a task exactly; return the run's state: step, best score, and so on."""
    checkpoint_dir = Path(checkpoint_dir)
    state = read_state(checkpoint_dir)
    checkpoint.load_weights(task.network, checkpoint_dir / MODEL_FILE)
    _load_extra(checkpoint_dir, task)
    saved = {}
    for file in optimizer_files(checkpoint_dir):
        saved |= weight_files.read_nested(file, "optimizer")
    set_optimizer_state_by_name(task.model, task.optimizer, saved, checkpoint_dir)
    if task.ema is not None:
        if not (checkpoint_dir / EMA_FILE).is_file():
            raise UserError(
                f"{checkpoint_dir}: holds no averaged weights; set TRAIN.EMA_DECAY None, or start a new run"
            )
        task.ema.set_state_dict(_read_exactly(checkpoint_dir / EMA_FILE, task.ema.state_dict()))
    return state


def _load_extra(checkpoint_dir: Path, task: Task) -> None:
    """Restore the tensors of the model that model.pdparams does not hold: heads, queues, momentum networks."""
    file, own = checkpoint_dir / EXTRA_FILE, task.extra_state()
    if not own:
        return
    if not file.is_file():
        raise UserError(f"{file}: missing, and {task.name} cannot resume without it; start a new run with -pretrained")
    for name, value in _read_exactly(file, own).items():
        own[name].set_value(value)


def _read_exactly(file: Path, own: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Read the arrays of a file that must have the names, shapes and types of these tensors."""
    stored = weight_files.read(file).tensors
    wanted = {name: (tuple(value.shape), _dtype_name(value)) for name, value in own.items()}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in stored.items()}
    if found != wanted:
        odd = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise UserError(f"{file}: holds other tensors than this run keeps: {abridge(odd)}")
    return {name: tensor.checked(name, file).read() for name, tensor in stored.items()}


def optimizer_state_by_name(model: nn.Layer, optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors as {"structured name/accumulator": tensor}.

    Paddle keys them by automatic names (`linear_4.w_0_moment1_0`), which depend on the layers
    that the process built before.
    """
    names = {parameter.name: name for name, parameter in model.named_parameters()}
    renamed = {}
    for key, value in optimizer.state_dict().items():
        if key in ("LR_Scheduler", "master_weights"):
            continue  # the engine sets the learning rate; weights are float32 themselves
        owner = _find_owner(key, names)
        renamed[f"{names[owner]}/{key[len(owner) + 1 :]}"] = value
    return dict(sorted(renamed.items()))


def set_optimizer_state_by_name(model: nn.Layer, optimizer, state: dict, source: Path) -> None:
    """Restore the result of `optimizer_state_by_name`, under this process's automatic names.

    Of a sharded optimizer, only the tensors of this rank are read.

    Raises:
        UserError: unless it is the state of all parameters that train, and of no other.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    restored, accumulators = {}, {name: set() for name in parameters}
    owns = getattr(optimizer, "owns", lambda name: True)
    for key, value in state.items():
        name, _, accumulator = str(key).rpartition("/")
        if name not in parameters:
            raise UserError(f"{source}: optimizer state of {printable(name)}, which this run does not train")
        shapes = ((1,), ()) if accumulator.count("pow") else (tuple(parameters[name].shape),)  # a power of beta
        value = StoredTensor.of(value) if isinstance(value, np.ndarray) else value
        is_right = isinstance(value, StoredTensor) and value.dtype.startswith("float") and value.shape in shapes
        if not is_right:
            raise UserError(f"{source}: optimizer state {printable(key)} is not as this run's")
        accumulators[name].add(accumulator)
        if not owns(parameters[name].name):
            continue
        array = value.read()
        if not np.isfinite(array).all():
            raise UserError(f"{source}: optimizer state {printable(key)} holds values that are not finite")
        restored[f"{parameters[name].name}_{accumulator}"] = paddle.to_tensor(array, place=paddle.CPUPlace())
    kinds = {frozenset(own) for own in accumulators.values()}  # one, or two of Muon, which have nothing in common
    incomplete = [name for name, own in accumulators.items() if any(own < other for other in kinds)]
    if incomplete:
        raise UserError(f"{source}: the optimizer state of {abridge(incomplete)} is not whole")
    if restored:  # a run that has done no update has none
        optimizer.set_state_dict(restored)


def _find_owner(key: str, names: dict[str, str]) -> str:
    owners = [auto_name for auto_name in names if key.startswith(auto_name + "_")]
    if not owners:
        raise ValueError(f"optimizer state {key} belongs to no parameter of the model")
    return max(owners, key=len)


def _point(link: Path, target: str) -> None:
    temporary = link.with_name(f".{link.name}-new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def _delete_old(run_dir: Path, keep_last: int) -> None:
    kept = {(run_dir / name).resolve() for name in (LATEST, BEST)}
    kept |= {path.resolve() for path in newest_first(run_dir)[:keep_last]}
    for path in list_checkpoints(run_dir):
        if path.resolve() not in kept:
            _delete(path)


def _delete(checkpoint_dir: Path) -> None:
    """Delete the files that a checkpoint consists of, and its directory if there is nothing else in it."""
    optimizer = [path.name for path in own_optimizer_files(checkpoint_dir)]
    for name in (MANIFEST_FILE, STATE_FILE, MODEL_FILE, EMA_FILE, EXTRA_FILE, *optimizer, CONFIG_FILE):
        (checkpoint_dir / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody put something there
        checkpoint_dir.rmdir()
