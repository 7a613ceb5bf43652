"""Devices by name, and the precision that each computes in; GPUs are played by their answers."""

import argparse
import subprocess
import sys

import paddle
import pytest

import runtime
from config import amp_dtype, get_config
from errors import UserError
from launch import launcher
from training import device

pytestmark = pytest.mark.quick


@pytest.fixture
def gpu(monkeypatch):
    """Return a function that lets a GPU of a compute capability be the device."""

    def be(*capability):
        monkeypatch.setattr(paddle.device, "get_device", lambda: "gpu:0")
        monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: capability)

    return be


@pytest.mark.parametrize(
    ("capability", "asked", "dtype", "said"),
    [
        ((8, 0), "auto", "bfloat16", "precision: bf16, by compute capability 8.0"),
        ((9, 0), "auto", "bfloat16", "precision: bf16, by"),
        ((7, 5), "auto", "float16", "precision: fp16, by compute capability 7.5"),
        ((6, 1), "auto", None, "precision: float32, by"),
        ((7, 0), "fp16", "float16", "precision: fp16"),
        ((7, 0), True, "float16", "precision: fp16"),
        ((8, 6), False, None, "precision: float32"),
    ],
)
def test_precision_follows_the_gpu_unless_it_is_chosen(gpu, capability, asked, dtype, said):
    gpu(*capability)
    config, line = device.choose_precision(get_config(None, ["AMP", asked]))
    assert amp_dtype(config) == dtype
    assert line.startswith(said)


@pytest.mark.parametrize(
    ("capability", "asked", "works"), [((7, 5), "bf16", "fp16"), ((6, 1), "bf16", "none"), ((6, 1), "fp16", "none")]
)
def test_a_precision_that_the_gpu_lacks_is_refused(gpu, capability, asked, works):
    gpu(*capability)
    with pytest.raises(UserError, match=f"-amp {asked}: needs compute capability .*; -amp {works} works"):
        device.choose_precision(get_config(None, ["AMP", asked]))


def test_on_cpu_it_is_float32():
    config, line = device.choose_precision(get_config())
    assert (config.AMP, line) == (False, "precision: float32")


@pytest.mark.parametrize("name", ["npu", "xpu:1", "gpu", "gpu:3", "dcu", "nothing"])
def test_a_device_that_is_not_there_is_named_with_those_that_are(name):
    with pytest.raises(UserError, match=f"-device {name}: (Paddle sees no GPU|.* no such device; here are cpu)"):
        device.set_device(name)
    assert paddle.device.get_device() == "cpu"


def test_an_accelerator_that_is_not_used_is_warned_of(monkeypatch, capsys):
    monkeypatch.setattr(paddle.device, "get_all_custom_device_type", lambda: ["npu"])
    device.set_device()
    assert capsys.readouterr().out == "warning: this Paddle has npu, and the CPU computes; -device npu uses it\n"
    device.set_device("cpu")
    assert not capsys.readouterr().out


def test_the_cpu_has_no_number():
    with pytest.raises(UserError, match="-device cpu:1: the CPU has no number"):
        device.set_device("cpu:1")


def test_another_accelerator_is_taken_by_its_name_without_cudas_functions(monkeypatch):
    chosen = []
    monkeypatch.setattr(paddle, "set_device", chosen.append)
    monkeypatch.delattr(paddle.device.cuda, "get_device_properties")
    device.set_device("npu")
    device.set_device("xpu:2")
    assert chosen == ["npu:0", "xpu:2"]


def launched(monkeypatch, name=None, nproc=None, visible=None):
    """Return the command that a machine with four GPUs would run."""
    commands = []
    monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(launcher, "_run", lambda command, job: commands.append(command) or 0)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    args = argparse.Namespace(device=name, nproc=nproc, nnodes=1, node_rank=None, master=None)
    with pytest.raises(SystemExit):
        launcher.launch_if_needed("pretrain", args, None, get_config())
    return commands[0]


@pytest.mark.parametrize(("visible", "devices"), [(None, "0,1,2,3"), ("5,6,7,4", "5,6,7,4")])
def test_ranks_get_the_gpus_that_are_visible(monkeypatch, visible, devices):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    command = launched(monkeypatch, visible=visible)
    assert command[command.index("--devices") + 1] == devices


def prepared(variable: str, **environment: str) -> str:
    """Return the value of an environment variable in a process that is prepared in an environment."""
    code = f"import runtime; runtime.prepare(); import os; print(os.environ[{variable!r}])"
    whole = runtime.original_environment() | environment | {"PYTHONPATH": str(runtime.ROOT)}
    return subprocess.check_output([sys.executable, "-c", code], env=whole, text=True).strip()


def test_spaces_in_the_list_of_gpus_do_no_harm():
    assert prepared("CUDA_VISIBLE_DEVICES", CUDA_VISIBLE_DEVICES="0, 1 ,2") == "0,1,2"


def test_float32_is_not_tf32_unless_the_user_says_so():
    assert prepared("NVIDIA_TF32_OVERRIDE") == "0"
    assert prepared("NVIDIA_TF32_OVERRIDE", NVIDIA_TF32_OVERRIDE="1") == "1"


def test_one_gpu_by_its_number_is_one_process(monkeypatch):
    args = argparse.Namespace(device="gpu:3", nproc=None, nnodes=1, node_rank=None, master=None)
    monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: 4)
    assert launcher.launch_if_needed("pretrain", args, None, get_config()) is None
    args.nproc = 2
    with pytest.raises(UserError, match="is one device; for several processes, leave its number out"):
        launcher.launch_if_needed("pretrain", args, None, get_config())
