"""A run: its directory, log and settings, and how it starts."""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import paddle

import runtime
from errors import escape_controls
from launch import command_line, run_directory
from layers import across_ranks
from pipeline.sources import Source
from storage import atomic
from storage.run_files import BAD_IMAGES_FILE
from training.device import choose_precision, set_device
from training.log import RunLog
from training.trackers import tracker_names


@dataclasses.dataclass
class Run:
    """Directory, log and settings of a run.

    Attributes:
        config: frozen configuration.
        directory: of the run; None on all ranks but the first.
        log: silent on all ranks but the first.
        resume_from: checkpoint directory to continue.
        dry_run: print the plan, and stop.
        gpus: number (or None) and memory in GiB of GPUs of which the plan says whether they are enough; None: this was
            not asked.
        bad_images: notes on images that could not be read and were skipped by this rank, since the last report.
        num_bad_images: of all ranks, up to the last report.
        sources: splits that have been opened, see `loaders.open_once`.
    """

    config: object
    directory: Path | None
    log: RunLog
    resume_from: Path | None = None
    dry_run: bool = False
    gpus: tuple[int | None, float] | None = None
    bad_images: list[str] = dataclasses.field(default_factory=list)
    num_bad_images: int = 0
    sources: dict[tuple, Source] = dataclasses.field(default_factory=dict)

    def report_bad_images(self) -> None:
        """Count skipped images in the log, and list them in the run directory; all ranks must call it."""
        notes = across_ranks.gather_texts(self.bad_images)
        self.bad_images.clear()
        if not notes or self.directory is None:
            return
        path = self.directory / BAD_IMAGES_FILE
        known = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        # Ranks, resumed runs and evaluations meet the same images.
        listed = list(dict.fromkeys([*known, *map(escape_controls, notes)]))
        if len(listed) > self.num_bad_images:
            self.log.say(f"warning: {len(listed)} images skipped so far, the last one {listed[-1]}; all are in {path}")
            self.num_bad_images = len(listed)
            atomic.write_text(path, "".join(f"{note}\n" for note in listed))


def start_run(
    script: str,
    description: str,
    argv: Sequence[str] | None,
    check: Callable[[object], None],
    run_prefix: Callable[[object], str],
) -> Run:
    """Read the command line, join the other processes, and open the run's directory.

    Args:
        script: "pretrain", "finetune" or "linearprobe".
        argv: arguments; None: those of the process, which may then be replaced by a multi-process launch.
        check: raises UserError if the script cannot do what the configuration asks for.
        run_prefix: returns how the names of run directories begin, given the configuration.

    Raises:
        UserError: for anything that the user can correct.
    """
    args, config = command_line.start(script, description, argv, check)
    set_device(args.device, config.DETERMINISTIC)
    if args.gpu_memory is None:  # else precision is that of the GPUs which are asked about
        config, precision = choose_precision(config)
    across_ranks.join()
    resume_from, directory, lock = run_directory.enter(config, run_prefix(config), args.dry_run)
    log = RunLog(directory, quiet=not runtime.is_main(), trackers=tracker_names(config), lock=lock)
    if directory is not None:
        log.say(
            f"run directory {directory}, paddle {paddle.__version__} on {paddle.device.get_device()}, "
            f"{runtime.world_size()} processes"
        )
        words = ["python", f"main_multi_gpu_{script}.py", *(sys.argv[1:] if argv is None else argv)]
        log.say(f"command: {shlex.join(words)}")
        commit = runtime.commit()
        if commit is not None:
            log.say(f"code: commit {commit}")
        log.say(precision)
    if args.dry_run:
        log.say(config.dump())
    return Run(config, directory, log, resume_from, args.dry_run, gpus=args.gpu_memory)
