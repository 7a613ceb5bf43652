"""Each check of the doctor passes here, and fails when its fault is planted; GPUs are played."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest

import config
import runtime
from layers import cpu_kernels
from measures import training_step
from measures.doctor import children, kernels_run, machine, numerics, ranks, reference, runs, sections, speed
from measures.doctor.check import FAIL, NOT_APPLICABLE, PASS, Case
from measures.synthetic import synthetic_arrays
from measures.training_step import OneBatchTraining, split_views
from tools import doctor

pytestmark = pytest.mark.quick


def status(check) -> str:
    """Return a check's status; one that failed says what to do."""
    assert bool(check.advice) == (check.status == FAIL)
    assert check.found
    return check.status


@pytest.fixture
def gpu(monkeypatch):
    """Play an A100 with 40 GiB, of which 1 GiB is used."""
    answers = {"memory.used": "1000, 500", "memory.total": "40000, 40000", "driver_version": "550.1, 550.1"}
    monkeypatch.setattr(machine.device, "is_on_gpu", lambda: True)
    monkeypatch.setattr(machine.device, "is_on_cpu", lambda: False)
    monkeypatch.setattr(machine, "_query_gpus", answers.get)
    monkeypatch.setattr(paddle.device, "get_cudnn_version", lambda: 8902)
    monkeypatch.setattr(paddle.version, "cuda", lambda: "11.8")
    monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB", raising=False)
    return answers


# ---- 1: the machine


def test_a_machine_without_faults_passes(tmp_path):
    assert {status(check) for check in machine.examine(Case("cpu", 1, tmp_path))} <= {PASS, NOT_APPLICABLE}


def test_faults_of_the_machine_are_found(monkeypatch, tmp_path):
    assert status(machine.check_paddle("2.5.0")) == FAIL
    assert status(machine.check_host_memory(8, 15 << 30)) == FAIL
    assert status(machine.check_open_files(256)) == FAIL
    assert status(machine.check_cores(8, 4)) == FAIL
    monkeypatch.setattr(machine, "_nvidia_gpus", lambda: ["an NVIDIA GPU (/dev/nvidia0)"])
    assert status(machine.check_device(None)) == FAIL
    assert status(machine.check_device("cpu")) == PASS  # as asked for
    monkeypatch.setattr(machine.runtime, "is_amd", lambda: True)
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "5")
    assert status(machine.check_maths_library()) == PASS
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE")
    assert status(machine.check_maths_library()) == FAIL


def test_faults_of_a_machine_with_gpus_are_found(gpu, monkeypatch, tmp_path):
    assert status(machine.check_libraries()) == status(machine.check_gpu_memory()) == PASS
    monkeypatch.setattr(paddle.device, "get_cudnn_version", lambda: None)
    assert status(machine.check_libraries()) == FAIL
    gpu["memory.used"] = "1000, 39000"
    assert status(machine.check_gpu_memory()) == FAIL
    gpu["memory.used"] = "[N/A]"
    assert status(machine.check_gpu_memory()) == NOT_APPLICABLE
    usage = lambda free: type("Usage", (), {"free": free})
    for free, expected in ((64 << 20, FAIL), (1 << 30, PASS)):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda path, free=free: usage(free))
        assert status(machine.check_shared_memory(2, tmp_path)) == expected


# ---- 2: numbers


def test_every_method_is_examined(tmp_path):
    types = {reference.configuration(name, tmp_path).MODEL.TYPE for name in reference.RECIPES}
    assert types == set(config.METHODS)


@pytest.mark.parametrize("method", ["pretraining", "LiT"])
def test_a_wrong_kernel_is_found_by_a_method(monkeypatch, tmp_path, method):
    recipe = reference.configuration(method, tmp_path)
    expected, weights = reference.step(recipe, as_reference=True)
    assert {value.dtype for value in expected.gradients.values()} == {np.dtype("float64")}
    assert paddle.get_default_dtype() == "float32", "the reference leaves nothing behind"
    assert status(numerics.check_method(method, recipe, False, expected, weights)) == PASS
    right = cpu_kernels.linear
    monkeypatch.setattr(cpu_kernels, "linear", lambda *arguments: right(*arguments) * 1.0002)
    assert status(numerics.check_method(method, recipe, False, expected, weights)) == FAIL
    monkeypatch.setattr(cpu_kernels, "linear", lambda *arguments: right(*arguments) * float("nan"))
    assert status(numerics.check_method(method, recipe, False, expected, weights)) == FAIL
    assert status(numerics.check_method(method, recipe, "bf16", expected, weights)) == NOT_APPLICABLE


