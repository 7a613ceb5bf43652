"""Several processes for one run: starts ranks by Paddle's launcher, forwards signals to them, and exits as they do.

Paddle's launcher stops its ranks by force when it gets a signal twice, and exits with the number of the signal. Here it
runs in a session of its own; this process passes a signal on to the ranks, which save and stop, and turns their exits
into one exit code.
"""

import argparse
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import os
import re
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
from errors import UserError, printable
from launch.heartbeat import Heartbeat
from launch.ranks import Ranks
from program import EXIT_STOPPED, Interrupted, Stopped
from runtime import ENDING_SIGNALS

_MOST_PROCESSES = 4096
_LONGEST_HOST = 253  # longest domain name (RFC 1035)
_GRACE_SECS, _LOOK_SECS, _NEWS_SECS = 10.0, 0.1, 5.0
_SIOCGIFADDR = 0x8915  # linux/sockios.h


def launch_if_needed(script: str, args: argparse.Namespace, argv: Sequence[str] | None, config) -> None:
    """Run one process per device, where there is more than one, and exit as they do."""
    save = config.SAVE
    num_devices = num_gpus(args.device)
    nproc = args.nproc if args.nproc is not None else max(1, num_devices)
    if not 1 <= nproc <= _MOST_PROCESSES or not 1 <= args.nnodes <= _MOST_PROCESSES:
        raise UserError(f"-nproc {nproc} -nnodes {args.nnodes}: both must be from 1 to {_MOST_PROCESSES:,}")
    if num_devices and nproc > num_devices:
        raise UserError(f"-nproc {nproc}: only {num_devices} GPUs are visible")
    if args.device == "cpu" and max(nproc, args.nnodes) > 1 and paddle.device.is_compiled_with_cuda():
        raise UserError("-device cpu: several processes on CPU need the CPU build of Paddle (pip install paddlepaddle)")
    check_device(args.device, nproc * args.nnodes)
    if args.node_rank is not None and not 0 <= args.node_rank < args.nnodes:
        raise UserError(
            f"-node_rank {args.node_rank}: must be from 0 to {args.nnodes - 1}, as -nnodes is {args.nnodes}"
        )
    if args.nnodes > 1 and not args.master:
        raise UserError(f"-nnodes {args.nnodes} needs -master IP:PORT, the address of the first node")
    if nproc == 1 and args.nnodes == 1:
        return
    if argv is not None:
        raise UserError("-nproc and -nnodes start processes, so they work on the command line only")
    launch = ["--log_dir", str(Path(save) / "launch-logs"), "--log_level", "CRITICAL"]
    if num_devices:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(index) for index in range(num_devices)]
        launch += ["--devices", ",".join(devices[:nproc])]
    else:
        launch += ["--nproc_per_node", str(nproc)]
    master = None
    if args.nnodes > 1:
        master = split_address(args.master)
        own = use_route_to(*master)
        launch += ["--nnodes", str(args.nnodes), "--master", args.master, "--host", own]
        launch += ["--rank", str(args.node_rank)] if args.node_rank is not None else []
    main = runtime.ROOT / f"main_multi_gpu_{script}.py"
    command = runtime.module_command("paddle.distributed.launch", *launch, str(main), *sys.argv[1:])
    job = None if master is None else _Job(master, own, job_token(args.master, args.nnodes, config))
    sys.exit(_run(command, job))


def num_gpus(device: str | None) -> int:
    """Return the number of NVIDIA GPUs that are visible, if -device lets them be used; each takes a rank."""
    uses_gpus = device in (None, "gpu") and paddle.device.is_compiled_with_cuda()
    return paddle.device.cuda.device_count() if uses_gpus else 0


def check_device(device: str | None, num_processes: int) -> None:
    """Raise UserError if several processes would compute on the device of one number."""
    if ":" in (device or "") and num_processes > 1:
        raise UserError(f"-device {device}: is one device; for several processes, leave its number out")


def split_address(master: str) -> tuple[str, int]:
    """Return host and port of an address; raise UserError for anything else."""
    host, _, port = master.rpartition(":")
    if not 0 < len(host) <= _LONGEST_HOST or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65535:
        raise UserError(f"-master {printable(master, 60)}: expected IP:PORT of the first node")
    return host.strip("[]"), int(port)


def use_route_to(host: str, port: int) -> str:
    """Have gloo use the interface that leads to the first node; returns this node's address there.

    Paddle and gloo would take the hostname's address, which may be 127.0.0.1.
    """
    own = _own_address(host, port)
    interface = _find_interface(own)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    return own


