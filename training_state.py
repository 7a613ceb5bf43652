"""Training states on disk: checkpoints that are written whole, checked, and found again.

A checkpoint is a directory:

    step-00000312/model.pdparams     flat state dict, readable with plain paddle.load
                  optimizer.pdopt    optimizer state under structured parameter names
                  ema.pdparams       averaged weights, if the run keeps them
                  state.json         step, best metric, loss scaler, ...
                  config.yaml        the configuration that builds the model
                  manifest.json      size and SHA-256 sum of each of these

It is written under another name, brought to the disk, and renamed; then `latest` and `best` in the run directory are
made to point to it, and old ones go. So whenever a process dies, the newest whole checkpoint is there. Copying the
tensors takes part in the training's time, writing them does not: a thread does it, one checkpoint at a time.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

import checkpoint
import manifest
import output_files
import safe_pickle
import weight_files
from architecture import Architecture
from errors import UserError, abridge, printable
from json_files import NUMBER, is_a, read_json
from output_files import MANIFEST_FILE, STATE_FILE, is_checkpoint, list_checkpoints, step_of
from stored_tensor import StoredTensor
from weight_files import BEST, EMA_FILE, LATEST, MODEL_FILE

_COUNTS = ("step", "epoch", "images_done", "images_per_update", "ranks", "save_number")
_DAMAGED = sys.maxsize
_OPTIMIZER_FILE, _CONFIG_FILE = "optimizer.pdopt", "config.yaml"
_FILES = (MANIFEST_FILE, STATE_FILE, MODEL_FILE, EMA_FILE, _OPTIMIZER_FILE, _CONFIG_FILE)  # in the order of deleting


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Everything of a checkpoint, copied to the host.

    Attributes:
        step: updates done.
        weights, ema, optimizer: arrays by name; `ema` may be None.
        state: plain values for state.json; `step` is added.
        config_yaml: the configuration.
        architecture: what the weights belong to.
        is_best: whether `best` shall point to it.
        keep_last: number of checkpoints to keep.
    """

    step: int
    weights: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    state: dict
    config_yaml: str
    architecture: Architecture
    ema: dict[str, np.ndarray] | None = None
    is_best: bool = False
    keep_last: int = 3


def snapshot(step: int, model: nn.Layer, optimizer, ema_state: dict | None = None, **fields: object) -> Snapshot:
    """Copy the tensors of a training state; `fields` are the other ones of `Snapshot`."""
    return Snapshot(
        step=step,
        weights={name: value.numpy() for name, value in model.state_dict().items()},
        optimizer=optimizer_state_by_name(model, optimizer),
        ema=None if ema_state is None else {name: value.numpy() for name, value in ema_state.items()},
        **fields,
    )


def write(run_dir: Path, saved: Snapshot) -> Path:
    """Write a checkpoint, point `latest` (and `best`) to it, then delete old ones; `best` is kept.

    Returns:
        The checkpoint's directory.

    Raises:
        UserError: if it cannot be written; the checkpoints that were there are intact.
    """
    run_dir = Path(run_dir)
    final = run_dir / f"step-{saved.step:08d}"
    temporary = run_dir / f".writing-{final.name}"
    for path in (final, run_dir / LATEST, run_dir / BEST):
        if path.exists() and not (path.is_symlink() if path != final else is_checkpoint(path)):
            raise UserError(f"{path}: is not from here, and a checkpoint would go there; move it away")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write_files(temporary, saved, _next_save_number(run_dir))
        if final.exists():  # saved before, by a run that was then continued from an earlier step
            replaced = _free_name(run_dir / f".replaced-{final.name}")
            final.rename(replaced)
            temporary.rename(final)
            output_files.sync(run_dir)
            _delete(replaced)
        else:
            temporary.rename(final)
            output_files.sync(run_dir)
        _point(run_dir / LATEST, final.name)
        if saved.is_best:
            _point(run_dir / BEST, final.name)
        output_files.sync(run_dir)
        _delete_old(run_dir, saved.keep_last)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"{final}: the checkpoint cannot be written: {error.strerror or error}; the ones before it are intact, and "
            "-resume goes on from there"
        ) from error
    return final


def _next_save_number(run_dir: Path) -> int:
    """Return a number above that of every checkpoint: a run that went back to an earlier step has newer ones there."""
    numbers = [_save_number(path) for path in list_checkpoints(run_dir)]
    return 1 + max((number for number in numbers if number != _DAMAGED), default=0)


