"""Several processes for one run: Paddle's launcher, with signals that reach the ranks and exit codes that tell.

Paddle's launcher stops its ranks by force when it gets a signal twice, and exits with the number of the signal. Here it
runs in a session of its own; this process passes a signal on to the ranks, which save and stop, and exits as they do.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import paddle

import runtime
from errors import UserError
from guard import EXIT_STOPPED

_STOP_NOTE = "MAE_STOP_NOTE"  # file that a rank makes when it has stopped as it was asked to


def launch_if_needed(mode: str, args: argparse.Namespace, argv: Sequence[str] | None, save: str) -> None:
    """Run one process per device, where there is more than one, and exit as they do."""
    uses_gpu = args.device != "cpu" and paddle.device.is_compiled_with_cuda()
    num_devices = paddle.device.cuda.device_count() if uses_gpu else 0
    nproc = args.nproc if args.nproc is not None else max(1, num_devices)
    if nproc < 1 or args.nnodes < 1:
        raise UserError(f"-nproc {nproc} -nnodes {args.nnodes}: both must be at least 1")
    if uses_gpu and num_devices and nproc > num_devices:
        raise UserError(f"-nproc {nproc}: only {num_devices} GPUs are visible")
    if args.device == "cpu" and max(nproc, args.nnodes) > 1 and paddle.device.is_compiled_with_cuda():
        raise UserError("-device cpu: several processes on CPU need the CPU build of Paddle (pip install paddlepaddle)")
    if args.nnodes > 1 and not args.master:
        raise UserError(f"-nnodes {args.nnodes} needs -master IP:PORT, the address of the first node")
    if nproc == 1 and args.nnodes == 1:
        return
    if argv is not None:
        raise UserError("-nproc and -nnodes start processes, so they work on the command line only")
    launch = ["-m", "paddle.distributed.launch", "--log_dir", str(Path(save) / "launch-logs"), "--log_level", "ERROR"]
    if num_devices:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(index) for index in range(num_devices)]
        launch += ["--devices", ",".join(devices[:nproc])]
    else:
        launch += ["--nproc_per_node", str(nproc)]
    if args.nnodes > 1:
        launch += ["--nnodes", str(args.nnodes), "--master", args.master]
        launch += ["--rank", str(args.node_rank)] if args.node_rank is not None else []
    script = Path(__file__).resolve().parent / f"main_multi_gpu_{mode}.py"
    sys.exit(_run([sys.executable, *launch, str(script), *sys.argv[1:]]))


def note_stop() -> None:
    """Tell the process that started the ranks that this one was asked to stop, and has saved."""
    if os.environ.get(_STOP_NOTE):
        Path(os.environ[_STOP_NOTE]).touch()


def _run(command: list[str]) -> int:
    """Run the launcher until it ends, and return the exit code for the job."""
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "stopped"
        environment = {**runtime.original_environment(), _STOP_NOTE: str(note)}
        launcher = subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            preexec_fn=runtime.end_with_parent if os.name == "posix" else None,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: _stop_ranks(launcher.pid))
        code = launcher.wait()
        return EXIT_STOPPED if note.exists() else code if code >= 0 else 128 - code


def _stop_ranks(launcher_pid: int) -> None:
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == launcher_pid:
                os.kill(int(status.parent.name), signal.SIGTERM)
