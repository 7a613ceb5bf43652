"""Several processes for one run: Paddle's launcher, with signals that reach the ranks and exit codes that tell.

Paddle's launcher stops its ranks by force when it gets a signal twice, and exits with the number of the signal. Here it
runs in a session of its own; this process passes a signal on to the ranks, which save and stop, and exits as they do.
"""

import argparse
import contextlib
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import paddle

import runtime
from errors import UserError
from guard import EXIT_STOPPED
from heartbeat import Heartbeat

_NOTES = "MAE_LAUNCH_NOTES"  # directory in which ranks leave word of how they ended
_GRACE_SECS = 10.0
_SIOCGIFADDR = 0x8915  # linux/sockios.h


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
    master = None
    if args.nnodes > 1:
        master = _split_address(args.master)
        own = _own_address(*master)  # Paddle and gloo would take the hostname's, which may be 127.0.0.1
        interface = _interface_of(own)
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        launch += ["--nnodes", str(args.nnodes), "--master", args.master, "--host", own]
        launch += ["--rank", str(args.node_rank)] if args.node_rank is not None else []
    script = Path(__file__).resolve().parent / f"main_multi_gpu_{mode}.py"
    sys.exit(_run([sys.executable, *launch, str(script), *sys.argv[1:]], master))


def _split_address(master: str) -> tuple[str, int]:
    host, _, port = master.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65535:
        raise UserError(f"-master {master}: expected IP:PORT of the first node")
    return host.strip("[]"), int(port)


def _own_address(host: str, port: int) -> str:
    """Return this node's address as the first node sees it."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing, but chooses the route
            return probe.getsockname()[0]
    except OSError as error:
        raise UserError(f"-master {host}:{port}: {error.strerror or error}") from error


def _interface_of(address: str) -> str | None:
    """Return the name of the network interface that has an IPv4 address (Linux only)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def join() -> None:
    """Have this process end with the launcher, if it is a rank that `_run` started."""
    if os.environ.get(_NOTES):
        runtime.end_with_parent()


def note_end(code: int, text: str) -> None:
    """Tell the process that started the ranks how this one ended."""
    if os.environ.get(_NOTES):
        name = f"{time.time_ns()}-{os.environ.get('PADDLE_TRAINER_ID')}-{code}"
        with contextlib.suppress(OSError):  # the directory is gone if that process is
            (Path(os.environ[_NOTES]) / name).write_text(text, encoding="utf-8")


def _run(command: list[str], master: tuple[str, int] | None) -> int:
    """Run the launcher until it ends, and return the exit code for the job.

    Args:
        master: address of the first of several nodes, which then watch each other on the next port.
    """
    with tempfile.TemporaryDirectory() as folder:
        launcher = subprocess.Popen(
            command,
            env={**runtime.original_environment(), _NOTES: folder},
            start_new_session=True,
            preexec_fn=runtime.end_with_parent if os.name == "posix" else None,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: _signal_ranks(launcher.pid, signal.SIGTERM))
        heartbeat, lost = None, []
        if master is not None:
            try:
                heartbeat = Heartbeat(master[0], master[1] + 1, lambda what: lost.append(what) or _end_ranks(launcher))
            except OSError as error:
                launcher.kill()
                raise UserError(f"-master {master[0]}:{master[1]}: {error.strerror or error}") from error
        code = launcher.wait()
        code = _describe_end(Path(folder), _shell_code(code), lost)
        if heartbeat is not None:
            heartbeat.close(is_well=code in (0, EXIT_STOPPED))
        return code


def _end_ranks(launcher: subprocess.Popen) -> None:
    """End the ranks of this node, which would wait for those of another one for ever."""
    _signal_ranks(launcher.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        launcher.wait(_GRACE_SECS)
    _signal_ranks(launcher.pid, signal.SIGKILL)
    launcher.kill()


def _shell_code(code: int) -> int:
    """Return an exit code as shells tell it: 128 and more is a signal. Paddle's launcher passes on 256 - signal."""
    if code < 0:
        return 128 - code
    return 384 - code if 256 - signal.NSIG < code < 256 else code


def _describe_end(notes: Path, code: int, lost: list[str]) -> int:
    """Print what the first rank that failed had to say, last on the console; returns the job's exit code.

    Args:
        notes: directory in which the ranks left word.
        code: of Paddle's launcher.
        lost: what happened to another node, if anything did.
    """
    ends = sorted((path.name.split("-"), path) for path in notes.iterdir())
    codes = [int(end[2]) for end, _ in ends]
    if EXIT_STOPPED in codes:
        return EXIT_STOPPED
    if code == 0:
        return 0
    for (_, rank, first), path in ends[:1]:
        print(f"\nrank {rank} failed first:\n{path.read_text(encoding='utf-8').rstrip()}", file=sys.stderr)
        code = int(first)
    for what in lost:
        print(
            f"error: {what}; this node stops, too, and -resume auto goes on from the last checkpoint", file=sys.stderr
        )
        code = 1
    if not ends and not lost:
        how = f"was ended by {signal.Signals(code - 128).name}" if code > 128 else f"ended with code {code}"
        print(f"error: a rank {how}; what it said before is in launch-logs, in -output", file=sys.stderr)
    return code


def _signal_ranks(launcher_pid: int, number: int) -> None:
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            if parent == launcher_pid:
                os.kill(int(status.parent.name), number)