def _own_address(host: str, port: int) -> str:
    """Return this node's address as the first node sees it."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing, but chooses the route
            return probe.getsockname()[0]
    except (OSError, ValueError) as error:  # ValueError: a name that no host can have
        raise UserError(f"-master {host}:{port}: {getattr(error, 'strerror', None) or error}") from error


def _find_interface(address: str) -> str | None:
    """Return the name of the network interface that has an IPv4 address (Linux only)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def end_with_launcher() -> None:
    """End this process when the launcher ends, if it is a rank that `_run` started."""
    if is_own_rank():
        runtime.end_with_parent()


def is_own_rank() -> bool:
    """Return True if this is a rank that `_run` started."""
    return bool(os.environ.get(runtime.NOTES_VARIABLE))


def is_reported_elsewhere(end: BaseException) -> bool:
    """Return True if this is a rank whose end is reported by the process that started it."""
    return runtime.NOTES_VARIABLE in os.environ and isinstance(end, (Interrupted, Stopped))


def note_end(code: int, text: str) -> None:
    """Leave a note for the process that started the ranks on how this one ended."""
    if os.environ.get(runtime.NOTES_VARIABLE):
        name = f"{time.time_ns()}-{os.environ.get('PADDLE_TRAINER_ID')}-{code}"
        with contextlib.suppress(OSError):  # the directory is gone if that process is
            (Path(os.environ[runtime.NOTES_VARIABLE]) / name).write_text(text, encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class _Job:
    """Addresses and token of the nodes of a job.

    Attributes:
        master: address of the first node, for Paddle; the nodes watch each other on the next port.
        own: this node's address.
        token: that only the nodes of this job have.
    """

    master: tuple[str, int]
    own: str
    token: bytes


def job_token(master: str, num_nodes: int, config) -> bytes:
    """Derive the token of a job from its command, and from MAE_JOB_SECRET, if that is set.

    Paths may differ from node to node, so they have no part in it.
    """
    config = config.clone()
    config.defrost()
    config.SAVE = config.RUN = config.DATA.DATA_PATH = ""  # a run's name may have the time in it
    config.MODEL.PRETRAINED = config.MODEL.RESUME = None
    config.DATA.NUM_WORKERS = 0
    words = (master, str(num_nodes), config.dump(), os.environ.get("MAE_JOB_SECRET", ""))
    return hashlib.sha256("\0".join(words).encode()).digest()


def _run(command: list[str], job: _Job | None) -> int:
    """Run the launcher until it ends, and return the exit code for the job.

    Args:
        job: None: there is one node only.
    """
    lost: list[str] = []
    heartbeat = None if job is None else _watch_nodes(job, lost)
    asked: list[int] = []  # signals that this process got
    for number in ENDING_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: asked.append(number))
    with tempfile.TemporaryDirectory() as folder:
        launcher = subprocess.Popen(
            command,
            env={**runtime.module_environment(), runtime.NOTES_VARIABLE: folder},
            start_new_session=True,
            preexec_fn=_prepare_launcher if os.name == "posix" else None,
        )
        ranks, told = Ranks(launcher.pid), 0
        while launcher.poll() is None:
            ranks.look()
            if lost:
                _end_ranks(launcher, ranks)
            elif asked and not ranks.are_there and _end_before_ranks(launcher, ranks):
                break
            elif asked:  # whoever is there by now; a second signal goes to all once more
                ranks.signal(signal.SIGTERM, again=len(asked) > told)
                told = len(asked)
            ranks.wait(_LOOK_SECS)
        ranks.look()
        if heartbeat is not None and launcher.returncode != 0 and not asked:
            _wait_for_the_cause(lost, ranks)
        code = _report_end(Path(folder), _shell_code(launcher.returncode), lost, asked, ranks.first_killed)
    if heartbeat is not None:
        heartbeat.close(is_well=code in (0, EXIT_STOPPED))
    return code


def _prepare_launcher() -> None:
    """Have the launcher end with this process, and disregard SIGUSR1, which is for this process."""
    runtime.end_with_parent()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _wait_for_the_cause(lost: list[str], ranks: Ranks) -> None:
    """Wait some seconds for the news that another node is lost, which is why ranks abort."""
    deadline = time.monotonic() + _NEWS_SECS
    while ranks.first_killed is not None and ranks.first_killed[1] == signal.SIGABRT and not lost:
        if time.monotonic() > deadline:
            return
        time.sleep(_LOOK_SECS)


