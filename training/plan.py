"""Number of updates and learning rates of a run, and the lines that announce them."""

import dataclasses
import math

import runtime
from config import amp_dtype, unused_settings
from errors import UserError
from layers.basic import ONE_IMAGE_ADVICE
from layers.kernels import describe_attention
from optim import lr_at
from pipeline.loading import Loader
from pipeline.samplers import TrainSampler
from storage.architecture import Architecture
from training import device, flops, memory, resolution
from training.task import Task

_FEW_UPDATES = 200


@dataclasses.dataclass(frozen=True)
class Plan:
    """The numbers that follow from configuration, data and ranks."""

    num_images: int
    images_per_update: int
    updates_per_epoch: int
    num_epochs: int
    warmup_steps: int
    peak_lr: float
    end_lr: float
    start_lr: float

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.updates_per_epoch * self.num_epochs

    def lr_at(self, step: int) -> float:
        """Return the learning rate of update `step`, before a group's multiplier."""
        return lr_at(
            step,
            peak_lr=self.peak_lr,
            total_steps=self.total_steps,
            warmup_steps=self.warmup_steps,
            end_lr=self.end_lr,
            start_lr=self.start_lr,
        )


def make_plan(config, loader: Loader) -> Plan:
    """Derive updates and learning rates; peak lr = BASE_LR * images per update / LINEAR_SCALED_LR."""
    sampler, train = loader.sampler, config.TRAIN
    return Plan(
        num_images=sampler.num_images,
        images_per_update=sampler.images_per_update,
        updates_per_epoch=sampler.updates_per_epoch,
        num_epochs=train.NUM_EPOCHS,
        warmup_steps=round(train.WARMUP_EPOCHS * sampler.updates_per_epoch),
        peak_lr=train.BASE_LR * sampler.images_per_update / train.LINEAR_SCALED_LR,
        end_lr=train.END_LR,
        start_lr=train.WARMUP_START_LR,
    )


def check_micro_steps(sampler: TrainSampler, smallest: int) -> None:
    """Raise UserError if a rank would get a micro-step of fewer images than a batch norm can normalise."""
    updates = {0, sampler.updates_per_epoch - 1}  # all but the last have the same sizes
    for rank in {0, sampler.world_size - 1}:  # shares differ by one image at most, and the first ranks have it
        sizes = [size for update in updates for size in sampler.micro_sizes(update, rank)]
        if min(sizes) < smallest:
            raise UserError(
                f"DATA.BATCH_SIZE={sampler.batch_size}: {sampler.num_images} images leave a micro-step of one image, "
                f"which a batch norm cannot normalise; {ONE_IMAGE_ADVICE}"
            )


def train_flops(task: Task, config) -> float | None:
    """Return the floating-point operations to train on one image; None for a network of unknown cost.

    Args:
        config: of the run, or of one of its stages, see `resolution`.
    """
    architecture = task.architecture
    if architecture is None:
        return None
    if config.TRAIN.get("RESOLUTION") is not None:
        architecture = resolution.of_stage(architecture, resolution.Stage(0, config))
    return flops.train_flops(architecture, *flops.ratios(config), **dataclasses.asdict(task.cost))


