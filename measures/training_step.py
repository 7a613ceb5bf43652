"""Training steps on one batch that stays on the device: what benchmarks time, and what the doctor examines."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import paddle

import runtime
from errors import UserError
from launch.stop import StopRequest
from measures.synthetic import flop_per_image
from methods import dispatch
from pipeline.loading import Batch
from pipeline.samplers import TrainSampler
from training.device import autocast, is_on_cpu
from training.engine import Training
from training.log import RunLog
from training.plan import make_plan, train_flops
from training.run import Run
from training.task import Task

Step = Callable[[], None]


def build_task(config) -> Task:
    """Build networks, optimizer and loss of a configuration; no weights are loaded."""
    return dispatch.build_task(_run(config))


def _run(config) -> Run:
    return Run(config, None, RunLog(None, quiet=True), resume_from=Path("nothing is loaded"))


def split_views(config, images: np.ndarray, labels: np.ndarray) -> Batch:
    """Return a batch of images, of which each of a method's views of a photo counts as one."""
    num_views = 1 if config.EVAL else len(dispatch.train_transform(config).views)
    if len(images) % num_views:
        raise UserError(f"-batch_size {len(images)}: must be divisible by the {num_views} views, which count as images")
    count = len(images) // num_views
    views = tuple(map(paddle.to_tensor, np.split(images, num_views)))
    return Batch(views, labels[:count].astype(np.int64), np.arange(count))


class OneBatchTraining:
    """The training loop's update, again and again on one batch.

    Attributes:
        training: the loop.
        flop_per_image: of an update.
    """

    def __init__(self, config, batch: Batch):
        task = build_task(config)
        loader = _OneBatch(batch, TrainSampler(len(batch) * 1000, len(batch)))
        self.training = Training(task, loader, None, _run(config), make_plan(config, loader), StopRequest(print))
        self.training.start()
        self.flop_per_image = (train_flops(task, config) or 0.0) / len(batch.views)
        self._batches = loader.epoch()

    def update(self) -> None:
        """Do one update, and wait for the device."""
        self.training.update(self._batches, 0, 1e-4)
        self.training.step += 1
        synchronise()


def make_step(config, images: np.ndarray, labels: np.ndarray) -> tuple[Step, float]:
    """Return a step, an update or (EVAL) a forward pass, and its FLOPs per image."""
    batch = split_views(config, images, labels)
    if not config.EVAL:
        training = OneBatchTraining(config, batch)
        return training.update, training.flop_per_image
    model = build_task(config).model
    model.eval()
    runtime.keep_large_blocks()

    def forward() -> None:
        with paddle.no_grad(), autocast(config):
            model(batch.images)
        synchronise()

    return forward, flop_per_image(config)


def synchronise() -> None:
    """Wait for the device; builds for GPUs may compute on the CPU, for which Paddle cannot wait."""
    if not is_on_cpu():
        paddle.device.synchronize()


class _OneBatch:
    """A loader that gives the same batch again and again."""

    source, waited_secs = None, 0.0

    def __init__(self, batch: Batch, sampler: TrainSampler):
        self._batch, self.sampler = batch, sampler

    def epoch(self) -> Iterator[Batch]:
        """Repeat the batch without end."""
        return itertools.repeat(self._batch)
