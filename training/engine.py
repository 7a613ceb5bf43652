"""The one training loop: `fit` and `evaluate` of a `Task`.

The loop handles updates, ranks, precision, checkpoints and logs. Networks, loss, optimizer and evaluation are fields of
a `Task`; no line here asks which method it is.

One clock: `step` = optimizer updates done. All randomness of a micro-step is derived from (seed, step, rank,
micro-step), so a checkpoint needs no generator states, and on CPU a resumed run is bit-identical to an uninterrupted
one.
"""

import contextlib
import functools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

import runtime
from errors import UserError
from launch.run_directory import write_config
from launch.stop import StopRequest
from layers import across_ranks
from pipeline import name_lists
from pipeline.loading import Batch, Loader
from program import Stopped
from storage import run_state
from storage.run_files import TRAIN_IMAGES_FILE
from storage.run_state import RunState
from training import checkpoints, data_parallel, flops, resolution, resume, sharded_checkpoints, static_graph
from training.device import autocast, autocast_dtype, is_on_cpu, is_on_gpu
from training.guard import Guard
from training.log import Means, Throughput
from training.plan import Plan, check_micro_steps, describe_plan, make_plan, train_flops
from training.report import Page
from training.run import Run
from training.sharded_gradients import build_exchange
from training.task import Evaluation, Task

_MUCH_WAITING = 0.05  # share of the time from which on the log shows it


def fit(task: Task, train_loader: Loader, eval_loader: Loader | None, run: Run) -> dict[str, float]:
    """Train until the last epoch, and return the last metrics.

    A run starts, in this order, from: (1) `run.resume_from`; (2) the weights that the recipe loaded into the
    model; (3) its initialisation.
    """
    check_micro_steps(train_loader.sampler, task.smallest_batch)
    plan = make_plan(run.config, train_loader)
    run.log.say(describe_plan(plan, task, train_loader.sampler, run.config))
    if run.dry_run:
        return {}
    with StopRequest(run.log.say) as stop:
        training = Training(task, train_loader, eval_loader, run, plan, stop)
        try:
            training.restore()
            return training.train()
        finally:
            training.close()


