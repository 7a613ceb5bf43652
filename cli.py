"""The command line that the three main scripts share: flags, launch, device, run directory, errors."""

import argparse
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import paddle

import distributed
import launch
import output_files
import program
import runtime
import training_state
import workers
from arguments import Parser, user_path
from config import DATASETS, get_config
from errors import UserError, abridge, printable
from metrics import RunLog
from run_lock import RunLock
from task import Run

_BEGUN = {".lock", "config.yaml", "log.txt", "launch-logs"}  # of a run that ended before its first record
_FLAG_KEYS = {  # flag: configuration keys that it sets
    "dataset": ("DATA.DATASET",),
    "data_path": ("DATA.DATA_PATH",),
    "output": ("SAVE",),
    "batch_size": ("DATA.BATCH_SIZE", "DATA.BATCH_SIZE_EVAL"),
    "batch_size_eval": ("DATA.BATCH_SIZE_EVAL",),
    "image_size": ("DATA.IMAGE_SIZE",),
    "accum_iter": ("TRAIN.ACCUM_ITER",),
    "pretrained": ("MODEL.PRETRAINED",),
    "resume": ("MODEL.RESUME",),
    "last_epoch": ("TRAIN.LAST_EPOCH",),
    "eval": ("EVAL",),
    "amp": ("AMP",),
}


def make_parser(mode: str, description: str) -> Parser:
    """Build the parser of a main script."""
    parser = Parser(prog=f"main_multi_gpu_{mode}.py", description=description)
    add = parser.add
    add("cfg", "YAML file of the recipe, see configs/", metavar="FILE")
    add("dataset", ", ".join(DATASETS), metavar="NAME")
    add("data_path", "directory of the data set", metavar="DIR")
    add("output", "directory in which the run gets its own directory (default: ./output)", metavar="DIR")
    add("batch_size", "images per process and micro-step, for training and evaluation", type=int, metavar="N")
    add("batch_size_eval", "images per process and step of evaluation", type=int, metavar="N")
    add("image_size", "side in pixels, or height and width", type=int, nargs="+", metavar="PX")
    add("accum_iter", "micro-steps per update", type=int, metavar="N")
    add(
        "pretrained",
        "weights to start from or to evaluate: .pdparams (suffix optional), .safetensors, "
        "or a checkpoint or run directory",
        metavar="PATH",
    )
    add(
        "resume",
        "continue a run: its directory, one of its checkpoints, or 'auto' for the newest run that is there, if any",
        metavar="PATH",
    )
    add("last_epoch", "count this many epochs as done already", type=int, metavar="N")
    add("eval", "evaluate -pretrained (or -resume) on the val split, and stop", action="store_true", default=None)
    add(
        "amp",
        "mixed precision: fp16 (default) or bf16; float32 on CPU",
        nargs="?",
        const="fp16",
        choices=("fp16", "bf16"),
    )
    add(
        "opts",
        "any other setting: KEY VALUE pairs, see config.py",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY VALUE",
    )
    add("dry_run", "print the plan (configuration, model, data, batch, schedule), and stop", action="store_true")
    add("device", "cpu or gpu (default: gpu if there is one)", choices=("cpu", "gpu"))
    add("nproc", "processes on this node (default: one per visible GPU, or 1 on CPU)", type=int, metavar="N")
    add("nnodes", "number of nodes (default: 1)", type=int, default=1, metavar="N")
    add("master", "ip:port of the first node, the same on all nodes", metavar="IP:PORT")
    add("node_rank", "number of this node, from 0 (default: by order of arrival)", type=int, metavar="N")
    return parser


def start(mode: str, description: str, argv: Sequence[str] | None = None) -> Run:
    """Read the command line, join the other processes, and open the run's directory.

    Args:
        mode: "pretrain", "finetune" or "linearprobe".
        argv: arguments; None: those of the process, which may then be replaced by a multi-process launch.

    Raises:
        UserError: for anything that the user can mend.
    """
    args = make_parser(mode, description).parse_args(argv)
    config = _read_config(mode, args)
    if "PADDLE_TRAINER_ID" not in os.environ:
        launch.launch_if_needed(mode, args, argv, config)
    launch.join()
    set_device(args.device, config.DETERMINISTIC)
    distributed.init()
    resume_from = _find_resume(config, mode)
    directory = lock = None
    if distributed.is_main() and not args.dry_run:
        directory = _open_directory(config, "eval" if config.EVAL else mode, resume_from)
        lock = RunLock(directory, print)
        if resume_from is None or config.EVAL:  # a run that goes on keeps its own until it is known to fit
            output_files.write_text(directory / "config.yaml", config.dump())
    log = RunLog(directory, quiet=not distributed.is_main(), visualdl=config.VISUALDL, lock=lock)
    if directory is not None:
        log.say(
            f"run directory {directory}, paddle {paddle.__version__} on {paddle.device.get_device()}, "
            f"{distributed.world_size()} processes"
        )
    if args.dry_run:
        log.say(config.dump())
    return Run(config, directory, log, resume_from, args.dry_run)


def run(main: Callable[[], object]) -> None:
    """Run the main function of a script or a tool; see `program.run`."""
    program.run(main, note_end=launch.note_end, clean_up=workers.kill_all, is_said_elsewhere=launch.is_said_elsewhere)


