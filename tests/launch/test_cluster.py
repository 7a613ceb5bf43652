"""Ranks by the variables of srun, mpirun and Kubernetes, and the examples for clusters."""

import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml

import runtime
from errors import UserError
from launch import cluster, command_line
from launch.cluster import Task
from runtime import ROOT
from tests.helpers.recipes import recipe

pytestmark = pytest.mark.quick

SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
PMI = {"PMI_RANK": "0", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}


@pytest.mark.parametrize(
    ("variables", "task"),
    [
        (SRUN, Task("srun", 3, 4, 1, 2)),
        (OPEN_MPI, Task("mpirun (Open MPI)", 1, 2, 1, 2)),
        (PMI, Task("mpirun (PMI)", 0, 2, 0, 1)),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, Task("mpirun (PMI)", 1, 2, 0, 2)),
        ({}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # the script of sbatch itself
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, None),
    ],
)
def test_a_task_finds_its_place(variables, task):
    assert cluster.find_task(variables) == task


@pytest.mark.parametrize("bad", ["", "x", "-1", "9" * 30])
def test_a_task_without_a_number_is_refused(bad):
    with pytest.raises(UserError, match=r"srun started 4 tasks .*, and SLURM_PROCID is"):
        cluster.find_task(SRUN | {"SLURM_PROCID": bad})


def test_variables_become_paddles():
    environment = dict(SRUN)
    line = cluster.become_rank(cluster.find_task(environment), None, 2, environment)
    master = "gpu07:27110"  # 20000 + 47110 % 20000
    assert line == f"rank 3 of 4 by srun, on {socket.gethostname()}, the first rank at {master}"
    new = {key: value for key, value in environment.items() if key not in SRUN}
    assert new == {
        "PADDLE_TRAINER_ID": "3",
        "PADDLE_TRAINERS_NUM": "4",
        "PADDLE_LOCAL_SIZE": "2",
        "PADDLE_MASTER": master,
        "PADDLE_CURRENT_ENDPOINT": f"{socket.gethostname()}:20003",
        "FLAGS_selected_gpus": "1",
    }


def test_the_first_rank_of_several_nodes_has_to_be_named():
    with pytest.raises(UserError, match="the first one's node is not known; -master IP:PORT says it"):
        cluster.become_rank(cluster.find_task(PMI), None, 0, dict(PMI))
    environment = dict(PMI)
    cluster.become_rank(cluster.find_task(PMI), "10.0.0.1:5000", 0, environment)
    assert environment["PADDLE_MASTER"] == "10.0.0.1:5000"


def test_each_task_takes_its_own_gpu():
    for num_gpus, chosen in ((1, "0"), (2, "1"), (8, "1"), (0, None)):
        environment = dict(SRUN)
        cluster.become_rank(cluster.find_task(environment), None, num_gpus, environment)
        assert environment.get("FLAGS_selected_gpus") == chosen
    eight = SRUN | {"SLURM_STEP_TASKS_PER_NODE": "8"}
    with pytest.raises(UserError, match="started 8 tasks on this node, which has 4 GPUs"):
        cluster.become_rank(cluster.find_task(eight), None, 4, dict(eight))


