"""Sizes of files and functions, entries of the root, and names of methods: what keeps the house easy to read."""

import ast
import subprocess
import warnings

import pytest

import config
from methods import dispatch
from runtime import ROOT
from tests.test_import_graph import source_files

MOST_LINES, MOST_FUNCTION_LINES = 400, 50
LONG_FUNCTIONS = {
    # One table of flags, in the order in which -h shows them.
    "launch/command_line.py:make_parser",
    # A public function of nine arguments, with 17 lines of docstring.
    "port_weights/porting.py:port",
}
pytestmark = pytest.mark.quick


def name_of(file) -> str:
    return file.relative_to(ROOT).as_posix()


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


def test_the_root_stays_readable():
    entries = {path.partition("/")[0] for path in tracked()}
    assert len(entries) <= 57
    assert len((ROOT / "README.md").read_text().splitlines()) <= 220
    assert len([name for name in entries if name.endswith(".py")]) <= 17  # one is hubconf.py, which Paddle looks for


@pytest.mark.parametrize("file", source_files(), ids=name_of)
def test_files_and_functions_stay_small(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= (40 if file.stem.startswith("main_") else MOST_LINES)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and f"{name_of(file)}:{node.name}" not in LONG_FUNCTIONS:
            length = node.end_lineno - node.lineno + 1
            assert length <= MOST_FUNCTION_LINES, f"{node.name} has {length} lines"


def names_of_methods(text: str) -> set[str]:
    """Return the types of methods that code names; docstrings and comments may."""
    return {
        node.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and node.value in dispatch.METHODS
    }


def test_no_module_outside_methods_names_one():
    found = {
        name_of(file): names_of_methods(file.read_text(encoding="utf-8"))
        for file in source_files()
        if file.relative_to(ROOT).parts[0] != "methods"
    }
    assert {name: types for name, types in found.items() if types} == {}
    assert names_of_methods("if config.MODEL.TYPE == 'FINETUNE': pass") == {"FINETUNE"}


def test_table_keys_and_modules_of_methods_belong_together():
    assert set(dispatch.METHODS) == set(config.METHODS)
    modules = {path.stem.upper() for path in (ROOT / "methods").glob("*.py")}
    assert set(dispatch.METHODS) <= modules


# ---- warnings


def module_of(file) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("file", source_files(), ids=name_of)
def test_a_warning_of_any_module_fails_the_tests(file, pytestconfig):
    """The filters are applied as pytest does it, to a warning that comes from this module."""
    from _pytest.config import apply_warning_filters

    with warnings.catch_warnings(record=True):
        apply_warning_filters(pytestconfig.getini("filterwarnings"), [])
        with pytest.raises(UserWarning, match="planted"):
            warnings.warn_explicit("planted", UserWarning, str(file), 1, module=module_of(file))
        warnings.warn_explicit("of another package", UserWarning, "x.py", 1, module="somebody.else")