def test_wrong_attention_is_found(monkeypatch):
    monkeypatch.setattr(numerics, "_TOKENS", (50,))
    assert status(numerics.check_attention("float32")) == PASS
    right = cpu_kernels.attention
    monkeypatch.setattr(cpu_kernels, "attention", lambda qkv, bias: right(qkv.roll(1, axis=2), bias))
    assert status(numerics.check_attention("float32")) == FAIL
    monkeypatch.setattr(cpu_kernels, "attention", lambda qkv, bias: right(qkv.detach(), bias) + 0 * qkv[:, :, 0])
    assert status(numerics.check_attention("float32")) == FAIL, "a wrong gradient"
    assert status(numerics.check_attention("bfloat16")) == NOT_APPLICABLE


class Scaler:
    """Paddle's loss scaler, which is off on CPU."""

    def __init__(self, leaves_out: bool, factor: float):
        self.leaves_out, self.factor, self.value = leaves_out, factor, numerics._HUGE_SCALE

    def is_enable(self):
        return True

    def scale(self, loss):
        return loss * self.value * self.value  # float32 is too wide for what is infinite in float16

    def unscale_(self, optimizer):
        self.is_bad = not all(p.grad.isfinite().all() for p in optimizer._parameter_list if p.grad is not None)

    def step(self, optimizer):
        if not (self.is_bad and self.leaves_out):
            optimizer.step()

    def update(self):
        self.value *= self.factor if self.is_bad else 1.0

    def state_dict(self):
        return {"scale": np.array([self.value], np.float64)}


@pytest.mark.parametrize(
    ("leaves_out", "factor", "expected"), [(True, 0.5, PASS), (False, 0.5, FAIL), (True, 1.0, FAIL)]
)
def test_a_loss_scaler_that_makes_a_bad_update_is_found(tmp_path, leaves_out, factor, expected):
    recipe = reference.configuration("finetuning", tmp_path)
    step = OneBatchTraining(recipe, split_views(recipe, *synthetic_arrays(recipe, 8)))
    step.training.scaler, step.training.guard._has_scaler = Scaler(leaves_out, factor), True
    assert status(numerics.assess_skipped_update(step)) == expected


# ---- 3: kernels


def test_other_kernels_than_ours_are_found(monkeypatch, tmp_path):
    recipe = reference.configuration("pretraining", tmp_path)
    assert {status(check) for check in kernels_run.check_cpu_kernels(recipe)} == {PASS}
    monkeypatch.setattr(cpu_kernels, "are_usable", lambda tensor: False)
    assert {status(check) for check in kernels_run.check_cpu_kernels(recipe)} == {FAIL}


PRODUCTS = ["ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_tn", "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT"]
FLASH = "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, cutlass::bfloat16_t>, false>(Params)"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([*PRODUCTS, *[FLASH] * 9], [PASS, PASS, PASS]),
        (PRODUCTS, [PASS, FAIL, PASS]),
        (["ampere_sgemm_128x64_nn", *[FLASH] * 9], [PASS, PASS, FAIL]),
        ([], [FAIL, FAIL, FAIL]),
    ],
)
def test_gpu_kernels_are_assessd_by_their_names(names, expected):
    assert [status(check) for check in kernels_run.assess_gpu_kernels(names, "bfloat16", (8, 0))] == expected


# ---- 4: speed


def test_steps_on_cpu_run_with_a_build_for_gpus(monkeypatch):
    monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.device, "synchronize", lambda: pytest.fail("it knows no CPU"))
    training_step.synchronise()


def test_slow_steps_and_wrong_estimates_are_found(gpu):
    assessd = lambda rate, peak: [
        status(check) for check in speed.assess_speed("x", "precision: bf16", rate, 59e9, peak, 1e9)
    ]
    assert assessd(1600, 0.9e9) == [PASS, PASS]
    assert assessd(300, 0.9e9) == [FAIL, PASS]  # 5.7 % of an A100's peak
    assert assessd(1600, 1.3e9) == [PASS, FAIL]


def test_both_levels_of_mixed_precision_are_timed(monkeypatch, tmp_path):
    levels = []
    monkeypatch.setattr(speed.device, "autocast_dtype", lambda config: "bfloat16")
    monkeypatch.setattr(speed, "measure", lambda config, batch: (levels.append(config.TRAIN.AMP_LEVEL), (1.0, 1.0))[1])
    found = speed.examine(Case("cpu", 1, tmp_path), "vit_micro_patch4_32_pretrain", 8)
    assert levels == ["O2", "O1"]
    assert [check.name.split(", ")[-1] for check in found] == ["O2: speed", "O2: memory", "O1: speed", "O1: memory"]
    estimates = [check.values["estimate_bytes"] for check in found if check.name.endswith("memory")]
    assert estimates[0] == estimates[1], "on CPU nothing is in low precision"


def test_waiting_is_found():
    assert status(runs.assess_waiting([0.3, 0.01, 0.02])) == PASS
    assert status(runs.assess_waiting([0.3, 0.2, 0.02])) == FAIL


