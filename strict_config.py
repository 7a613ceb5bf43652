"""YAML files and KEY VALUE pairs merged into a yacs node: unknown keys and other types are errors that name them.

A key's `Rule` describes in words the values that it may have.

yacs itself converts some types silently, refuses None in many places, and has no files that include others.
"""

import ast
import contextlib
import difflib
import math
import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import yaml
from yacs.config import CfgNode

from errors import UserError, one_line, printable
from storage.files import read_file, reading


def all_keys(config: CfgNode, prefix: str = "") -> list[str]:
    """List the full names of all values."""
    keys = []
    for key, value in config.items():
        keys += all_keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return keys


_TYPES = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "None": None}
_COMPARISONS = {"above": operator.gt, "at least": operator.ge, "below": operator.lt, "at most": operator.le}
_WORDS = {"True": True, "False": False, "None": None}


class Rule:
    """The values that a key may have: types, then a range or a choice, in words.

        Rule(4, "from 0 to 1024")    Rule(None, "float or None, above 0 and below 1")    Rule("a", "one of a, b")

    Args:
        default: its type is the only one where the text names none.
        text: `TYPE or TYPE, ` and then `above`, `at least`, `below`, `at most` NUMBER, joined by `and`;
            or `from NUMBER to NUMBER`; or `one of VALUE, VALUE`. Empty: any value of the type.

    Raises:
        ValueError: if the text is anything else.
    """

    def __init__(self, default: object, text: str = ""):
        self.text = text
        names, _, rest = text.partition(", ")
        has_types = bool(text) and all(name in _TYPES for name in names.split(" or "))
        self.types = tuple(_TYPES[name] for name in names.split(" or ")) if has_types else (type(default),)
        text = rest if has_types else text
        self.choices: tuple | None = None
        self.bounds: list[tuple[str, float]] = []
        if text.startswith("one of "):
            self.choices = tuple(_WORDS.get(word, word) for word in text.removeprefix("one of ").split(", "))
        elif text.startswith("from "):
            low, _, high = text.removeprefix("from ").partition(" to ")
            self.bounds = [("at least", _number(low)), ("at most", _number(high))]
        elif text:
            self.bounds = [self._bound(part) for part in text.split(" and ")]

    @staticmethod
    def _bound(text: str) -> tuple[str, float]:
        words, _, number = text.rpartition(" ")
        if words not in _COMPARISONS:
            raise ValueError(f"{text!r}: a range is one of {', '.join(_COMPARISONS)}, and a number")
        return words, _number(number)

    def problem(self, value: object) -> str | None:
        """Return what is wrong with a value ("must be at least 1"); None if nothing is. None has no range."""
        if self.choices is not None and not any(value is choice or value == choice for choice in self.choices):
            return f"must be one of {', '.join(map(str, self.choices))}"
        if value is None:
            return None
        for words, limit in self.bounds:
            if not _COMPARISONS[words](value, limit):
                return f"must be {words} {limit:,}" + (", or None" if None in self.types else "")
        return None


def _number(text: str) -> float:
    return int(text) if text.replace("_", "").isdecimal() else float(text)


class Merger:
    """Merges values into copies of a tree of defaults.

    Args:
        defaults: every key that there is.
        rules: {full key: rule} of each.
        elsewhere: {full key: hint} of keys that are known, but not here.
    """

    def __init__(self, defaults: CfgNode, rules: Mapping[str, Rule], elsewhere: Mapping[str, str] | None = None):
        self._defaults, self._rules, self._elsewhere = defaults, rules, elsewhere or {}

    def set(self, config: CfgNode, key: str, value: object, source: str) -> None:
        """Set the value of a full key; `source` names its origin in an error."""
        default = self._default(key, source)
        if isinstance(default, CfgNode):
            if value is None and source != "-opts":  # an empty section of a file
                return
            names = ", ".join(all_keys(default, key + "."))
            raise UserError(f"{source}: {key} is a section, not a value; name one of {names}")
        *parents, leaf = key.split(".")
        node = config
        for part in parents:
            node = node[part]
        node[leaf] = _coerce(value, self._rules[key].types, key, source)

    def _default(self, key: str, source: str) -> object:
        node = self._defaults
        for part in key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                if key in self._elsewhere:
                    raise UserError(f"{source}: unknown configuration key {key}: {self._elsewhere[key]}")
                close = difflib.get_close_matches(key, all_keys(self._defaults), n=1, cutoff=0.5)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UserError(f"{source}: unknown configuration key {printable(key)}{hint}")
            node = node[part]
        return node


def read_pairs(words: Iterable[object]) -> list[tuple[str, object]]:
    """Split the words of -opts, `KEY VALUE` or `KEY=VALUE` each, into (key, value); raise UserError at a lone key."""
    pairs, words = [], iter(words)
    for word in words:
        key, sign, value = str(word).partition("=")
        try:
            pairs.append((key, value if sign else next(words)))
        except StopIteration:
            raise UserError(f"-opts takes KEY VALUE or KEY=VALUE, and {printable(key)} has no value") from None
    return pairs


def read_assignments(path: Path, seen: tuple[Path, ...] = ()) -> list[tuple[str, object, str]]:
    """Return (full key, value, source) of all values of a YAML file, after those of the files that its BASE names.

    Raises:
        UserError: if a file cannot be read, or BASE files include each other in a circle.
    """
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
    assignments = []
    for name in filter(None, base):
        assignments += read_assignments(path.parent / name, (*seen, path))
    return assignments + [(key, value, str(path)) for key, value in _flatten(values)]


def _flatten(values: dict, prefix: str = "") -> list[tuple[str, object]]:
    pairs = []
    for key, value in values.items():
        full_key = f"{prefix}{key}"
        pairs += _flatten(value, f"{full_key}.") if isinstance(value, dict) else [(full_key, value)]
    return pairs


_MOST_YAML_BYTES = 1 << 20
_MOST_DEPTH = 50


class _Loader(yaml.SafeLoader):
    """Reads plain values; a key that occurs twice, or a reference, is an error.

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


class _TextLoader(_Loader):
    """Reads every value as the text that is written: `no`, `1` and `2001-01-01` may be names."""

    yaml_implicit_resolvers: ClassVar[dict] = {}


def parse_yaml_texts(content: str) -> object:
    """Return lists and texts of a YAML file; raise ValueError where it is not YAML, or has references."""
    try:
        return yaml.load(content, _TextLoader)
    except Exception as error:  # damaged files raise nearly anything
        raise ValueError(f"is not YAML: {one_line(error)}") from error


def read_yaml(path: Path) -> dict:
    """Read a YAML file of KEY: VALUE lines; raise UserError if it is anything else."""
    with reading(path, "a YAML file", flag="-cfg "):
        values = yaml.load(read_file(path, _MOST_YAML_BYTES), _Loader) or {}
        if not isinstance(values, dict):
            raise ValueError(f"expected KEY: VALUE lines, found {type(values).__name__}")
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
    except OverflowError:  # an integer of hundreds of digits
        value = math.inf
    if not math.isfinite(value):
        raise UserError(f"{source}: {key}={value!r} is not a finite number")
    return value