class Training:
    """The training loop of one run, and its position in it.

    Attributes:
        step: updates done.
        shared_directory: of the run, on all ranks, where each writes a part of its checkpoints; else None.
        best: best value of the task's best metric up to now; None before the first.
        images: SHA-256 of the names of the training images.
        images_done: of the current epoch, if it began with another number of images per update.
        evaluation_pending: the weights should have been evaluated, but the run was asked to stop.
    """

    def __init__(
        self, task: Task, train_loader: Loader, eval_loader: Loader | None, run: Run, plan: Plan, stop: StopRequest
    ):
        self.task, self.train_loader, self.eval_loader, self.run, self.plan = task, train_loader, eval_loader, run, plan
        self.scaler = paddle.amp.GradScaler(enable=autocast_dtype(run.config, run.log.say) == "float16")
        self.means, self.save_timer = Means(), checkpoints.SaveTimer(run.config.SAVE_EVERY_MINUTES)
        self.guard = Guard(
            run, train_loader, self.scaler.is_enable(), stop, self.save_timer, self.means, defers=_reading_waits()
        )
        self.stages = resolution.stages(run.config)
        self.costs = [train_flops(task, stage.config) or 1.0 for stage in self.stages]
        self.flops_per_image = self.costs[-1]
        self.peak_flops = None
        if is_on_gpu():
            given = run.config.PEAK_TFLOPS
            peak = flops.peak_flops(paddle.device.cuda.get_device_name()) if given is None else 1e12 * given
            self.peak_flops = peak * runtime.world_size() if peak is not None else None
        self.step, self.best = run.config.TRAIN.LAST_EPOCH * plan.updates_per_epoch, None
        self.images: str | None = None
        self.images_done: int | None = None
        self.evaluation_pending = False
        self.page = Page(run)
        self.writer: checkpoints.Writer | None = None
        self.run_number = 0
        if run.directory is not None:
            if run.resume_from is None:
                self.run_number = run_state.next_run_number(run.directory.parent)
            self.writer = checkpoints.Writer(
                run.directory, lambda path, is_best: run.log.say(f"saved {path}" + (" (best)" if is_best else ""))
            )

        self.shared_directory: Path | None = None
        if run.config.TRAIN.SHARDING != "none" and runtime.world_size() > 1:
            self.shared_directory = sharded_checkpoints.shared_directory(run.directory)

    def start(self) -> None:
        """Prepare for updates; all ranks get the weights of the first."""
        runtime.keep_large_blocks()
        self.task.model.train()
        if self.run.config.TRAIN.TO_STATIC:
            static_graph.compile_model(self.task, self.run.config, lambda: autocast(self.run.config), self.run.log.say)
        self.exchange = build_exchange(self.task, self.run.config)
        self.clock, self.first_step = Throughput(lambda: self.train_loader.waited_secs), self.step
        self.show = self.run.log.progress(self.plan.total_steps, self.step)

    def train(self) -> dict[str, float]:
        """Train until the last epoch, and return the last metrics."""
        plan, sampler = self.plan, self.train_loader.sampler
        self.run.log.track_configuration(self.run.config.dump(), self.step)
        self.start()
        results: dict[str, float] = {}
        if plan.total_steps == 0:  # an untrained model is something to compare with
            self.save(is_best=False)
        if self.evaluation_pending:
            results |= self._evaluate_and_save(evaluates=True, saves=False)
        while self.step < plan.total_steps:
            epoch, first_update = divmod(self.step, plan.updates_per_epoch)
            self.task.begin_epoch(epoch)
            self.flops_per_image = self.costs[resolution.stage_at(self.stages, epoch)]
            batches = self.train_loader.epoch(epoch, first_update, self.images_done)
            self.images_done = None
            for update in range(first_update, plan.updates_per_epoch):
                lr = plan.lr_at(self.step)
                self.update(batches, update, lr)
                self.step += 1
                self.clock.count(sampler.update_size(update))
                results |= self._after_update(lr)
        self._finish()
        if self.best is not None:
            self.run.log.say(
                f"best {self.task.evaluation.best[0]}: {self.best:.3f}, by the weights in {self.run.directory}/best"
            )
        return results

    def update(self, batches: Iterator[Batch], update: int, lr: float) -> None:
        """Do one optimizer update: the gradient of the mean loss over all images of all its micro-steps and ranks.

        The gradient of an epoch's smaller, last update is multiplied by its share, see `TrainSampler.update_share`.
        """
        task, sampler, config = self.task, self.train_loader.sampler, self.run.config
        sizes, share = sampler.micro_sizes(update), sampler.update_share(update)
        # Data parallelism averages over ranks, and shares may differ by an image: weigh by images, not by ranks.
        weight = share * runtime.world_size() / sampler.update_size(update)
        loss_sum, part_sums = paddle.zeros([]), {}
        for micro, size in enumerate(sizes):
            rng = _seed_micro_step(config.SEED, self.step, micro)
            batch = next(batches)
            is_last = micro + 1 == len(sizes)
            with self.exchange.micro_step(is_last):
                with autocast(config):
                    loss, parts = task.loss(self.exchange.model, batch, rng)
                self.scaler.scale(loss * (size * weight)).backward()
            loss_sum += loss.detach().astype("float32") * size
            for name, value in parts.items():
                part_sums[name] = part_sums.get(name, 0.0) + value.detach().astype("float32") * size
        task.optimizer.set_lr(lr)
        if hasattr(task.optimizer, "gradient_share"):  # LARS, which normalises gradients
            task.optimizer.gradient_share = share
        self.exchange.finish(len(sampler.micro_sizes(update, rank=0)) - len(sizes))  # the first rank has the most
        if self.scaler.is_enable():
            self.exchange.spread_infinity()
            self.scaler.unscale_(task.optimizer)
        norm = self.exchange.clip(config.TRAIN.GRAD_CLIP)
        if self.guard.check(loss_sum, sum(sizes), norm, update, self.step, lr, part_sums):
            self.scaler.step(task.optimizer)
            if task.ema is not None:  # the scaler leaves out an update whose gradient is not finite
                task.ema.update(task.network, norm.isfinite() if self.scaler.is_enable() else None)
            task.after_update(self.step + 1, self.plan.total_steps)
        self.scaler.update()
        task.optimizer.clear_grad(set_to_zero=False)  # frees them for the next activations

    def _after_update(self, lr: float) -> dict[str, float]:
        """Report, evaluate, save or stop, if the step or a signal calls for it; returns the new metrics."""
        config, plan, guard, step = self.run.config, self.plan, self.guard, self.step
        epochs_done, updates_done = divmod(step, plan.updates_per_epoch)
        done = 0 if updates_done else epochs_done  # at the end of an epoch only
        is_last = step == plan.total_steps
        saves = _is_due(done, config.SAVE_FREQ) or _is_due(step, config.SAVE_FREQ_STEPS) or is_last
        reports = _is_due(step, config.REPORT_FREQ) or done > 0
        if reports or saves:
            guard.synchronise()
        saves = saves or guard.stop_requested or guard.wants_save
        results = self._report(lr) if reports or saves else {}
        evaluates = self.eval_loader is not None and (_is_due(done, config.VALIDATE_FREQ) or is_last)
        # Evaluation may outlast the grace period of the scheduler that sent the signal.
        self.evaluation_pending = evaluates and guard.stop_requested
        if done > 0:
            self.page.refresh()
        if evaluates or saves:
            results |= self._evaluate_and_save(evaluates and not guard.stop_requested, saves)
        if guard.stop_requested and (not is_last or self.evaluation_pending):
            self._finish()
            raise Stopped(f"stopped by a signal after {step} of {plan.total_steps} updates; -resume continues")
        return results

    def _evaluate_and_save(self, evaluates: bool, saves: bool) -> dict[str, float]:
        """Evaluate, save, or both; a new best is always saved. Returns the scores."""
        started = time.monotonic()
        data_parallel.average_running_statistics(self.task.model)
        scores, is_best = {}, False
        if evaluates:
            scores = self._evaluate()
            is_best = self._is_best(scores)
            self.evaluation_pending = False
        if saves or is_best:
            self.save(is_best)
        self.clock.pause(time.monotonic() - started)
        return scores

    def _is_best(self, scores: dict[str, float]) -> bool:
        """Return True if these scores are the best up to now, and remember them."""
        name, direction = self.task.evaluation.best
        value = scores[name]
        sign = 1 if direction == "max" else -1
        if not math.isfinite(value) or (self.best is not None and sign * value <= sign * self.best):
            return False
        self.best = value
        return True

    def _report(self, lr: float) -> dict[str, float]:
        means, norm = self.means.pop()
        (rate, wait), step, total = self.clock.rate(), self.step, self.plan.total_steps
        epoch = step / self.plan.updates_per_epoch
        values = {"epoch": epoch, **means, "lr": lr, "grad_norm": norm, "images_per_sec": round(rate, 1)}
        values |= {f"lr_{name}": lr * scale for name, scale in self.task.lr_scales.items()}
        values["data_wait"] = round(wait, 4)  # share of the time
        shown = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        text = f"epoch {epoch:.2f}  {shown}  lr {lr:.3e}  {rate:.0f} images/s"
        if self.peak_flops is not None:
            values["mfu"] = round(rate * self.flops_per_image / self.peak_flops, 4)
            text += f"  MFU {values['mfu']:.1%}"
        if wait >= _MUCH_WAITING:
            text += f"  {wait:.0%} waiting for data"
        self.run.log.record("train", step, values)
        self.run.report_bad_images()
        work = functools.partial(resolution.work, self.stages, self.costs, self.plan.updates_per_epoch)
        self.show(step, f"{text}  eta {self.clock.eta(work(self.first_step, step), work(step, total))}")
        return means

    def _evaluate(self) -> dict[str, float]:
        task = self.task
        with task.ema.swapped(task.network) if task.ema is not None else contextlib.nullcontext():
            scores = evaluate(task.evaluation, task.model, self.eval_loader, self.run)
        self.run.log.record("eval", self.step, {"epoch": self.step / self.plan.updates_per_epoch, **scores})
        text = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        if not math.isfinite(sum(scores.values())):
            self.run.log.say("warning: the evaluation's loss is not finite; lower TRAIN.BASE_LR, or avoid fp16")
        self.run.log.say(f"evaluation after {self.step} updates: {text}{self.eval_loader.source.limited_by}")
        return scores

    # ---- checkpoints

    def save(self, is_best: bool) -> None:
        """Copy the state, which is written while the training continues; a sharded one is written at once."""
        self.save_timer.restart()
        self.guard.wants_save = False
        if self.writer is None and self.shared_directory is None:
            return
        plan, task, config = self.plan, self.task, self.run.config
        epoch, update = divmod(self.step, plan.updates_per_epoch) if plan.updates_per_epoch else (0, 0)
        state = RunState(
            self.step,
            **resume.resume_fingerprint(task, plan, self.images, config),
            epoch=epoch,
            images_done=self.train_loader.sampler.images_before(update) if update else 0,
            images_per_update=plan.images_per_update,
            ranks=runtime.world_size(),
            run_number=self.run_number,
            evaluation_pending=self.evaluation_pending,
            best=self.best,
            best_metric=task.evaluation.best[0] if task.evaluation is not None else None,
            scaler={key: np.asarray(value).tolist() for key, value in self.scaler.state_dict().items()},
        )
        fields = {"state": state, "config_yaml": config.dump(), "is_best": is_best, "keep_last": config.KEEP_LAST}
        saved = checkpoints.snapshot(task, copies=self.shared_directory is None, **fields)
        if self.shared_directory is not None:
            saved = sharded_checkpoints.write_tensors(self.shared_directory, saved, self.writer)
        if self.writer is not None:
            self.writer.submit(saved)

    def restore(self) -> None:
        """Load the checkpoint from which the run continues, if any."""
        self.images = name_lists.digest(self.train_loader.source)
        logged_step = self.step  # later records are from an attempt that ended before its first checkpoint
        if self.run.resume_from is not None:
            logged_step = self._load(self.run.resume_from)
        if self.run.directory is not None:
            comments = (f"the {self.plan.num_images:,} images that this run trains on",)
            lines = map(name_lists.as_line, self.train_loader.source.content())
            name_lists.write(self.run.directory / TRAIN_IMAGES_FILE, lines, comments)
        self.run.log.rewind(logged_step)
        if not across_ranks.is_same_on_all_ranks(self.step):
            raise UserError(
                "-resume: not all nodes see the same checkpoint; -output must be a directory that they share"
            )

    def _load(self, directory: Path) -> int:
        """Load a checkpoint, and return its step in the count of the run that saved it."""
        plan, run, log = self.plan, self.run, self.run.log
        state, sampler, source = run_state.read_state(directory), self.train_loader.sampler, self.train_loader.source
        own = resume.resume_fingerprint(self.task, plan, self.images, run.config)
        resume.check_fingerprint(state, own, directory, source)
        checkpoints.load(directory, self.task)
        if run.directory is not None:
            write_config(run.directory, run.config)
        if state.scaler:
            self.scaler.load_state_dict(state.scaler)
        self.run_number = state.run_number
        own_metric = self.task.evaluation.best[0] if self.task.evaluation is not None else None
        if state.best_metric in (None, own_metric):
            self.best = state.best
        else:
            log.say(f"the best {state.best_metric} is forgotten, as {own_metric} chooses the best checkpoint now")
        self.step, self.images_done = resume.position(state, plan, sampler)
        is_over = bool(state.images_done) and self.images_done is None  # too few images are left for an update
        self.evaluation_pending = self.eval_loader is not None and (is_over or state.evaluation_pending)
        log.say(f"resumed {directory} after {self.step} of {plan.total_steps} updates")
        change = resume.describe_change(state, plan)
        if change is not None:
            log.say(change)
        if self.step >= plan.total_steps:
            log.say("nothing is left to do; a larger TRAIN.NUM_EPOCHS continues")
        return state.step

    def _finish(self) -> None:
        """Wait until every checkpoint is written, on all ranks."""
        if self.writer is not None:
            self.writer.wait()
        across_ranks.barrier()

    def close(self) -> None:
        """Wait for the writer, and close the log; also called after an error."""
        self.page.stop()
        for loader in filter(None, (self.train_loader, self.eval_loader)):
            loader.close()
        if self.writer is not None:
            self.writer.join()
        self.run.log.close()