def write_report(run: Run) -> None:
    """Have another process write report.html into the directory of a run that has ended; a failure is told only."""
    if run.directory is None or not run.config.REPORT or not (run.directory / "log.jsonl").is_file():
        return
    command = runtime.module_command("tools.report", str(run.directory.resolve()))
    environment = runtime.module_environment() | {"CUDA_VISIBLE_DEVICES": ""}
    environment = {key: value for key, value in environment.items() if not key.startswith("PADDLE_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        run.log.say(f"report: {run.directory / 'report.html'}")
    else:
        run.log.say(f"warning: no report: {(done.stderr.strip().splitlines() or ['?'])[-1]}")


def _read_config(mode: str, args: argparse.Namespace):
    if args.cfg is None and args.resume not in (None, "auto"):
        # A run goes on as it was. What else its checkpoint holds is checked when it is loaded.
        args.cfg = training_state.find(args.resume, lambda line: None, only="config.yaml") / "config.yaml"
    if len(args.opts) % 2:
        raise UserError(f"-opts takes KEY VALUE pairs with a space between, but got: {' '.join(args.opts)}")
    if args.cfg is None:
        raise UserError(f"-cfg is missing, for example -cfg configs/vit_base_patch16_224_{mode}.yaml")
    opts: list[object] = []
    for flag, keys in _FLAG_KEYS.items():
        value = getattr(args, flag)
        if value is not None:
            value = value[0] if isinstance(value, list) and len(value) == 1 else value
            for key in keys:
                opts += [key, value]
    config = get_config(args.cfg, opts + args.opts)
    if mode.upper() != config.MODEL.TYPE:
        raise UserError(f"-cfg {args.cfg} is for MODEL.TYPE {config.MODEL.TYPE}, but this script is for {mode.upper()}")
    if config.EVAL and mode == "pretrain":
        raise UserError("-eval: a pretrained autoencoder is judged by finetuning or probing it")
    return config


def set_device(device: str | None = None, deterministic: bool = False) -> None:
    """Choose the CPU, or this rank's GPU (None: if there is one), and set the device's flags."""
    has_gpu = paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if device == "gpu" and not has_gpu:
        raise UserError("-device gpu: Paddle sees no GPU (is paddlepaddle-gpu installed, and the driver?)")
    if device == "cpu" or not has_gpu:
        paddle.set_device("cpu")
        paddle.set_flags({"FLAGS_use_stride_kernel": False})  # strided copies are several times slower on CPU
    else:
        index = paddle.distributed.ParallelEnv().device_id
        properties = paddle.device.cuda.get_device_properties(index)
        check_capability(paddle.__version__, (properties.major, properties.minor), properties.name)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
            paddle.set_flags({"FLAGS_cudnn_deterministic": True, "FLAGS_embedding_deterministic": 1})
        paddle.set_device(f"gpu:{index}")


def check_capability(version: str, capability: tuple[int, int], name: str) -> None:
    """Raise UserError for a GPU that the build of Paddle has no code for.

    The newest `paddlepaddle-gpu` on PyPI, 2.6.2, has machine code for compute capability 5.0 to 8.6, which also runs on
    8.9, and no PTX that newer GPUs could translate.
    """
    if version.startswith("2.") and not (5, 0) <= capability < (9, 0):
        raise UserError(
            f"{name}: Paddle {version} has no code for its compute capability {capability[0]}.{capability[1]} (5.0 to "
            "8.9 work); install Paddle 3, see Install in README.md"
        )


def _find_resume(config, mode: str) -> Path | None:
    """Return the checkpoint directory that MODEL.RESUME means, if any."""
    wanted = config.MODEL.RESUME
    if wanted is None:
        return None
    if wanted != "auto":
        return _find_on_main(Path(wanted))
    save = user_path(config.SAVE, "-output")
    runs = [save / config.RUN] if config.RUN else sorted(save.glob(f"{mode}-*"), key=lambda path: path.name)
    runs = [path for path in runs if training_state.has_checkpoint(path)]
    return _find_on_main(runs[-1]) if runs else None


def _find_on_main(path: Path) -> Path:
    """Let the first rank look which checkpoint is whole, and the others take the same one."""
    found = training_state.find(path) if distributed.is_main() else None
    own_step = training_state.read_state(found)["step"] if found else 0
    step = int(distributed.sum_across_ranks(np.array([own_step], np.float64))[0])
    if found is None:
        found = path if training_state.is_checkpoint(path) else path / f"step-{step:08d}"
    return found


def _open_directory(config, prefix: str, resume_from: Path | None) -> Path:
    if resume_from is not None and not config.EVAL:
        return resume_from.parent
    name = config.RUN or f"{prefix}-{time.strftime('%Y%m%d-%H%M%S')}"
    save, suffix = user_path(config.SAVE, "-output"), ""
    try:
        while True:
            directory = save / f"{name}{suffix}"
            try:
                directory.mkdir(parents=True)
                return directory
            except FileExistsError:
                if config.RUN or not directory.is_dir():
                    break
            suffix = f"-{int(suffix[1:] or 1) + 1}"
        _check_reuse(directory)
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"-output {printable(config.SAVE)}: cannot create {printable(directory)}: {reason}") from error
    return directory


def _check_reuse(directory: Path) -> None:
    """Raise UserError unless a directory that is there may become a run's, which overwrites files."""
    if training_state.has_checkpoint(directory):
        raise UserError(f"{directory} holds a run already: continue it with -resume auto, or choose another RUN")
    if not directory.is_dir():
        raise UserError(f"{directory}: a file; choose another RUN")
    names = {path.name for path in directory.iterdir()}
    if not names <= _BEGUN and not output_files.is_run(directory):
        others = abridge(sorted(names - _BEGUN), 3)
        raise UserError(f"{directory}: holds something else than a run ({printable(others)}); choose another RUN")