def _free_name(path: Path) -> Path:
    number = 0
    while path.exists():
        number += 1
        path = path.with_name(f"{path.name}-{number}")
    return path


def _write_files(directory: Path, saved: Snapshot, save_number: int) -> None:
    description = {"architecture": saved.architecture.to_dict()}
    for name, arrays in ((MODEL_FILE, saved.weights), (EMA_FILE, saved.ema)):
        if arrays is not None:
            weight_files.write_pdparams(directory / name, _stored(arrays), description)
    weight_files.write_nested(directory / _OPTIMIZER_FILE, "optimizer", _stored(saved.optimizer))
    state = json.dumps({"step": saved.step, "save_number": save_number, **saved.state}, indent=1)
    (directory / STATE_FILE).write_text(state, encoding="utf-8")
    (directory / _CONFIG_FILE).write_text(saved.config_yaml, encoding="utf-8")
    manifest.write(directory)
    for file in directory.iterdir():
        output_files.sync(file)
    output_files.sync(directory)


def _stored(arrays: dict[str, np.ndarray]) -> dict[str, StoredTensor]:
    return {name: StoredTensor.of(array) for name, array in arrays.items()}


class Writer:
    """Writes checkpoints behind the training's back; a failed one is raised with the next call."""

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


def find(path: str | Path, warn: Callable[[str], None] = print, only: str | None = None) -> Path:
    """Return the checkpoint directory that a checkpoint or run directory stands for.

    A run directory stands for its newest checkpoint that is whole; `warn` is told of damaged ones.

    Args:
        only: the one file of the checkpoint that is needed, and checked; None: all of them.

    Raises:
        UserError: if there is none, or the checkpoint that was named is damaged.
    """
    path = Path(path)
    if is_checkpoint(path):
        damage = manifest.damage(path, only)
        if damage is not None:
            raise UserError(f"-resume {path}: {damage}; name the run's directory to go on from the newest whole one")
        return path.resolve()
    damaged = 0
    for candidate in _newest_first(path):
        damage = manifest.damage(candidate, only)
        if damage is None and (candidate / STATE_FILE).is_file():
            return candidate.resolve()
        warn(f"warning: {damage or f'{candidate / STATE_FILE} is missing'}; the checkpoint before it is used")
        damaged += 1
    if damaged:
        raise UserError(f"-resume {path}: none of its {damaged} checkpoints is whole")
    if path.is_file():
        raise UserError(
            f"-resume {path}: a file, and a run's directory is needed; another program's optimizer cannot be "
            "continued, but its weights can be a start: -pretrained, after python -m port_weights for a torch file"
        )
    raise UserError(
        f"-resume {path}: neither a checkpoint nor a run directory with one "
        "(to start from weights alone, use -pretrained)"
    )


def has_checkpoint(run_dir: Path) -> bool:
    """Return True if a run directory has a checkpoint, whole or not."""
    return bool(list_checkpoints(run_dir))


def _newest_first(run_dir: Path) -> list[Path]:
    """List a run's checkpoints in the order of writing: by their own count, as a run may have gone back a few steps.

    Checkpoints of older versions have no count, and come by step, before all others. Times of files do not count: a
    copied run may have others.
    """
    return sorted(list_checkpoints(run_dir), key=lambda path: (_save_number(path), step_of(path)), reverse=True)


def _save_number(checkpoint_dir: Path) -> int:
    """Return a checkpoint's count; one that is damaged counts as the newest, so that it is noticed."""
    try:
        is_damaged = manifest.damage(checkpoint_dir, only=STATE_FILE) is not None
        return _DAMAGED if is_damaged else read_state(checkpoint_dir).get("save_number", 0)
    except UserError:
        return _DAMAGED


def read_state(checkpoint_dir: Path) -> dict:
    """Read state.json of a checkpoint; what it counts is checked to be a number."""
    file = Path(checkpoint_dir) / STATE_FILE
    state = read_json(file, {"step": int}, advice="it is not a checkpoint to resume from")
    for key in _COUNTS:
        if key in state and (type(state[key]) is not int or state[key] < 0):
            raise UserError(f"{file}: damaged, its {key} is {printable(state[key], 40)}")
    if not is_a(state.get("best"), (*NUMBER, type(None))) or not isinstance(state.get("scaler", {}), dict):
        raise UserError(f"{file}: damaged, its best metric or its loss scaler is not as it was written")
    return state