@paddle.no_grad()
def evaluate(evaluation: Evaluation, model: nn.Layer, loader: Loader, run: Run) -> dict[str, float]:
    """Average the metrics over all images of a loader, exactly, for any number of ranks and batches."""
    runtime.keep_large_blocks()
    model.eval()
    with autocast(run.config):
        evaluation.prepare()
    totals, num_images = paddle.zeros([len(evaluation.metrics)], "float64"), 0
    for batch in loader:
        with autocast(run.config):
            sums = evaluation.measure(model, batch)
        totals += paddle.stack([value.astype("float64") for value in sums])
        num_images += len(batch)
    model.train()
    run.report_bad_images()
    *totals, num_images = across_ranks.sum_across_ranks(np.array([*totals.numpy(), num_images]))
    if num_images == 0:
        raise UserError(f"{loader.source.origin}: none of its images can be read")
    means = {name: float(total / num_images) for name, total in zip(evaluation.metrics, totals, strict=True)}
    return evaluation.summarise(means)


def _seed_micro_step(seed: int, step: int, micro: int) -> np.random.Generator:
    """Seed masks, drop path and dropout for this micro-step and rank; returns the generator for mixup."""
    sequence = np.random.SeedSequence([seed, step, micro, runtime.rank()])
    paddle.seed(int(sequence.generate_state(1)[0]))
    return np.random.default_rng(sequence)


def _reading_waits() -> bool:
    """Return True if reading a number makes the host wait for a device that works on its own."""
    return not is_on_cpu()


def _is_due(count: int, every: int | None) -> bool:
    return every is not None and count > 0 and count % every == 0
