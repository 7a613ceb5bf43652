"""The command line that the three main scripts share, and how a program runs and ends."""

import argparse
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

import program
import runtime
from arguments import Parser
from config import DATASETS, get_config
from errors import UserError, printable
from launch import cluster, launcher, run_directory
from pipeline import workers
from storage.run_files import CONFIG_FILE

_FLAG_KEYS = {  # flag: configuration keys that it sets
    "dataset": ("DATA.DATASET",),
    "data_path": ("DATA.DATA_PATH",),
    "output": ("SAVE",),
    "batch_size": ("DATA.BATCH_SIZE", "DATA.BATCH_SIZE_EVAL"),
    "batch_size_eval": ("DATA.BATCH_SIZE_EVAL",),
    "image_size": ("DATA.IMAGE_SIZE",),
    "accum_iter": ("TRAIN.ACCUM_ITER",),
    "pretrained": ("MODEL.PRETRAINED",),
    "teacher": ("DISTILL.TEACHER",),
    "resume": ("MODEL.RESUME",),
    "last_epoch": ("TRAIN.LAST_EPOCH",),
    "eval": ("EVAL",),
    "amp": ("AMP",),
}


def make_parser(script: str, description: str) -> Parser:
    """Build the parser of a main script."""
    parser = Parser(prog=f"main_multi_gpu_{script}.py", description=description)
    add = parser.add
    add("cfg", "YAML file of the recipe, see configs/", metavar="FILE")
    add("dataset", ", ".join(DATASETS), metavar="NAME")
    add("data_path", "directory of the data set", metavar="DIR")
    add("output", "directory in which the run gets its own directory (default: ./output)", metavar="DIR")
    add(
        "batch_size",
        "images per process and micro-step, for training and evaluation; auto: by memory and data",
        type=_batch_size,
        metavar="N",
    )
    add("batch_size_eval", "images per process and step of evaluation", type=int, metavar="N")
    add("image_size", "side in pixels, or height and width", type=int, nargs="+", metavar="PX")
    add("accum_iter", "micro-steps per update", type=int, metavar="N")
    add(
        "pretrained",
        "weights to start from or to evaluate: .pdparams (suffix optional), .safetensors, "
        "or a checkpoint or run directory",
        metavar="PATH",
    )
    add("teacher", "frozen network that the model learns from, where the method can: weights, or a run", metavar="PATH")
    add(
        "resume",
        "continue a run: its directory, one of its checkpoints, or 'auto' for the newest run that is there, if any",
        metavar="PATH",
    )
    add("last_epoch", "count this many epochs as done already", type=int, metavar="N")
    add("eval", "evaluate -pretrained (or -resume) on the val split, and stop", action="store_true", default=None)
    add(
        "amp",
        "mixed precision on GPUs: auto (default), fp16, bf16 or none",
        nargs="?",
        const="fp16",
        choices=("auto", "fp16", "bf16", "none"),
    )
    add(
        "opts",
        "any other setting: KEY VALUE or KEY=VALUE; python -m tools.keys lists them",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY VALUE",
    )
    add("dry_run", "print the plan (configuration, model, data, batch, schedule), and stop", action="store_true")
    add(
        "gpu_memory",
        "with -dry_run: say whether a GPU of this size in GiB is enough, or that many: 64x80; without a model or data",
        type=_gpus,
        metavar="[Nx]GIB",
    )
    add("device", "cpu, gpu, gpu:3, npu, xpu, ... (default: gpu if there is one)", type=device_name, metavar="NAME")
    add("nproc", "processes on this node (default: one per visible GPU, or 1 on CPU)", type=int, metavar="N")
    add("nnodes", "number of nodes (default: 1)", type=int, default=1, metavar="N")
    add("master", "ip:port of the first node, the same on all nodes", metavar="IP:PORT")
    add("node_rank", "number of this node, from 0 (default: by order of arrival)", type=int, metavar="N")
    return parser


def device_name(text: str) -> str:
    """Check the form of the name of a device, for a parser."""
    if not re.fullmatch(r"[a-z][a-z_]{0,30}(:[0-9]{1,4})?", text):
        raise argparse.ArgumentTypeError(f"{printable(text, 40)!r} is not the name of a device, such as cpu or gpu:3")
    return text