def load(checkpoint_dir: Path, model: nn.Layer, optimizer, ema=None) -> dict:
    """Restore model, optimizer and averaged weights exactly; returns state.json's values."""
    checkpoint_dir = Path(checkpoint_dir)
    state = read_state(checkpoint_dir)
    checkpoint.load_weights(model, checkpoint_dir / MODEL_FILE)
    saved = safe_pickle.load(checkpoint_dir / _OPTIMIZER_FILE)
    if not isinstance(saved, dict) or not isinstance(saved.get("optimizer"), dict):
        raise UserError(f"{checkpoint_dir / _OPTIMIZER_FILE}: not an optimizer state of this project")
    set_optimizer_state_by_name(model, optimizer, saved["optimizer"], checkpoint_dir)
    if ema is not None:
        if not (checkpoint_dir / EMA_FILE).is_file():
            raise UserError(f"{checkpoint_dir}: holds no averaged weights; set TRAIN.EMA_DECAY None, or start anew")
        averages = weight_files.read(checkpoint_dir / EMA_FILE).tensors
        own = {name: tuple(value.shape) for name, value in ema.state_dict().items()}
        if {name: tensor.shape for name, tensor in averages.items()} != own:
            raise UserError(f"{checkpoint_dir / EMA_FILE}: holds other tensors than this run averages")
        ema.set_state_dict({name: tensor.checked(name, EMA_FILE).read() for name, tensor in averages.items()})
    return state


def optimizer_state_by_name(model: nn.Layer, optimizer) -> dict[str, np.ndarray]:
    """Return the optimizer's tensors as {"structured name/accumulator": array}.

    Paddle keys them by automatic names (`linear_4.w_0_moment1_0`), which depend on what else the process built.
    """
    names = {parameter.name: name for name, parameter in model.named_parameters()}
    renamed = {}
    for key, value in optimizer.state_dict().items():
        if key in ("LR_Scheduler", "master_weights"):
            continue  # the engine sets the learning rate; weights are float32 themselves
        owner = _owner_of(key, names)
        renamed[f"{names[owner]}/{key[len(owner) + 1 :]}"] = value.numpy()
    return dict(sorted(renamed.items()))  # whoever collected it


def set_optimizer_state_by_name(model: nn.Layer, optimizer, state: dict, source: Path) -> None:
    """Restore what `optimizer_state_by_name` returned, for this process's automatic names.

    Raises:
        UserError: unless it is the state of all parameters that train, and of no other.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    restored, accumulators = {}, {name: set() for name in parameters}
    for key, value in state.items():
        name, _, accumulator = str(key).rpartition("/")
        if name not in parameters:
            raise UserError(f"{source}: optimizer state of {printable(name)}, which this run does not train")
        shapes = ((1,), ()) if accumulator.count("pow") else (tuple(parameters[name].shape),)  # a power of beta
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.shape not in shapes:
            raise UserError(f"{source}: optimizer state {printable(key)} is not as this run's")
        if not np.isfinite(value).all():
            raise UserError(f"{source}: optimizer state {printable(key)} holds values that are not finite")
        accumulators[name].add(accumulator)
        restored[f"{parameters[name].name}_{accumulator}"] = paddle.to_tensor(value, place=paddle.CPUPlace())
    kinds = set.union(set(), *accumulators.values())
    incomplete = [name for name, own in accumulators.items() if own != kinds]
    if incomplete:
        raise UserError(f"{source}: the optimizer state of {abridge(incomplete)} is not whole")
    if restored:  # a run that has done no update has none
        optimizer.set_state_dict(restored)


def _owner_of(key: str, names: dict[str, str]) -> str:
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
    kept |= {path.resolve() for path in _newest_first(run_dir)[:keep_last]}
    for path in list_checkpoints(run_dir):
        if path.resolve() not in kept:
            _delete(path)


def _delete(checkpoint_dir: Path) -> None:
    """Delete the files that a checkpoint consists of, and its directory if there is nothing else in it."""
    for name in _FILES:
        (checkpoint_dir / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # somebody put something there
        checkpoint_dir.rmdir()
