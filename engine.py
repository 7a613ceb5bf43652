"""The one training loop: `Task`, `fit`, `evaluate`.

The loop knows updates, ranks, precision, checkpoints and logs. What is trained, on which loss, with which
optimizer and how it is judged are the fields of a `Task`; no line here asks for the mode.

One clock: `step` = optimizer updates done. All randomness of a micro-step is derived from (seed, step, rank,
micro-step), so a checkpoint needs no generator states, and a resumed run continues bit by bit.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from paddle.optimizer import Optimizer

import architecture
import distributed
import training_state
from config import amp_dtype
from errors import UserError
from guard import Guard, Stopped, StopRequest
from loading import Loader
from metrics import RunLog, Throughput
from optim import WeightAverage
from plan import Plan, describe_plan, make_plan
from samplers import TrainSampler


@dataclasses.dataclass(frozen=True)
class Task:
    """One recipe, ready to run.

    Attributes:
        name: of the mode, for files and logs.
        model: unwrapped; its state dict is what gets saved.
        optimizer: its groups carry decay and learning rate multipliers.
        loss: `(model, batch, rng) -> scalar`, the mean over the batch's images. It gets the data-parallel
            model, and must call it; `rng` is a NumPy generator for this micro-step.
        evaluate: `(model, batch) -> one sum over the batch's images per name in `metrics``, or None.
        metrics: names of what `evaluate` returns.
        best_metric: the metric whose highest value marks the best checkpoint.
        ema: averaged weights, which are evaluated instead of the model's own.
    """

    name: str
    model: nn.Layer
    optimizer: Optimizer | None
    loss: Callable | None
    evaluate: Callable | None = None
    metrics: tuple[str, ...] = ()
    best_metric: str = "acc1"
    ema: WeightAverage | None = None


@dataclasses.dataclass
class Run:
    """Where a run lives and how it was asked for.

    Attributes:
        config: frozen configuration.
        directory: of the run; None on all ranks but the first.
        log: silent on all ranks but the first.
        resume_from: checkpoint directory to continue.
        dry_run: print the plan, and stop.
        num_bad_images: that could not be read and were skipped by this rank.
    """

    config: object
    directory: Path | None
    log: RunLog
    resume_from: Path | None = None
    dry_run: bool = False
    num_bad_images: int = 0

    def note_bad_image(self, note: str) -> None:
        """Keep what was wrong with an image that was skipped, in a file of the run directory."""
        self.num_bad_images += 1
        if self.num_bad_images in (1, 10, 100, 1000):
            self.log.say(f"warning: {self.num_bad_images} images skipped so far, the last one {note}")
        if self.directory is not None:
            with open(self.directory / "bad_images.txt", "a", encoding="utf-8") as file:
                file.write(note + "\n")


def fit(task: Task, train_loader: Loader, eval_loader: Loader | None, run: Run) -> dict[str, float]:
    """Train until the last epoch, and return the last metrics.

    A run starts, in this order, from: (1) `run.resume_from`; (2) the weights that the recipe loaded into the
    model; (3) its initialisation.
    """
    config, log = run.config, run.log
    plan = make_plan(config, train_loader)
    log.say(describe_plan(plan, task.name, task.model, train_loader.sampler, config))
    if run.dry_run:
        return {}
    scaler = paddle.amp.GradScaler(enable=_autocast_dtype(config, log) == "float16")
    step, best, images_done = _restore(task, plan, train_loader.sampler, scaler, run)
    if not distributed.is_same_on_all_ranks(step):
        raise UserError("-resume: not all nodes see the same checkpoint; -output must be a directory that they share")
    writer = None
    if run.directory is not None:
        writer = training_state.Writer(
            run.directory, lambda path, is_best: log.say(f"saved {path}" + (" (best)" if is_best else ""))
        )
    try:
        with StopRequest(log.say) as stop:
            return _train(task, train_loader, eval_loader, run, plan, scaler, step, best, images_done, writer, stop)
    finally:
        if writer is not None:
            writer.join()
        log.close()


def _train(
    task, train_loader, eval_loader, run: Run, plan: Plan, scaler, step, best, images_done, writer, stop
) -> dict[str, float]:
    config, sampler = run.config, train_loader.sampler
    model = distributed.wrap(task.model)
    clock, show = Throughput(step), run.log.progress(plan.total_steps, step)
    results: dict[str, float] = {}
    guard = Guard(config, run)
    saved_at = time.monotonic()
    model.train()
    if plan.total_steps == 0:  # an untrained model is something to compare with
        _save(task, step, plan, sampler, best, False, scaler, run, writer)
    while step < plan.total_steps:
        epoch, first_update = divmod(step, plan.updates_per_epoch)
        batches = train_loader.epoch(epoch, first_update, images_done)
        images_done = None  # only the first epoch was begun by somebody else
        for update in range(first_update, plan.updates_per_epoch):
            lr = plan.lr_at(step)
            _update(task, model, batches, train_loader, update, step, lr, scaler, guard, stop, config)
            step += 1
            clock.count(sampler.update_size(update))
            is_epoch_end = update + 1 == plan.updates_per_epoch
            done = epoch + 1 if is_epoch_end else 0  # whole epochs done
            is_last = step == plan.total_steps
            saves = _is_due(done, config.SAVE_FREQ) or _is_due(step, config.SAVE_FREQ_STEPS) or is_last
            saves = saves or guard.stops or guard.agree(_is_late(saved_at, config.SAVE_EVERY_MINUTES))
            if _is_due(step, config.REPORT_FREQ) or is_epoch_end or saves:
                results = _report(guard, step, lr, plan, clock, run, show)
            evaluates = eval_loader is not None and (_is_due(done, config.VALIDATE_FREQ) or is_last) and not guard.stops
            if not (evaluates or saves):
                continue
            started = time.monotonic()
            distributed.average_running_statistics(task.model)
            is_best = False
            if evaluates:
                scores = _judge(task, eval_loader, step, plan, run)
                is_best = scores[task.best_metric] > best
                best = max(best, scores[task.best_metric])
                results |= scores
            if saves or is_best:
                _save(task, step, plan, sampler, best, is_best, scaler, run, writer)
                saved_at = time.monotonic()
            if guard.stops and not is_last:
                _finish(writer)
                raise Stopped(f"stopped by a signal after {step} of {plan.total_steps} updates; -resume goes on")
            clock.pause(time.monotonic() - started)
    _finish(writer)
    return results


def _finish(writer) -> None:
    """Wait until every checkpoint is written, on all ranks."""
    if writer is not None:
        writer.wait()
    distributed.barrier()


@paddle.no_grad()
def evaluate(task: Task, loader: Loader, config) -> dict[str, float]:
    """Average the task's metrics over all images of a loader, exactly, whatever the ranks and batches.

    Averaged weights (EMA) are evaluated in place of the model's own, where the task keeps them.
    """
    if task.ema is not None:
        task.ema.swap(task.model)
    task.model.eval()
    totals, num_images = paddle.zeros([len(task.metrics)], "float64"), 0
    for batch in loader:
        with _autocast(config):
            sums = task.evaluate(task.model, batch)
        totals += paddle.stack([value.astype("float64") for value in sums])
        num_images += batch[0].shape[0]
    task.model.train()
    if task.ema is not None:
        task.ema.swap(task.model)
    *totals, num_images = distributed.sum_across_ranks(np.array([*totals.numpy(), num_images]))
    return {name: float(total / num_images) for name, total in zip(task.metrics, totals, strict=True)}


def _update(
    task: Task,
    model: nn.Layer,
    batches: Iterator,
    loader: Loader,
    update: int,
    step: int,
    lr: float,
    scaler: paddle.amp.GradScaler,
    guard: Guard,
    stop: StopRequest,
    config,
) -> None:
    """Do one optimizer update: the gradient of the mean loss over all images of all its micro-steps and ranks."""
    sampler = loader.sampler
    sizes = sampler.micro_sizes(update)
    # Data parallelism averages over ranks, and shares may differ by an image: weigh by images, not by ranks.
    weight = distributed.world_size() / sampler.update_size(update)
    loss_sum = paddle.zeros([])
    for micro, size in enumerate(sizes):
        rng = _seed_micro_step(config.SEED, step, micro)
        batch = next(batches)
        with distributed.no_sync(model, micro + 1 < len(sizes)):
            with _autocast(config):
                loss = task.loss(model, batch, rng)
            scaler.scale(loss * (size * weight)).backward()
        loss_sum += loss.detach().astype("float32") * size
    task.optimizer.set_lr(lr)
    trained = [p for p in task.model.parameters() if not p.stop_gradient and p.grad is not None]
    if scaler.is_enable():
        scaler.unscale_(task.optimizer)
    if config.TRAIN.GRAD_CLIP is None:
        norm = paddle.stack([p.grad.astype("float32").square().sum() for p in trained]).sum().sqrt()
    else:  # Paddle's own grad_clip would clip each parameter group by itself
        norm = nn.utils.clip_grad_norm_(trained, config.TRAIN.GRAD_CLIP)
    if guard.passes(loss_sum, sum(sizes), norm, scaler, loader, update, step, lr, stop.requested):
        scaler.step(task.optimizer)
        scaler.update()
        if task.ema is not None:
            task.ema.update(task.model)
    task.optimizer.clear_grad()


def _seed_micro_step(seed: int, step: int, micro: int) -> np.random.Generator:
    """Seed masks, drop path and dropout for this micro-step and rank; returns the generator for mixup."""
    sequence = np.random.SeedSequence([seed, step, micro, distributed.rank()])
    paddle.seed(int(sequence.generate_state(1)[0]))
    return np.random.default_rng(sequence)


def _autocast_dtype(config, log: RunLog | None = None) -> str | None:
    """Return the precision to compute in; on CPU, where Paddle has none but float32, None and one warning."""
    dtype = amp_dtype(config)
    if dtype is not None and paddle.device.get_device().startswith("cpu"):
        if log is not None:
            log.say(f"warning: -amp {dtype} has no effect on CPU, where Paddle computes in float32")
        return None
    return dtype


def _autocast(config):
    dtype = _autocast_dtype(config)
    return paddle.amp.auto_cast(enable=dtype is not None, dtype=dtype or "float16", level="O1")


def _report(guard: Guard, step: int, lr: float, plan: Plan, clock: Throughput, run: Run, show) -> dict[str, float]:
    loss, norm = guard.pop()
    rate = clock.rate()
    epoch = step / plan.updates_per_epoch
    values = {"epoch": epoch, "loss": loss, "lr": lr, "grad_norm": norm, "images_per_sec": round(rate, 1)}
    run.log.record("train", step, values)
    eta = clock.eta(step, plan.total_steps)
    show(step, f"epoch {epoch:.2f}  loss {loss:.4f}  lr {lr:.3e}  {rate:.0f} images/s  eta {eta}")
    return {"loss": loss}


def _judge(task: Task, loader: Loader, step: int, plan: Plan, run: Run) -> dict[str, float]:
    scores = evaluate(task, loader, run.config)
    run.log.record("eval", step, {"epoch": step / plan.updates_per_epoch, **scores})
    text = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    run.log.say(f"evaluation after {step} updates: {text}")
    return scores


def _is_late(saved_at: float, minutes: float | None) -> bool:
    return minutes is not None and time.monotonic() - saved_at >= 60 * minutes


def _is_due(count: int, every: int | None) -> bool:
    return every is not None and count > 0 and count % every == 0


def _identity(task: Task, plan: Plan, run: Run) -> dict[str, object]:
    """Return what a run must share with a checkpoint to continue it."""
    return {
        "task": task.name,
        "optimizer": type(task.optimizer).__name__,
        "num_images": plan.num_images,
        "seed": run.config.SEED,
    }


def _save(task: Task, step: int, plan: Plan, sampler, best: float, is_best: bool, scaler, run: Run, writer) -> None:
    if writer is None:
        return
    epoch, update = divmod(step, plan.updates_per_epoch) if plan.updates_per_epoch else (0, 0)
    progress = {
        "epoch": epoch,
        "images_done": sampler.images_before(update) if update else 0,
        "images_per_update": plan.images_per_update,
        "ranks": distributed.world_size(),
    }
    scaler_state = {key: np.asarray(value).tolist() for key, value in scaler.state_dict().items()}
    writer.submit(
        training_state.snapshot(
            step,
            task.model,
            task.optimizer,
            task.ema.state_dict() if task.ema else None,
            state={
                **_identity(task, plan, run),
                **progress,
                "best": best if math.isfinite(best) else None,
                "scaler": scaler_state,
            },
            config_yaml=run.config.dump(),
            architecture=architecture.of_config(run.config),
            is_best=is_best,
            keep_last=run.config.KEEP_LAST,
        )
    )


def _restore(task: Task, plan: Plan, sampler: TrainSampler, scaler, run: Run) -> tuple[int, float, int | None]:
    """Return (step, best metric, images of the epoch that are done) to start with, and load what belongs to them."""
    if run.resume_from is None:
        return run.config.TRAIN.LAST_EPOCH * plan.updates_per_epoch, -math.inf, None
    state = training_state.read_state(run.resume_from)
    for key, value in _identity(task, plan, run).items():
        if state.get(key) != value:
            raise UserError(
                f"-resume {run.resume_from}: that run has {key} {state.get(key)}, this one {value}; "
                "to start a new run from its weights, use -pretrained"
            )
    training_state.load(run.resume_from, task.model, task.optimizer, task.ema)
    if run.directory is not None:
        (run.directory / "config.yaml").write_text(run.config.dump(), encoding="utf-8")
    if state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    run.log.rewind(state["step"])
    step, images_done = _position(state, plan, sampler)
    run.log.say(f"resumed {run.resume_from} after {step} of {plan.total_steps} updates")
    then = (state.get("ranks"), state.get("images_per_update"))
    now = (distributed.world_size(), plan.images_per_update)
    if then[0] is not None and then != now:
        run.log.say(
            f"warning: {now[0]} ranks with {now[1]} images per update go on where {then[0]} with {then[1]} ended: the "
            "epoch's other images follow, each once, but the run is no longer bit-identical to an undisturbed one"
        )
    if step >= plan.total_steps:
        run.log.say("nothing is left to do; a larger TRAIN.NUM_EPOCHS goes on")
    return step, -math.inf if state.get("best") is None else state["best"], images_done


def _position(state: dict, plan: Plan, sampler: TrainSampler) -> tuple[int, int | None]:
    """Return the step at which a saved run goes on, and the images of that epoch that are done.

    With another number of images per update, an epoch has another number of updates: the run goes on so that the
    epoch's last update is the last of the new count.
    """
    if "images_done" not in state:  # saved before other numbers were possible
        if state.get("images_per_update") != plan.images_per_update:
            raise UserError("-resume: a checkpoint of an older version goes on with the same images per update only")
        return state["step"], None
    if state["images_done"] == 0:
        return state["epoch"] * plan.updates_per_epoch, None
    left = sampler.updates_left(state["images_done"])
    return (state["epoch"] + 1) * plan.updates_per_epoch - left, state["images_done"]