def _watch_nodes(job: _Job, lost: list[str]) -> Heartbeat:
    """Begin to watch the other nodes, before Paddle's launcher takes the port below."""
    host, port = job.master
    try:
        heartbeat = Heartbeat(host, port + 1, job.token, lost.append)
    except OSError as error:
        raise UserError(f"-master {host}:{port}: {error.strerror or error}") from error
    if heartbeat.is_first and _is_taken(host, port):  # a launcher of this job on this machine would have come first
        heartbeat.close(is_well=True)
        raise UserError(f"-master {host}:{port}: another program uses this port; choose another one on all nodes")
    return heartbeat


def _is_taken(host: str, port: int) -> bool:
    """Return True if a program listens at a port of this machine."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do after one that has just ended
            probe.bind(address)
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def _end_ranks(launcher: subprocess.Popen, ranks: Ranks) -> None:
    """End the ranks of this node, which would wait for those of another one for ever."""
    ranks.signal(signal.SIGTERM, again=True)
    with contextlib.suppress(subprocess.TimeoutExpired):
        launcher.wait(_GRACE_SECS)
    ranks.look()
    ranks.signal(signal.SIGKILL, again=True)
    launcher.kill()
    launcher.wait()


def _end_before_ranks(launcher: subprocess.Popen, ranks: Ranks) -> bool:
    """End the launcher while it waits for other nodes, where it takes no signal; False if ranks have started."""
    launcher.send_signal(signal.SIGSTOP)  # it starts none while they are looked for
    time.sleep(_LOOK_SECS)  # until one that has just been forked has its own environment
    ranks.look()
    if ranks.are_there:
        launcher.send_signal(signal.SIGCONT)
        return False
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself meanwhile
        os.killpg(launcher.pid, signal.SIGKILL)  # with the store that it may have started
    launcher.wait()
    return True


def _shell_code(code: int) -> int:
    """Return an exit code in the convention of shells: 128 + signal. Paddle's launcher exits with 256 - signal."""
    if code < 0:
        return 128 - code
    return 384 - code if 256 - signal.NSIG < code < 256 else code


def _report_end(notes: Path, code: int, lost: list[str], asked: list[int], killed: tuple[str, int] | None) -> int:
    """Print why a job ended, last on the console; returns its exit code.

    Args:
        notes: directory in which the ranks left notes.
        code: of Paddle's launcher.
        lost: what happened to another node, if anything did.
        asked: signals that asked this process to end.
        killed: the first rank that a signal ended, and the signal; None if others ended before, or none.
    """
    ends = sorted((path.name.split("-"), path) for path in notes.iterdir())
    codes = [int(end[2]) for end, _ in ends]
    for what in lost:
        print(
            f"error: {what}; this node stops, too, and -resume auto resumes from the last checkpoint", file=sys.stderr
        )
        return 1
    if asked and code != 0 and 2 not in codes:  # a rank may fail because another one has ended
        if EXIT_STOPPED in codes:
            return _say_stopped(ends)
        print(f"ended by {signal.Signals(asked[0]).name}", file=sys.stderr)
        return 128 + asked[0]
    # A rank aborts when another one has ended, and can be gone before that one, which has left its note.
    is_told = killed is not None and killed[0] in [end[1] for end, _ in ends]
    follows = killed is not None and killed[1] == signal.SIGABRT and bool(ends)
    if killed is not None and not asked and not is_told and not follows:
        rank, number = killed
        advice = "; did the machine run out of memory?" if number == signal.SIGKILL else ""
        where = "what it said before is in launch-logs, in -output"
        print(f"error: rank {rank} was ended by {signal.Signals(number).name}{advice} {where}", file=sys.stderr)
        return 128 + number
    if EXIT_STOPPED in codes:
        return _say_stopped(ends)
    if code == 0:
        return 0
    for (_, rank, first), path in ends[:1]:
        print(f"\nrank {rank} failed first:\n{path.read_text(encoding='utf-8').rstrip()}", file=sys.stderr)
        return int(first)
    how = f"was ended by {signal.Signals(code - 128).name}" if code > 128 else f"ended with code {code}"
    print(f"error: a rank {how}; what it said before is in launch-logs, in -output", file=sys.stderr)
    return code


def _say_stopped(ends: list[tuple[list[str], Path]]) -> int:
    """Print the note of a rank that was stopped; returns the job's exit code."""
    words = next(path for end, path in ends if int(end[2]) == EXIT_STOPPED).read_text(encoding="utf-8")
    print(words, file=sys.stderr)
    return EXIT_STOPPED