# ---- 5: ranks and data


def test_wrong_and_slow_sums_are_found():
    assessd = lambda kind, secs, is_right: [
        status(check) for check in ranks.assess_exchange({"kind": kind, "ranks": 2, "secs": secs, "is_right": is_right})
    ]
    assert assessd("gpu", 0.01, True) == [PASS, PASS]
    assert assessd("gpu", 0.5, True) == [PASS, FAIL]
    assert assessd("cpu", 0.5, False) == [FAIL, PASS]
    assert [check.status for check in ranks.examine(Case("cpu", 1, None))] == [NOT_APPLICABLE]
    values = paddle.full([1 << 20], 15.0)
    assert ranks.is_sum(values, 5)
    values[77] = 14.0
    assert not ranks.is_sum(values, 5)


def test_a_slow_loader_is_found():
    assert status(ranks.assess_loader(1000.0, 900.0, 4)) == PASS
    assert status(ranks.assess_loader(800.0, 900.0, 4)) == FAIL
    assert status(ranks.assess_loader(800.0, 0.0, 4)) == NOT_APPLICABLE


# ---- 6: runs that are killed


def test_a_run_that_resumes_otherwise_is_found():
    assert status(runs.assess_crash(2, 3, b"weights", b"weights")) == PASS
    assert status(runs.assess_crash(2, 3, b"weights", b"Weights")) == FAIL


# ---- the whole


def test_a_section_that_crashes_or_hangs_is_a_check_that_failed(tmp_path, monkeypatch):
    (found,) = sections.run_section(Case("nonsense", 1, tmp_path), ["machine"])
    assert status(found) == FAIL
    assert "-device nonsense" in found.found
    assert not doctor.report(tmp_path, 1, {"Machine": [found]}, 1.0)
    assert doctor.show([tmp_path / "doctor.json"])
    monkeypatch.setattr(sections, "_LONGEST_SECS_ELSE", 0.5)
    (found,) = sections.run_section(Case("cpu", 1, tmp_path), ["numerics"])
    assert "not done after 0.5 s" in found.found


def test_processes_of_the_doctor_end_with_it(tmp_path):
    """Also those that its processes have started: here, one that sleeps, below one that is killed."""
    inner = "import sys, time; open(sys.argv[1], 'w').write(str(__import__('os').getpid())); time.sleep(60)"
    outer = f"import sys; sys.path.insert(0, {str(runtime.ROOT)!r}); from measures.doctor import children; "
    outer += "from pathlib import Path; children.run(sys.argv[3:], Path(sys.argv[1]), 60)"
    words = [str(tmp_path / "log"), "-", sys.executable, "-c", inner, str(tmp_path / "pid")]
    with pytest.raises(subprocess.TimeoutExpired):
        children.run([sys.executable, "-c", outer, *words], tmp_path / "log", 3.0)
    pid, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and "\tZ" not in status_of(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists() or "\tZ" in status_of(pid)


def status_of(pid: int) -> str:
    """Return what the system says of a process; nothing if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/status").read_text()
    return ""


def test_bad_flags_are_refused(tmp_path):
    with pytest.raises(config.UserError, match="-device gpu:3: is one device"):
        doctor.main(["-device", "gpu:3", "-nproc", "2", "-out", str(tmp_path / "out")])
    with pytest.raises(config.UserError, match="-device nonsense: this build of Paddle has no such device"):
        doctor.main(["-device", "nonsense", "-out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    with pytest.raises(config.UserError, match="-nproc 0: must be from 1 to 64"):
        doctor.main(["-nproc", "0", "-out", str(tmp_path / "out")])
    (tmp_path / "doctor.json").write_text("mine")
    with pytest.raises(config.UserError, match="holds doctor.json, which is not from here"):
        doctor.main(["-out", str(tmp_path)])


@pytest.mark.parametrize("text", ['{"nproc": 1}', '{"nproc": 1, "sections": {"a": [{"x": 1}]}}', "[]", ""])
def test_files_of_others_are_not_shown(tmp_path, text):
    (tmp_path / "doctor.json").write_text(text)
    with pytest.raises(config.UserError, match="doctor.json"):
        doctor.main(["-show", str(tmp_path / "doctor.json")])


def test_what_failed_is_at_the_top_of_the_page(tmp_path):
    checks = [machine.check_open_files(4096), machine.check_open_files(12)]
    assert not doctor.report(tmp_path, 1, {"Machine": checks}, 1.0)
    page = (tmp_path / "doctor.html").read_text()
    assert page.index("<h2>Failed</h2>") < page.index("ulimit -n 65536") < page.index("<h2>Machine</h2>")
    assert json.loads((tmp_path / "doctor.json").read_text())["failed"] == 1