def _gpus(text: str) -> tuple[int | None, float]:
    """Read [Nx]GIB as the number of GPUs, None where it is not said, and the memory of each."""
    match = re.fullmatch(r"(?:([1-9][0-9]{0,5})x)?([0-9]{1,9}(?:\.[0-9]{1,9})?)", text)
    if match is None or float(match[2]) == 0:
        raise argparse.ArgumentTypeError(f"{printable(text, 40)!r} is neither GiB above 0, such as 80, nor 8x80")
    return int(match[1]) if match[1] else None, float(match[2])


def _batch_size(text: str) -> int | str:
    if text != "auto" and not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{printable(text, 40)!r} is neither a number nor auto")
    return text if text == "auto" else int(text)


def run(main: Callable[[], object]) -> None:
    """Run the main function of a script or a tool; see `program.run`."""
    program.run(
        main,
        note_end=launcher.note_end,
        clean_up=workers.kill_all,
        is_reported_elsewhere=launcher.is_reported_elsewhere,
    )


def run_script(script: str, arguments: Sequence[str]) -> int:
    """Run a main script in a process of its own, and return its exit code.

    Where a signal asks this process to end, the script gets it, saves, and this process exits with the script's code.

    Args:
        script: "pretrain", "finetune" or "linearprobe".
        arguments: its command line.
    """
    command = [sys.executable, str(runtime.ROOT / f"main_multi_gpu_{script}.py"), *arguments]
    process = subprocess.Popen(command, env=runtime.original_environment(), start_new_session=True)
    try:
        return process.wait()
    except program.Interrupted:
        process.send_signal(signal.SIGTERM)
        raise SystemExit(process.wait()) from None
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise


def start(script: str, description: str, argv: Sequence[str] | None, check: Callable[[object], None]):
    """Read the command line, and start the processes of the job; see `training.run.start_run`.

    Returns:
        Arguments and configuration, in each process of the job; the one that started the others exits as they do.
    """
    args = make_parser(script, description).parse_args(argv)
    config = read_arguments(script, args)
    check(config)
    if "PADDLE_TRAINER_ID" not in os.environ:
        task = cluster.find_task(os.environ)
        if task is not None and args.nnodes == 1:
            launcher.check_device(args.device, task.local_size)
            print(cluster.become_rank(task, args.master, launcher.num_gpus(args.device), os.environ), flush=True)
            cluster.check_rank(args.nproc, os.environ)
            if task.local_size < task.size:
                launcher.use_route_to(*launcher.split_address(os.environ["PADDLE_MASTER"]))
        else:
            args.node_rank = cluster.node_rank(task, args.nnodes) if args.node_rank is None else args.node_rank
            launcher.launch_if_needed(script, args, argv, config)
    elif not launcher.is_own_rank():
        cluster.check_rank(args.nproc, os.environ)
    launcher.end_with_launcher()
    return args, config


def read_config(script: str, argv: Sequence[str]):
    """Return the configuration that a command line asks for; raises as `training.run.start_run`."""
    return read_arguments(script, make_parser(script, "").parse_args(argv))


def read_arguments(script: str, args: argparse.Namespace):
    """Return the configuration that parsed arguments ask for."""
    if args.cfg is None and args.resume not in (None, "auto"):
        # A run resumes with its own configuration. Its checkpoint is checked when it is loaded.
        args.cfg = run_directory.find(args.resume, lambda line: None, only=CONFIG_FILE) / CONFIG_FILE
    if args.gpu_memory is not None and not args.dry_run:
        raise UserError("-gpu_memory: is for -dry_run")
    if args.cfg is None:
        raise UserError(f"-cfg is missing, for example -cfg configs/vit_base_patch16_224_{script}.yaml")
    opts: list[object] = []
    if args.batch_size is not None:
        opts += ["DATA.BATCH_FIT", "auto" if args.batch_size == "auto" else "none"]
        args.batch_size = None if args.batch_size == "auto" else args.batch_size
    for flag, keys in _FLAG_KEYS.items():
        value = getattr(args, flag)
        if value is not None:
            value = value[0] if isinstance(value, list) and len(value) == 1 else value
            value = False if (flag, value) == ("amp", "none") else value
            for key in keys:
                opts += [key, value]
    return get_config(args.cfg, opts + args.opts)
