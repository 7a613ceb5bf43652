"""The import graph is the architecture: rooms import from rows above their own, and have no circle inside.

A room is a file at the root, or a folder.
"""

import ast
import graphlib
import sys
from pathlib import Path

import pytest

from runtime import ROOT

ROWS = [
    {"errors"},
    {"runtime"},
    {"arguments", "layers", "optim", "program"},
    {"storage"},
    {"strict_config"},
    {"config"},
    {"checkpoint", "pipeline", "port_weights", "text_tower", "transformer"},
    {"clip", "datasets", "mae"},
    {"launch", "zoo"},
    {"training"},
    {"methods"},
    {"measures"},
    {"pages"},
    {"hubconf", "main_multi_gpu_finetune", "main_multi_gpu_linearprobe", "main_multi_gpu_pretrain", "tools"},
    {"benchmarks"},
]
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
NOT_IN_THE_PROJECT = {"paddlenlp", "torch", "tests"}
pytestmark = pytest.mark.quick


def source_files(root: Path = ROOT) -> list[Path]:
    """Return all Python files of the project but the tests."""
    folders = [path for path in root.iterdir() if path.is_dir() and path.name in ROW_OF]
    return sorted([*root.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))])


def room_of(file: Path, root: Path = ROOT) -> str:
    return file.relative_to(root).parts[0].removesuffix(".py")


def imports(file: Path) -> set[str]:
    """Return the modules that a file imports, wherever in it; `from a import b` counts as a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def upward_imports(root: Path = ROOT) -> list[str]:
    """List the imports of rooms in the same row or below."""
    found = []
    for file in source_files(root):
        own = room_of(file, root)
        rooms = {name.partition(".")[0] for name in imports(file)} & set(ROW_OF) - {own}
        found += [f"{file.relative_to(root)} imports {room}" for room in rooms if ROW_OF[room] >= ROW_OF[own]]
    return found


def circle_in(room: str, root: Path = ROOT) -> list[str] | None:
    """Return modules of a folder that import each other in a circle, or None."""
    files = {f"{room}.{file.stem}" if file.stem != "__init__" else room: file for file in (root / room).glob("*.py")}
    graph = {name: imports(file) & set(files) - {name, room} for name, file in files.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_every_module_has_a_room_and_no_other_name():
    assert {room_of(file) for file in source_files()} == set(ROW_OF)
    assert not set(ROW_OF) & set(sys.stdlib_module_names)


def test_imports_point_up():
    assert upward_imports() == []


@pytest.mark.parametrize("room", sorted(room for room in ROW_OF if (ROOT / room).is_dir()))
def test_rooms_have_no_circle_inside(room):
    assert circle_in(room) is None


def plant(root: Path, **modules: str) -> None:
    for name, text in modules.items():
        file = root / (name.replace("__", "/") + ".py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)


@pytest.mark.parametrize(
    ("module", "line", "said"),
    [
        ("storage__new", "from training import engine", "storage/new.py imports training"),
        ("optim", "def f():\n    import mae", "optim.py imports mae"),
        ("zoo__new", "import training.engine", "zoo/new.py imports training"),
        ("tools__new", "from benchmarks import measure", "tools/new.py imports benchmarks"),
        ("layers__new", "from optim import lr_at", "layers/new.py imports optim"),
    ],
)
def test_a_planted_import_is_found(tmp_path, module, line, said):
    plant(tmp_path, **{module: line})
    assert upward_imports(tmp_path) == [said]


def test_a_planted_circle_is_found(tmp_path):
    plant(
        tmp_path,
        storage__a="from storage import b",
        storage__b="from storage.c import x",
        storage__c="import storage.a",
    )
    assert set(circle_in("storage", tmp_path)) == {"storage.a", "storage.b", "storage.c"}


def test_some_packages_are_never_imported():
    for file in source_files():
        allowed = {"torch"} if file == ROOT / "benchmarks" / "sides.py" else set()
        found = {name.partition(".")[0] for name in imports(file)} & NOT_IN_THE_PROJECT
        assert found <= allowed, file


WITHOUT_PADDLE = ["errors", "program", "config", "strict_config", "storage", "port_weights"]
READ_IN_WORKERS = ("augment", "builtin_sets", "fast_jpeg", "file_images", "published_datasets")
READ_IN_WORKERS += ("samplers", "sources", "workers")


def test_files_weights_and_workers_do_without_paddle():
    files = [file for file in source_files() if room_of(file) in WITHOUT_PADDLE]
    files += [ROOT / "pipeline" / f"{name}.py" for name in READ_IN_WORKERS]
    assert len(files) > 30
    for file in files:
        assert "paddle" not in {name.partition(".")[0] for name in imports(file)}, file


def test_set_state_dict_is_called_by_the_loader_only():
    for file in source_files():
        called = "model.set_state_dict(" in file.read_text(encoding="utf-8")
        assert not called, f"{file}: Layer.set_state_dict only warns; use checkpoint.load_weights"