@pytest.mark.parametrize("size", ["x", "2x", "9" * 8])
def test_an_odd_number_of_tasks_is_refused(size):
    with pytest.raises(UserError, match="SLURM_STEP_NUM_TASKS=.*: is not the number of srun's tasks; unset it"):
        cluster.find_task(SRUN | {"SLURM_STEP_NUM_TASKS": size})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[01-04,07],cpu1", "gpu01"),
        ("rack[0-1]n[08-9]", "rack0n08"),
        ("node[1-2].example.org,a", "node1.example.org"),
        ("a,b", "a"),
        ("n[9,11]", "n9"),
        ("vm", "vm"),
        ("", ""),
    ],
)
def test_the_first_of_slurms_hosts(nodes, first):
    assert cluster.first_host(nodes) == first


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [
        ({"PADDLE_LOCAL_SIZE": "8", "SLURM_STEP_TASKS_PER_NODE": "1"}, 8),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),3"}, 4),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, 2),
        ({"PADDLE_TRAINER_ENDPOINTS": "a:1,a:2,b:1", "PADDLE_CURRENT_ENDPOINT": "a:2"}, 2),
        ({}, 1),
    ],
)
def test_cores_are_shared_among_the_ranks_of_a_machine(monkeypatch, variables, ranks):
    for name in (*runtime._LOCAL_SIZES, "PADDLE_TRAINER_ENDPOINTS", "PADDLE_CURRENT_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert runtime.local_ranks() == ranks


def train(tmp_path, tiny_yaml, name, variables, *flags):
    """Start a process for each set of variables; returns exit codes and outputs."""
    cfg = tiny_yaml("pretrain", "TRAIN.NUM_EPOCHS", 1, "TRAIN.WARMUP_EPOCHS", 0, "DATA.BATCH_SIZE", 64, "RUN", name)
    command = [sys.executable, str(ROOT / "main_multi_gpu_pretrain.py"), "-cfg", cfg, "-device", "cpu"]
    command += ["-output", str(tmp_path), *flags]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": tmp_path}
    started = [subprocess.Popen(command, env=runtime.original_environment() | own, **options) for own in variables]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    return [process.returncode for process in started], outputs


def test_one_device_is_not_for_several_tasks(monkeypatch):
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PADDLE_TRAINER_ID", raising=False)
    with pytest.raises(UserError, match="-device gpu:3: is one device; for several processes"):
        command_line.start("pretrain", "", ["-cfg", str(recipe("digits_pretrain")), "-device", "gpu:3"], print)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_rank_that_waits_for_the_others_ends_by_a_signal(tmp_path, number):
    command = [sys.executable, str(ROOT / "main_multi_gpu_pretrain.py"), "-cfg", str(recipe("digits_pretrain"))]
    command += ["-device", "cpu", "-output", str(tmp_path)]
    alone = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_JOB_ID": "5"}
    environment = runtime.original_environment() | alone
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline().startswith("rank 0 of 2 by srun, on ")
            time.sleep(3.0)  # until it waits
            assert process.poll() is None
            process.send_signal(number)
            assert process.wait(timeout=10) in (-number, 128 + number)
        finally:
            process.kill()


def test_tasks_of_srun_and_ranks_by_hand_are_one_job(tmp_path, tiny_yaml):
    codes, outputs = train(tmp_path, tiny_yaml, "launched", [{}], "-nproc", "2")
    assert codes == [0], outputs
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    srun = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "127.0.0.1"}
    srun |= {"SLURM_JOB_ID": str(port), "SLURM_STEP_ID": ""}
    by_hand = {"PADDLE_TRAINERS_NUM": "2", "PADDLE_MASTER": f"127.0.0.1:{port}", "PADDLE_LOCAL_SIZE": "2"}
    kinds = {
        "srun": [srun | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)],
        "by-hand": [by_hand | {"PADDLE_TRAINER_ID": str(rank)} for rank in range(2)],
    }
    for name, variables in kinds.items():
        codes, outputs = train(tmp_path, tiny_yaml, name, variables)
        assert codes == [0, 0], outputs
        files = [tmp_path / run / "latest" / "model.pdparams" for run in ("launched", name)]
        assert files[0].read_bytes() == files[1].read_bytes()
    runs = {path.name for path in tmp_path.iterdir()} - {"launch-logs"}
    assert runs == {"by-hand", "launched", "srun"}  # one each


@pytest.mark.parametrize(
    ("variables", "flags", "said"),
    [
        ({"PADDLE_TRAINER_ID": "1"}, [], "PADDLE_TRAINER_ID=1: must be below PADDLE_TRAINERS_NUM, which is 1"),
        ({"PADDLE_TRAINER_ID": "0", "PADDLE_TRAINERS_NUM": "2"}, [], "set PADDLE_MASTER=IP:PORT"),
        (SRUN, ["-nproc", "4"], "-nproc 4: this process is rank 3 of 4 already, with 2 on this machine"),
        (SRUN, ["-nnodes", "2", "-master", "127.0.0.1:3"], "srun started 4 tasks, 2 on this node; start one on each"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, tiny_yaml, variables, flags, said):
    codes, (output,) = train(tmp_path, tiny_yaml, "run", [variables], *flags)
    assert codes == [2]
    assert said in output.splitlines()[-1]
    assert not list(tmp_path.glob("run"))


# ---- examples/cluster


def read_arguments(words):
    """Parse the arguments of a main script as it would; returns its configuration."""
    place = next(number for number, word in enumerate(words) if word.startswith("main_multi_gpu_"))
    script = re.fullmatch(r"main_multi_gpu_(\w+)\.py", words[place])[1]
    arguments = [str(ROOT / word) if word.startswith("configs/") else word for word in words[place + 1 :]]
    return command_line.read_config(script, arguments)


def test_the_slurm_example_is_a_script_whose_command_is_understood():
    file = ROOT / "examples" / "cluster" / "slurm.sh"
    subprocess.run(["bash", "-n", str(file)], check=True)
    text = file.read_text().replace("\\\n", " ")
    assert {"--requeue", "--signal=USR1@120"} <= set(re.findall(r"^#SBATCH (\S+)", text, re.M))
    command = next(line for line in text.splitlines() if line.startswith("srun"))
    assert read_arguments(shlex.split(command)).MODEL.RESUME == "auto"


def test_the_kubernetes_example_is_a_manifest_whose_command_is_understood():
    values = yaml.safe_load((ROOT / "examples" / "cluster" / "paddlejob.yaml").read_text())
    worker = values["spec"]["paddleReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    assert container["command"][:3] == ["python", "-m", "paddle.distributed.launch"]
    assert read_arguments(container["command"]).RUN == "mae"
    names = {volume["name"] for volume in worker["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == names