def describe_plan(plan: Plan, task: Task, sampler: TrainSampler, config) -> str:
    """Return lines that describe the run, with warnings where it differs from what the recipe was tuned for."""
    parameters = task.model.parameters()
    trainable = sum(math.prod(p.shape) for p in parameters if not p.stop_gradient)
    total = sum(math.prod(p.shape) for p in parameters)
    data, train, architecture = config.DATA, config.TRAIN, task.architecture
    lines = [
        f"{task.name}: {type(task.model).__name__}, {trainable:,} of {total:,} parameters train",
        f"data: {plan.num_images:,} images of {data.DATASET}, {data.IMAGE_SIZE} pixels, "
        f"{data.NUM_WORKERS} workers per process",
        *_describe_compute(task, architecture, config),
        *resolution.describe(architecture, resolution.stages(config)),
        f"batch: {data.BATCH_SIZE} per process x {sampler.accum_iter} accumulated x "
        f"{runtime.world_size()} processes = {plan.images_per_update} images per update",
        f"schedule: {plan.num_epochs} epochs x {plan.updates_per_epoch} updates = {plan.total_steps} steps, "
        f"{plan.warmup_steps} of them warm-up",
        f"learning rate: {train.BASE_LR} x {plan.images_per_update} / {train.LINEAR_SCALED_LR} = {plan.peak_lr:.6g} "
        f"at its peak, then cosine to {plan.end_lr:g}",
    ]
    if architecture is not None:
        widths = [tower.width // tower.heads for tower in architecture.towers]
        kernel = describe_attention(amp_dtype(config), widths, bool(architecture.position_bias))
        lines.append(f"attention: {kernel}")
        lines += _warn_of_memory(architecture, memory.Count(total, trainable), config, task)
    lines.append(describe_saving(config, plan.updates_per_epoch, plan.total_steps))
    starts_at_random = not config.MODEL.PRETRAINED and config.MODEL.RESUME in (None, "auto")
    if starts_at_random and 0 < plan.total_steps < _FEW_UPDATES:
        epochs = math.ceil(_FEW_UPDATES / plan.updates_per_epoch)
        lines.append(
            f"warning: {plan.total_steps} updates are few ({plan.num_images:,} images, {plan.images_per_update} per "
            f"update, {plan.num_epochs} epochs) to learn from random weights: set TRAIN.NUM_EPOCHS {epochs} or more, "
            "or a smaller -batch_size, or start from published weights (-pretrained; python -m zoo list)"
        )
    unused = unused_settings(config)
    if unused:
        lines.append(f"warning: {', '.join(unused)}: set, and MODEL.TYPE {config.MODEL.TYPE} does not use it")
    lines += task.notes(plan.num_images)
    wanted = train.TOTAL_BATCH_SIZE
    if wanted is not None and wanted != plan.images_per_update:
        per_step = data.BATCH_SIZE * runtime.world_size()
        others = sampler.accum_iter * runtime.world_size()
        if wanted % per_step == 0 and task.accumulates:
            hint = f"; -accum_iter {wanted // per_step} makes it so"
        else:
            hint = f"; -batch_size {wanted // others} makes it so" if wanted % others == 0 else ""
        lines.append(
            f"warning: the recipe was tuned for {wanted} images per update, not {plan.images_per_update}{hint}"
        )
    return "\n".join(lines)


def describe_saving(config, updates_per_epoch: int, total_steps: int) -> str:
    """Return a line that says when checkpoints are saved, and how much work a crash can cost."""
    every = [config.SAVE_FREQ * updates_per_epoch, config.SAVE_FREQ_STEPS or total_steps, total_steps]
    cost = f"{min(every):,} updates"
    if config.SAVE_EVERY_MINUTES is not None:
        cost = f"{config.SAVE_EVERY_MINUTES:g} minutes of training, or {cost} if that is less"
    return f"checkpoints: a crash costs at most {cost} (SAVE_EVERY_MINUTES, SAVE_FREQ, SAVE_FREQ_STEPS)"


def _describe_compute(task: Task, architecture: Architecture | None, config) -> list[str]:
    to_train = train_flops(task, config)
    if to_train is None or architecture is None:
        return []
    forward = flops.forward_macs(architecture, *flops.ratios(config))
    return [f"compute: {forward / 1e9:.3g} GMAC per image forward, {to_train / 1e9:.3g} GFLOP to train on it"]


def _warn_of_memory(architecture: Architecture, count: memory.Count, config, task: Task) -> list[str]:
    """Return a warning if the processes of this node need more memory than there is; none if that is unknown."""
    kind, there = "gpu" if device.is_on_gpu() else "cpu", device.memory_of_rank()
    needed = memory.estimate(architecture, config, count, task.cost, device=kind, ranks=runtime.world_size()).peak
    if there is None or needed <= there:
        return []
    where, processes = ("the GPU", 1) if kind == "gpu" else ("this machine", runtime.local_ranks())
    needed, there = needed * processes, there * processes
    lower = "set -batch_size auto or lower" if task.accumulates else "lower -batch_size and use more processes"
    return [
        f"warning: about {needed / 2**30:,.0f} GiB of memory are needed, and {where} has {there / 2**30:,.0f}; "
        f"{lower}, or set TRAIN.RECOMPUTE True"
    ]
