"""The import graph is the architecture: every module imports from rows above its own."""

import ast
import sys
from pathlib import Path

import pytest

from runtime import ROOT

ROWS = [
    {"cpu_kernels", "errors", "ranks", "regular_files", "runtime"},
    {"arguments", "encoded_images", "json_files", "output_files", "program"},
    {
        "fast_jpeg",
        "heartbeat",
        "manifest",
        "packed_images",
        "published_datasets",
        "run_lock",
        "safe_pickle",
        "samplers",
        "strict_config",
        "workers",
    },
    {
        "augment",
        "basic_layers",
        "config",
        "datasets",
        "distributed",
        "download",
        "metrics",
        "mixup",
        "optim",
        "pos_embed",
    },
    {"sharding", "static_graph", "stored_tensor"},
    {"architecture", "loading", "task", "torch_file"},
    {"flops", "weight_files"},
    {"checkpoint", "transformer"},
    {"training_state"},
    {"mae", "guard"},
    {"plan"},
    {"engine", "launch"},
    {"cli"},
    {"recipes", "zoo"},
    {"main_multi_gpu_pretrain", "main_multi_gpu_finetune", "main_multi_gpu_linearprobe"},
]
ROW_OF = {module: row for row, modules in enumerate(ROWS) for module in modules}
MODULES = sorted(ROOT.glob("*.py"))
pytestmark = pytest.mark.quick


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
    return found


def test_every_module_has_a_row_and_no_other_name():
    assert {path.stem for path in MODULES} == set(ROW_OF)
    assert not set(ROW_OF) & set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_point_up(path):
    ours = imports(path) & set(ROW_OF)
    assert all(ROW_OF[module] < ROW_OF[path.stem] for module in ours), ours
    assert not imports(path) & {"paddlenlp", "torch", "tools", "tests", "benchmarks"}


@pytest.mark.parametrize("module", ["errors", "runtime", "config", "safe_pickle", "samplers", "workers"])
def test_first_rows_do_without_paddle(module):
    assert "paddle" not in imports(ROOT / f"{module}.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= (60 if path.stem.startswith("main_") else 400)


def test_set_state_dict_is_called_by_the_loader_only():
    for path in MODULES:
        called = "model.set_state_dict(" in path.read_text()
        assert not called, f"{path.name}: Layer.set_state_dict only warns; use checkpoint.load_weights"
