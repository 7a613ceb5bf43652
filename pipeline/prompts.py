"""Sentences and class names of zero-shot classification, in text, YAML, JSON and MAWS's `.npy` files. No Paddle here.

configs/prompts/LANGUAGE.yaml has `templates`, sentences with `{}` in the place of a class name, and `classnames`: by
data set, a name or a list of names per class.
"""

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from errors import UserError, one_line, printable
from runtime import ROOT
from storage import pickle_names, safe_pickle
from storage.files import decode_text, read_file, read_lines, reading
from strict_config import parse_yaml_texts, read_yaml

FOLDER = ROOT / "configs" / "prompts"
LANGUAGES = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
_MOST_NAMES = 2_000_000


def read_language(language: str) -> dict[str, object]:
    """Return `templates` and `classnames` of a language.

    Raises:
        UserError: if there is no such language.
    """
    if language not in LANGUAGES:
        raise UserError(f"language {language!r}: there are {', '.join(LANGUAGES)}, in configs/prompts")
    return read_yaml(FOLDER / f"{language}.yaml")


def language_templates(language: str) -> list[str]:
    """Return the sentences of a language."""
    return _checked_templates(read_language(language)["templates"], FOLDER / f"{language}.yaml")


def language_class_names(language: str, dataset: str, own: Sequence[str] | None) -> list[list[str]]:
    """Return the names of each class of a data set in a language.

    Args:
        dataset: DATA.DATASET.
        own: names that the data set itself has, such as those of its folders; used where the language has none.

    Raises:
        UserError: if neither has names.
    """
    known = read_language(language)["classnames"].get(dataset)
    if known is None and own is None:
        raise UserError(
            f"{dataset} has no class names of its own, and configs/prompts/{language}.yaml has none for it; "
            "add them there, or give tools.zeroshot a file: -classnames FILE"
        )
    return _checked_names(known or [name.replace("_", " ") for name in own], FOLDER / f"{language}.yaml")


def class_groups(dataset: str) -> dict[str, list[int]]:
    """Return groups of the classes of a data set, such as animals; empty if none are written down."""
    return read_language("en")["groups"].get(dataset, {})


def read_templates(path: str | Path) -> list[str]:
    """Read sentences from a text file (one per line), a YAML or JSON list, or a `.npy` file.

    Raises:
        UserError: if the file cannot be read, or a sentence has no `{}`.
    """
    return _checked_templates(_read(Path(path)), path)


def read_class_names(path: str | Path) -> list[list[str]]:
    """Read the names of each class: per line, separated by commas; or a YAML, JSON or `.npy` list of names or lists.

    Raises:
        UserError: if the file cannot be read, or a class has no name.
    """
    path = Path(path)
    content = _read(path)
    if path.suffix == ".txt":
        content = [[name.strip() for name in line.split(",") if name.strip()] for line in content]
    return _checked_names(content, path)


def sentences(templates: Sequence[str], names: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """Return the texts of each class: all templates with all of its names, or with the one that it has."""
    lists = [[own] if isinstance(own, str) else own for own in names]
    return [[template.replace("{}", name) for template in templates for name in own] for own in lists]


def _checked_templates(content: object, path: str | Path) -> list[str]:
    if not isinstance(content, list) or not content or not all(isinstance(line, str) for line in content):
        raise UserError(f"{path}: must be a list of sentences with {{}} in the place of a class name")
    lacking = [line for line in content if line.count("{}") != 1]
    if lacking:
        raise UserError(f"{path}: {printable(lacking[0], 60)!r} must have {{}} once, in the place of a class name")
    return content


def _checked_names(content: object, path: str | Path) -> list[list[str]]:
    if isinstance(content, str):
        raise UserError(f"{path}: class names are a list, and {printable(content, 60)!r} is one text")
    names, left = [], _MOST_NAMES
    for number, own in enumerate(content if isinstance(content, list) else []):
        own = [own] if isinstance(own, str) else own
        if not isinstance(own, list) or not own or not all(isinstance(name, str) and name.strip() for name in own):
            raise UserError(f"{path}: class {number} needs a name, or a list of names")
        left -= len(own)  # a file may have one long list a million times
        if left < 0:
            raise UserError(f"{path}: more than {_MOST_NAMES:,} names")
        names.append(own)
    if not names:
        raise UserError(f"{path}: holds no class names")
    return names


def _read(path: Path) -> object:
    """Return the content of a text, YAML, JSON or `.npy` file as lists and texts."""
    if path.suffix == ".txt":
        return read_lines(path)
    if path.suffix not in (".yaml", ".yml", ".json", ".npy"):
        raise UserError(f"{path}: must be a .txt, .yaml, .json or .npy file")
    with reading(path, f"a {path.suffix} file"):
        content = read_file(path)
        if path.suffix == ".npy":
            return _read_npy(content, path)
        return json.loads(decode_text(content)) if path.suffix == ".json" else parse_yaml_texts(decode_text(content))


def _read_npy(content: bytes, path: Path) -> list:
    """Read a `.npy` file of one or two axes; one of objects is a pickle, of which only texts and lists are made."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        names = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}
        shape, is_fortran, dtype = getattr(np.lib.format, names[version])(file)
    except Exception as error:  # NumPy evaluates the header as Python
        raise UserError(f"{path}: not a NumPy file ({printable(one_line(error))})") from error
    if len(shape) not in (1, 2):
        raise UserError(f"{path}: must have one or two axes, and has {len(shape)}")
    if not 0 < math.prod(shape) <= _MOST_NAMES:
        raise UserError(f"{path}: has {math.prod(shape):,} names; from 1 to {_MOST_NAMES:,} can be right")
    if dtype.hasobject:
        return safe_pickle.load(file, str(path), extra_names=pickle_names.OBJECT_ARRAYS)
    if dtype.kind != "U" or math.prod(shape) * dtype.itemsize != len(content) - file.tell():
        raise UserError(f"{path}: holds {dtype} of shape {shape}, and texts are needed")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C").tolist()
