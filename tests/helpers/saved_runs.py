"""Short trainings and their checkpoints, for tests of what surrounds them."""

import dataclasses
import signal
from pathlib import Path

import numpy as np
import paddle

from methods import dispatch
from optim import build_optimizer, param_groups
from storage.run_state import RunState
from tests.helpers.small_models import make_vit
from training import checkpoints
from training.engine import fit
from training.task import Task


def weights(task) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in task.model.state_dict().items()}


def fit_pretrain(run):
    """Train on all of the data set, and return the weights."""
    task = dispatch.build_task(run)
    fit(task, dispatch.build_train_loader(run), None, run)
    return weights(task)


def at_updates(task, updates, instead):
    """Return a task whose loss is `instead(model, batch, rng)` at some updates, counted from 1."""
    count = 0

    def loss(model, batch, rng):
        nonlocal count
        count += 1
        return (instead if count in updates else task.loss)(model, batch, rng)

    return dataclasses.replace(task, loss=loss)


def stop_at(task, update):
    """Return a task that asks for a stop in the loss of an update, as a scheduler would; None: never."""

    def stop(model, batch, rng):
        signal.raise_signal(signal.SIGTERM)
        return task.loss(model, batch, rng)

    return at_updates(task, {update}, stop)


def poison(run, updates):
    """Make the loss of some updates, counted from 1, not a number; returns the task to train."""
    task = dispatch.build_task(run)

    def poisoned(model, batch, rng):
        value, parts = task.loss(model, batch, rng)
        return value * float("nan"), parts

    return at_updates(task, updates, poisoned)


def poison_images(run, updates):
    """Give some updates, counted from 1, images that are not numbers; returns the task to train."""
    task = dispatch.build_task(run)

    def poisoned(model, batch, rng):
        views = tuple(view.clone() for view in batch.views)
        views[0][0] = float("nan")
        return task.loss(model, dataclasses.replace(batch, views=views), rng)

    return at_updates(task, updates, poisoned)


def trained(seed=0, steps=2):
    model = make_vit(seed=seed)
    optimizer = build_optimizer("AdamW", param_groups(model, 0.05, 0.5))
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    model(paddle.ones([2, 3, 8, 8])).square().sum().backward()
    optimizer.set_lr(0.01)
    optimizer.step()
    optimizer.clear_grad()


def save(run_dir, number, model, optimizer, **options):
    return checkpoints.write(run_dir, snapshot(number, model, optimizer, **options))


def snapshot(number, model, optimizer, ema=None, **options):
    task, state = Task("test", model, optimizer, None, ema=ema), RunState(number, best=1.0)
    return checkpoints.snapshot(task, state=state, config_yaml="SEED: 0\n", **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
