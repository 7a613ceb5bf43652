"""The one training loop: `fit` and `evaluate` of a `task.Task`.

The loop knows updates, ranks, precision, checkpoints and logs. What is trained, on which loss, with which
optimizer and how it is judged are the fields of a `Task`; no line here asks for the mode.

One clock: `step` = optimizer updates done. All randomness of a micro-step is derived from (seed, step, rank,
micro-step), so a checkpoint needs no generator states, and a resumed run continues bit by bit.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle
from paddle import nn

import architecture
import distributed
import flops
import output_files
import runtime
import static_graph
import training_state
from config import amp_dtype
from errors import UserError
from guard import Guard, StopRequest
from loading import Loader
from metrics import RunLog, Throughput
from plan import Plan, describe_plan, make_plan
from program import Stopped
from samplers import TrainSampler
from task import Run, Task

_MUCH_WAITING = 0.05  # share of the time that is told


def fit(task: Task, train_loader: Loader, eval_loader: Loader | None, run: Run) -> dict[str, float]:
    """Train until the last epoch, and return the last metrics.

    A run starts, in this order, from: (1) `run.resume_from`; (2) the weights that the recipe loaded into the
    model; (3) its initialisation.
    """
    plan = make_plan(run.config, train_loader)
    run.log.say(describe_plan(plan, task.name, task.model, train_loader.sampler, run.config))
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
    """The loop: what it works with, and where it stands.

    Attributes:
        step: updates done.
        best: highest value of the task's best metric up to now.
        images_done: of the epoch that the run goes on with, if it was begun with another number of images per update.
        owes_evaluation: the weights should have been evaluated, but the run was asked to stop.
    """

    def __init__(
        self, task: Task, train_loader: Loader, eval_loader: Loader | None, run: Run, plan: Plan, stop: StopRequest
    ):
        self.task, self.train_loader, self.eval_loader, self.run, self.plan = task, train_loader, eval_loader, run, plan
        self.scaler = paddle.amp.GradScaler(enable=autocast_dtype(run.config, run.log) == "float16")
        self.guard = Guard(run, train_loader, self.scaler.is_enable(), stop, defers=_reading_waits())
        self.flops_per_image = flops.train_flops(architecture.of_config(run.config), run.config.MODEL.MASK_RATIO)
        self.peak_flops = None
        if _is_on_gpu():
            peak = flops.peak_flops(paddle.device.cuda.get_device_name())
            self.peak_flops = peak * distributed.world_size() if peak is not None else None
        self.step, self.best = run.config.TRAIN.LAST_EPOCH * plan.updates_per_epoch, -math.inf
        self.images_done: int | None = None
        self.owes_evaluation = False
        self.writer: training_state.Writer | None = None
        if run.directory is not None:
            self.writer = training_state.Writer(
                run.directory, lambda path, is_best: run.log.say(f"saved {path}" + (" (best)" if is_best else ""))
            )

    def start(self) -> None:
        """Make ready for updates; ranks get the same weights."""
        runtime.keep_large_blocks()
        self.task.model.train()
        if self.run.config.TRAIN.TO_STATIC:
            static_graph.compile_model(
                self.task.model, self.run.config, lambda: autocast(self.run.config), self.run.log.say
            )
        self.model = distributed.wrap(self.task.model)
        self.clock = Throughput(self.step)
        self.show = self.run.log.progress(self.plan.total_steps, self.step)

    def train(self) -> dict[str, float]:
        """Train until the last epoch, and return the last metrics."""
        plan, sampler = self.plan, self.train_loader.sampler
        self.start()
        results: dict[str, float] = {}
        if plan.total_steps == 0:  # an untrained model is something to compare with
            self.save(is_best=False)
        if self.owes_evaluation:
            results |= self._evaluate_and_save(evaluates=True, saves=False)
        while self.step < plan.total_steps:
            epoch, first_update = divmod(self.step, plan.updates_per_epoch)
            batches = self.train_loader.epoch(epoch, first_update, self.images_done)
            self.images_done = None
            for update in range(first_update, plan.updates_per_epoch):
                lr = plan.lr_at(self.step)
                self.update(batches, update, lr)
                self.step += 1
                self.clock.count(sampler.update_size(update))
                results |= self._look_up(lr)
        self._finish()
        return results

    def update(self, batches: Iterator, update: int, lr: float) -> None:
        """Do one optimizer update: the gradient of the mean loss over all images of all its micro-steps and ranks.

        The gradient of an epoch's smaller, last update is multiplied by its share, see `TrainSampler.update_share`.
        """
        task, sampler, config = self.task, self.train_loader.sampler, self.run.config
        sizes, share = sampler.micro_sizes(update), sampler.update_share(update)
        # Data parallelism averages over ranks, and shares may differ by an image: weigh by images, not by ranks.
        weight = share * distributed.world_size() / sampler.update_size(update)
        loss_sum = paddle.zeros([])
        for micro, size in enumerate(sizes):
            rng = _seed_micro_step(config.SEED, self.step, micro)
            with self.clock.waiting():
                batch = next(batches)
            is_last = micro + 1 == len(sizes)
            with distributed.no_sync(self.model, not is_last or config.TRAIN.BF16_ALLREDUCE):
                with autocast(config):
                    loss = task.loss(self.model, batch, rng)
                self.scaler.scale(loss * (size * weight)).backward()
            loss_sum += loss.detach().astype("float32") * size
        task.optimizer.set_lr(lr)
        if hasattr(task.optimizer, "gradient_share"):  # LARS, which normalises gradients
            task.optimizer.gradient_share = share
        trained = [p for p in task.model.parameters() if not p.stop_gradient and p.grad is not None]
        if config.TRAIN.BF16_ALLREDUCE:
            distributed.average_gradients(trained, "bfloat16")
        if self.scaler.is_enable():
            self.scaler.unscale_(task.optimizer)
        if config.TRAIN.GRAD_CLIP is None:
            norm = paddle.stack([p.grad.astype("float32").square().sum() for p in trained]).sum().sqrt()
        else:  # Paddle's own grad_clip would clip each parameter group by itself
            norm = nn.utils.clip_grad_norm_(trained, config.TRAIN.GRAD_CLIP)
        passes = self.guard.passes(loss_sum, sum(sizes), norm, update, self.step, lr)
        if passes:
            self.scaler.step(task.optimizer)
            if task.ema is not None:  # the scaler leaves out an update whose gradient is not finite
                task.ema.update(task.model, norm.isfinite() if self.scaler.is_enable() else None)
        self.scaler.update()
        task.optimizer.clear_grad(set_to_zero=False)  # frees them for the next activations

    def _look_up(self, lr: float) -> dict[str, float]:
        """Report, evaluate, save or stop, where it is time to; returns the new metrics."""
        config, plan, guard, step = self.run.config, self.plan, self.guard, self.step
        epochs_done, updates_done = divmod(step, plan.updates_per_epoch)
        done = 0 if updates_done else epochs_done  # at the end of an epoch only
        is_last = step == plan.total_steps
        saves = _is_due(done, config.SAVE_FREQ) or _is_due(step, config.SAVE_FREQ_STEPS) or is_last
        reports = _is_due(step, config.REPORT_FREQ) or done > 0
        if reports or saves:
            guard.settle()
        saves = saves or guard.stops or guard.wants_save
        results = self._report(lr) if reports or saves else {}
        evaluates = self.eval_loader is not None and (_is_due(done, config.VALIDATE_FREQ) or is_last)
        self.owes_evaluation = evaluates and guard.stops  # which may take longer than who asked to stop will wait
        if evaluates or saves:
            results |= self._evaluate_and_save(evaluates and not guard.stops, saves)
        if guard.stops and (not is_last or self.owes_evaluation):
            self._finish()
            raise Stopped(f"stopped by a signal after {step} of {plan.total_steps} updates; -resume goes on")
        return results

    def _evaluate_and_save(self, evaluates: bool, saves: bool) -> dict[str, float]:
        """Do one of them, or both; what is the best up to now is saved, too. Returns the scores."""
        started = time.monotonic()
        distributed.average_running_statistics(self.task.model)
        scores, is_best = {}, False
        if evaluates:
            scores = self._judge()
            is_best = scores[self.task.best_metric] > self.best
            self.best = max(self.best, scores[self.task.best_metric])
            self.owes_evaluation = False
        if saves or is_best:
            self.save(is_best)
        self.clock.pause(time.monotonic() - started)
        return scores

    def _report(self, lr: float) -> dict[str, float]:
        loss, norm = self.guard.pop()
        (rate, wait), step, total = self.clock.rate(), self.step, self.plan.total_steps
        epoch = step / self.plan.updates_per_epoch
        values = {"epoch": epoch, "loss": loss, "lr": lr, "grad_norm": norm, "images_per_sec": round(rate, 1)}
        values["data_wait"] = round(wait, 4)  # share of the time
        text = f"epoch {epoch:.2f}  loss {loss:.4f}  lr {lr:.3e}  {rate:.0f} images/s"
        if self.peak_flops is not None:
            values["mfu"] = round(rate * self.flops_per_image / self.peak_flops, 4)
            text += f"  MFU {values['mfu']:.1%}"
        if wait >= _MUCH_WAITING:
            text += f"  {wait:.0%} waiting for data"
        self.run.log.record("train", step, values)
        self.run.report_bad_images()
        self.show(step, f"{text}  eta {self.clock.eta(step, total)}")
        return {"loss": loss}

    def _judge(self) -> dict[str, float]:
        scores = evaluate(self.task, self.eval_loader, self.run)
        self.run.log.record("eval", self.step, {"epoch": self.step / self.plan.updates_per_epoch, **scores})
        text = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        if not math.isfinite(sum(scores.values())):
            self.run.log.say("warning: the evaluation's loss is not finite; lower TRAIN.BASE_LR, or avoid fp16")
        self.run.log.say(f"evaluation after {self.step} updates: {text}")
        return scores

    # ---- checkpoints

    def _identity(self) -> dict[str, object]:
        """Return what a run must share with a checkpoint to continue it."""
        return {
            "task": self.task.name,
            "optimizer": self.run.config.TRAIN.OPTIMIZER.NAME.removesuffix("DL"),  # AdamWDL is AdamW
            "num_images": self.plan.num_images,
            "seed": self.run.config.SEED,
        }

    def save(self, is_best: bool) -> None:
        """Copy the state, and have it written while the training goes on."""
        self.guard.note_save()
        if self.writer is None:
            self.task.optimizer.state_dict()  # where it is sharded, the first rank collects it
            return
        plan, task, config = self.plan, self.task, self.run.config
        epoch, update = divmod(self.step, plan.updates_per_epoch) if plan.updates_per_epoch else (0, 0)
        state = {
            **self._identity(),
            "epoch": epoch,
            "images_done": self.train_loader.sampler.images_before(update) if update else 0,
            "images_per_update": plan.images_per_update,
            "ranks": distributed.world_size(),
            "owes_evaluation": self.owes_evaluation,
            "best": self.best if math.isfinite(self.best) else None,
            "scaler": {key: np.asarray(value).tolist() for key, value in self.scaler.state_dict().items()},
        }
        self.writer.submit(
            training_state.snapshot(
                self.step,
                task.model,
                task.optimizer,
                task.ema.state_dict() if task.ema else None,
                state=state,
                config_yaml=config.dump(),
                architecture=architecture.of_config(config),
                is_best=is_best,
                keep_last=config.KEEP_LAST,
            )
        )

    def restore(self) -> None:
        """Load the checkpoint that the run goes on from, if any."""
        if self.run.resume_from is not None:
            self._load(self.run.resume_from)
        if not distributed.is_same_on_all_ranks(self.step):
            raise UserError(
                "-resume: not all nodes see the same checkpoint; -output must be a directory that they share"
            )

    def _load(self, directory: Path) -> None:
        plan, run, log = self.plan, self.run, self.run.log
        state = training_state.read_state(directory)
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise UserError(
                    f"-resume {directory}: that run has {key} {state.get(key)}, this one {value}; "
                    "to start a new run from its weights, use -pretrained"
                )
        training_state.load(directory, self.task.model, self.task.optimizer, self.task.ema)
        if run.directory is not None:
            output_files.write_text(run.directory / "config.yaml", run.config.dump())
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        log.rewind(state["step"])
        self.best = -math.inf if state.get("best") is None else state["best"]
        self.owes_evaluation = self.eval_loader is not None and state.get("owes_evaluation", False)
        self.step, self.images_done = _position(state, plan, self.train_loader.sampler)
        if state.get("images_done") and self.images_done is None:  # too few are left for an update: the epoch is over
            self.owes_evaluation = self.eval_loader is not None
        log.say(f"resumed {directory} after {self.step} of {plan.total_steps} updates")
        then = (state.get("ranks"), state.get("images_per_update"))
        now = (distributed.world_size(), plan.images_per_update)
        if then[0] is not None and then != now:
            log.say(
                f"warning: {now[0]} ranks with {now[1]} images per update go on where {then[0]} with {then[1]} ended: "
                "the epoch's other images follow, each once, but the run is no longer bit-identical to an undisturbed "
                "one"
            )
        if self.step >= plan.total_steps:
            log.say("nothing is left to do; a larger TRAIN.NUM_EPOCHS goes on")

    def _finish(self) -> None:
        """Wait until every checkpoint is written, on all ranks."""
        if self.writer is not None:
            self.writer.wait()
        distributed.barrier()

    def close(self) -> None:
        """Leave nothing half done, whatever happened."""
        if self.writer is not None:
            self.writer.join()
        self.run.log.close()


def _position(state: dict, plan: Plan, sampler: TrainSampler) -> tuple[int, int | None]:
    """Return the step at which a saved run goes on, and the images of that epoch that are done.

    With another number of images per update, an epoch has another number of updates: the run goes on so that the
    epoch's last update is the last of the new count.
    """
    if "images_done" not in state:  # saved before other numbers were possible
        if state.get("images_per_update") != plan.images_per_update:
            raise UserError("-resume: a checkpoint of an older version goes on with the same images per update only")
        return state["step"], None
    if not state["images_done"] <= plan.num_images:
        raise UserError(f"-resume: a checkpoint after {state['images_done']} of {plan.num_images} images is damaged")
    if state["images_done"] == 0:
        return state["epoch"] * plan.updates_per_epoch, None
    left = sampler.updates_left(state["images_done"])
    return (state["epoch"] + 1) * plan.updates_per_epoch - left, state["images_done"] if left else None


@paddle.no_grad()
def evaluate(task: Task, loader: Loader, run: Run) -> dict[str, float]:
    """Average the task's metrics over all images of a loader, exactly, whatever the ranks and batches.

    Averaged weights (EMA) are evaluated in place of the model's own, where the task keeps them.
    """
    runtime.keep_large_blocks()
    if task.ema is not None:
        task.ema.swap(task.model)
    task.model.eval()
    totals, num_images = paddle.zeros([len(task.metrics)], "float64"), 0
    for batch in loader:
        with autocast(run.config):
            sums = task.evaluate(task.model, batch)
        totals += paddle.stack([value.astype("float64") for value in sums])
        num_images += batch[0].shape[0]
    task.model.train()
    if task.ema is not None:
        task.ema.swap(task.model)
    run.report_bad_images()
    *totals, num_images = distributed.sum_across_ranks(np.array([*totals.numpy(), num_images]))
    if num_images == 0:
        raise UserError(f"{loader.source.origin}: none of its images can be read")
    return {name: float(total / num_images) for name, total in zip(task.metrics, totals, strict=True)}


def _seed_micro_step(seed: int, step: int, micro: int) -> np.random.Generator:
    """Seed masks, drop path and dropout for this micro-step and rank; returns the generator for mixup."""
    sequence = np.random.SeedSequence([seed, step, micro, distributed.rank()])
    paddle.seed(int(sequence.generate_state(1)[0]))
    return np.random.default_rng(sequence)


def _reading_waits() -> bool:
    """Tell whether reading a number waits for a device that works on its own."""
    return _is_on_gpu()


def _is_on_gpu() -> bool:
    return not paddle.device.get_device().startswith("cpu")


def autocast_dtype(config, log: RunLog | None = None) -> str | None:
    """Return the precision to compute in; on CPU, where Paddle has none but float32, None and one warning."""
    dtype = amp_dtype(config)
    if dtype is not None and not _is_on_gpu():
        if log is not None:
            log.say(f"warning: -amp {dtype} has no effect on CPU, where Paddle computes in float32")
        return None
    return dtype


def autocast(config):
    """Return the context in which losses and evaluations are computed."""
    dtype = autocast_dtype(config)
    return paddle.amp.auto_cast(enable=dtype is not None, dtype=dtype or "float16", level="O1")


def _is_due(count: int, every: int | None) -> bool:
    return every is not None and count > 0 and count % every == 0
