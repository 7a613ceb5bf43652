"""Malformed files: a clear error in little time and memory, nothing run, nothing changed."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.malformed_weights import ARGUMENTS, CANARY, CASES, torch_bytes
from tests.helpers.weights_by_hand import official_arrays

pytestmark = pytest.mark.quick
from runtime import ROOT

LIMIT_SECS, LIMIT_BYTES = 5, 1 << 30


def run_port(folder: Path, source: str) -> subprocess.CompletedProcess:
    """Port in a process of its own that may use a gibibyte of addresses."""
    return subprocess.run(
        [sys.executable, "-m", "port_weights", source, "out.pdparams", *ARGUMENTS],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES)),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECS,
        check=False,
    )


@pytest.mark.parametrize("name", CASES)
def test_malformed_files(tmp_path, name):
    file_name, content, message = CASES[name]
    (tmp_path / file_name).write_bytes(content)
    before = {file_name: content, "out.pdparams": b"weights", "out.yaml": b"# Builds the model of out.pdparams\n"}
    for other in ("out.pdparams", "out.yaml"):
        (tmp_path / other).write_bytes(before[other])
    result = run_port(tmp_path, file_name)
    assert result.returncode == 1, result.stderr
    assert message in result.stderr
    assert result.stderr.startswith(f"error: {file_name}: ")
    assert result.stderr.count("\n") == 1
    assert len(result.stderr) < 1000
    assert not result.stdout
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before, f"{CANARY} or other traces"


def test_the_undamaged_file_is_ported(tmp_path):
    (tmp_path / "a.pth").write_bytes(torch_bytes(official_arrays()))
    result = run_port(tmp_path, "a.pth")
    assert result.returncode == 0, result.stderr
    assert "encoder only: neither decoder nor classifier" in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"a.pth", "out.pdparams", "out.yaml"}
