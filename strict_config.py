"""YAML files and KEY VALUE pairs merged into a yacs node: unknown keys and other types are errors that name them.

yacs itself converts some types silently, refuses None in many places, and knows no files that include others.
"""

import ast
import contextlib
import difflib
import math
from collections.abc import Mapping
from pathlib import Path

import yaml
from yacs.config import CfgNode

from errors import UserError, one_line, printable
from regular_files import read_regular_file


def all_keys(config: CfgNode, prefix: str = "") -> list[str]:
    """List the full names of all values."""
    keys = []
    for key, value in config.items():
        keys += all_keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return keys


class Merger:
    """Merges values into copies of a tree of defaults.

    Args:
        defaults: every key that there is; a value must be of its default's type.
        alternatives: {full key: types} where it may be of others; None stands for itself.
    """

    def __init__(self, defaults: CfgNode, alternatives: Mapping[str, tuple]):
        self._defaults, self._alternatives = defaults, alternatives

    def merge_file(self, config: CfgNode, path: Path, seen: tuple[Path, ...] = ()) -> None:
        """Merge a YAML file, after the files that its BASE names; raise UserError if anything is wrong with them."""
        if path.suffix not in (".yaml", ".yml"):
            raise UserError(f"-cfg {path}: a configuration is a .yaml file")
        path = path.resolve()
        if path in seen:
            raise UserError(f"{path}: BASE files include each other in a circle")
        values = read_yaml(path)
        base = values.pop("BASE", None) or []
        base = [base] if isinstance(base, str) else base
        if not isinstance(base, list) or not all(isinstance(name, str) for name in base):
            raise UserError(f"{path}: BASE={base!r} is not a list of YAML files")
        for name in filter(None, base):
            self.merge_file(config, path.parent / name, (*seen, path))
        self._merge_dict(config, values, prefix="", source=str(path))

    def _merge_dict(self, config: CfgNode, values: dict, prefix: str, source: str) -> None:
        for key, value in values.items():
            full_key = f"{prefix}{key}"
            if isinstance(value, dict):
                self._merge_dict(config, value, f"{full_key}.", source)
            elif value is None and isinstance(self._default(full_key, source), CfgNode):
                continue  # an empty section
            else:
                self.set(config, full_key, value, source)

    def set(self, config: CfgNode, key: str, value: object, source: str) -> None:
        """Set the value of a full key; `source` says where it is from in an error."""
        default = self._default(key, source)
        if isinstance(default, CfgNode):
            names = ", ".join(all_keys(default, key + "."))
            raise UserError(f"{source}: {key} is a section, not a value; name one of {names}")
        kinds = self._alternatives.get(key, (type(default),))
        *parents, leaf = key.split(".")
        node = config
        for part in parents:
            node = node[part]
        node[leaf] = _coerce(value, kinds, key, source)

    def _default(self, key: str, source: str) -> object:
        node = self._defaults
        for part in key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                close = difflib.get_close_matches(key, all_keys(self._defaults), n=1, cutoff=0.5)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UserError(f"{source}: unknown configuration key {printable(key)}{hint}")
            node = node[part]
        return node


_MOST_YAML_BYTES = 1 << 20
_MOST_DEPTH = 50


class _Loader(yaml.SafeLoader):
    """Reads plain values; no key twice, and nothing that refers to something else in the file.

    References (`*name`) let some lines stand for gigabytes, or for a value that contains itself.
    """

    depth = 0

    def compose_node(self, parent: object, index: object) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(problem=f"a reference (*{event.anchor})", problem_mark=event.start_mark)
        self.depth += 1
        if self.depth > _MOST_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested more than {_MOST_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise yaml.MarkedYAMLError(problem=f"the key {twice[0]} twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    """Read a YAML file of KEY: VALUE lines; raise UserError if it is anything else."""
    try:
        content = read_regular_file(path, _MOST_YAML_BYTES)
    except (OSError, ValueError) as error:
        raise UserError(f"-cfg {printable(path)}: {getattr(error, 'strerror', None) or error}") from error
    try:
        values = yaml.load(content, _Loader) or {}
    except Exception as error:  # values such as 2001-99-99 raise nearly anything
        raise UserError(f"{path}: not a valid YAML file: {printable(one_line(error), 300)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected KEY: VALUE lines, found {type(values).__name__}")
    return values


def _coerce(value: object, kinds: tuple, key: str, source: str) -> object:
    """Turn a YAML or command line value into one of `kinds`, without guessing."""
    candidates = [value]
    if isinstance(value, str):  # YAML reads 1e-4, None and (0.9, 0.95) as text, and so does a shell
        with contextlib.suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            candidates.insert(0, ast.literal_eval(value.strip()))
    for candidate in candidates:
        for kind in kinds:
            if kind is None and candidate is None:
                return None
            if kind is bool and isinstance(candidate, bool):
                return candidate
            if isinstance(candidate, bool):
                continue
            if kind is int and isinstance(candidate, int):
                return _sane_int(candidate, key, source)
            if kind is float and isinstance(candidate, (int, float)):
                return _finite(candidate, key, source)
            if kind is list and isinstance(candidate, (list, tuple)):
                return [_finite(item, key, source) if isinstance(item, float) else item for item in candidate]
    if str in kinds and isinstance(value, str):
        if "\0" in value:
            raise UserError(f"{source}: {key}={value!r} has a NUL in it")
        return value
    names = " or ".join("None" if kind is None else kind.__name__ for kind in kinds)
    raise UserError(f"{source}: {key}={printable(repr(value), 100)} is not of type {names}")


def _sane_int(value: int, key: str, source: str) -> int:
    if abs(value) >= 2**63:  # Python refuses to print one of thousands of digits
        raise UserError(f"{source}: {key} is a number of more than 18 digits")
    return value


def _finite(value: float, key: str, source: str) -> float:
    try:
        value = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        value = math.inf
    if not math.isfinite(value):
        raise UserError(f"{source}: {key}={value!r} is not a finite number")
    return value
