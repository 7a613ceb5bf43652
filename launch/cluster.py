"""Ranks that a cluster's own launcher starts: srun, mpirun, or PADDLE_* variables set by hand or by Kubernetes.

Their variables become Paddle's, so that each task is a rank of one job, and no two tasks train the same by accident.
"""

import dataclasses
import os
import re
import socket
from collections.abc import Mapping, MutableMapping

import runtime
from errors import UserError, printable

_FIRST_PORT, _NUM_PORTS = 20_000, 20_000
# Variables by launcher: rank, number of ranks, rank and number of ranks on this node.
_LAUNCHERS = {
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    "mpirun (Open MPI)": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "mpirun (PMI)": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """The place of this process among those that a launcher has started.

    Attributes:
        launcher: its name, for messages.
        rank, size: among all.
        local_rank, local_size: among those of this node.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int


def find_task(environment: Mapping[str, str]) -> Task | None:
    """Return the place of this process in a launcher's job of several; None if there is no such launcher.

    Raises:
        UserError: if variables are missing, or are not numbers.
    """
    for launcher, names in _LAUNCHERS.items():
        size = environment.get(names[1]) or "1"
        if not re.fullmatch(r"[0-9]{1,7}", size):
            raise UserError(f"{names[1]}={printable(size, 40)}: is not the number of {launcher}'s tasks; unset it")
        if int(size) < 2:
            continue
        values = []
        for name, default in zip(names, (None, None, "0", size), strict=True):
            text = environment.get(name, default)
            number = re.match(r"[0-9]{1,7}(?![0-9])", text or "")  # Slurm writes 2(x3),1: two tasks on the first nodes
            if number is None:
                raise UserError(
                    f"{launcher} started {size} tasks ({names[1]}), and {name} is "
                    f"{printable(text, 40) or 'not set'}; start one task, or set {name}"
                )
            values.append(int(number[0]))
        return Task(launcher, *values)
    return None


def node_rank(task: Task | None, num_nodes: int) -> int | None:
    """Return the number of the node whose ranks a task is to start; raise UserError if tasks are not one per node."""
    if task is not None and (task.local_size != 1 or task.size != num_nodes):
        raise UserError(
            f"-nnodes {num_nodes}: {task.launcher} started {task.size} tasks, {task.local_size} on this node; start "
            "one on each node, or leave -nnodes out, and each task is a rank"
        )
    return None if task is None else task.rank


def become_rank(task: Task, master: str | None, num_gpus: int, environment: MutableMapping[str, str]) -> str:
    """Set Paddle's variables for a task that is a rank of its own; returns a line for the log.

    Args:
        master: IP:PORT of the first rank's node, from the command line.
        num_gpus: that this task sees, and may use.
        environment: of this process.

    Raises:
        UserError: if the address of the first rank cannot be known, or GPUs are too few.
    """
    if 1 < num_gpus < task.local_size:  # one may be each task's own, as with --gpus-per-task=1
        raise UserError(
            f"{task.launcher} started {task.local_size} tasks on this node, which has {num_gpus} GPUs; each needs one"
        )
    master = master or _find_master(task, environment)
    own = socket.gethostname()
    environment |= {
        "PADDLE_TRAINER_ID": str(task.rank),
        "PADDLE_TRAINERS_NUM": str(task.size),
        "PADDLE_LOCAL_SIZE": str(task.local_size),
        "PADDLE_MASTER": master,
        "PADDLE_CURRENT_ENDPOINT": f"{own}:{_FIRST_PORT + task.rank}",
    }
    if num_gpus:
        environment.setdefault("FLAGS_selected_gpus", str(task.local_rank if num_gpus > 1 else 0))
    return f"rank {task.rank} of {task.size} by {task.launcher}, on {own}, the first rank at {master}"


def _find_master(task: Task, environment: Mapping[str, str]) -> str:
    """Return an address for the first rank: its node, and a port that follows from the job's number."""
    if task.launcher == "srun":
        host = first_host(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "")
        number = f"{environment.get('SLURM_JOB_ID', '0')}{environment.get('SLURM_STEP_ID', '0')}"
    else:
        host = "127.0.0.1" if task.local_size == task.size else ""
        number = str(os.getppid())  # the launcher on this node
    if not host or not number.isdecimal():
        raise UserError(
            f"{task.launcher} started {task.size} ranks, and the first one's node is not known; -master IP:PORT says it"
        )
    return f"{host}:{_FIRST_PORT + int(number) % _NUM_PORTS}"


def first_host(nodes: str) -> str:
    """Return the first of a list of hosts as Slurm writes it: rack1-gpu[01-04,07].example.org,cpu1."""
    first = re.match(r"(?:\[[^\]]*\]|[^\[,])*", nodes)[0]
    return re.sub(r"\[([0-9]+)[^\]]*\]", r"\1", first)


def check_rank(nproc: int | None, environment: Mapping[str, str]) -> None:
    """Raise UserError if the variables of a rank are incomplete, or -nproc asks for other ranks than there are."""
    rank, size = runtime.rank(), runtime.world_size()
    if rank >= size:
        raise UserError(f"PADDLE_TRAINER_ID={rank}: must be below PADDLE_TRAINERS_NUM, which is {size}")
    if size > 1 and not any(
        environment.get(name) for name in ("PADDLE_MASTER", "PADDLE_TRAINER_ENDPOINTS", "MASTER_ADDR")
    ):
        raise UserError(f"PADDLE_TRAINERS_NUM={size}: the first rank's address is not set; set PADDLE_MASTER=IP:PORT")
    local = runtime.local_ranks()
    if nproc not in (None, local):
        raise UserError(
            f"-nproc {nproc}: this process is rank {rank} of {size} already, with {local} on this machine "
            "(PADDLE_TRAINER_ID, PADDLE_LOCAL_SIZE); leave -nproc out, or start it without these variables"
        )
