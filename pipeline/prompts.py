"""Sentences and class names of zero-shot classification, in text, YAML and MAWS's `.npy` files. No Paddle here.

configs/prompts/LANGUAGE.yaml has `templates`, sentences with `{}` in the place of a class name, and `classnames`: by
data set, a name or a list of names per class.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from errors import UserError, one_line, printable
from runtime import ROOT
from storage import safe_pickle
from storage.regular_files import read_regular_file
from strict_config import read_yaml

FOLDER = ROOT / "configs" / "prompts"
LANGUAGES = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))
_MOST_BYTES = 64 << 20


def read_language(language: str) -> dict[str, object]:
    """Return `templates` and `classnames` of a language.

    Raises:
        UserError: if there is no such language.
    """
    if language not in LANGUAGES:
        raise UserError(f"language {language!r}: there are {', '.join(LANGUAGES)}, in configs/prompts")
    return read_yaml(FOLDER / f"{language}.yaml")


def templates_of(language: str) -> list[str]:
    """Return the sentences of a language."""
    return _checked_templates(read_language(language)["templates"], FOLDER / f"{language}.yaml")


def class_names_of(language: str, dataset: str, own: Sequence[str] | None) -> list[list[str]]:
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


def groups_of(dataset: str) -> dict[str, list[int]]:
    """Return groups of the classes of a data set, such as animals; empty if none are written down."""
    return read_language("en")["groups"].get(dataset, {})


def read_templates(path: str | Path) -> list[str]:
    """Read sentences from a text file (one per line), a YAML list, or a `.npy` file.

    Raises:
        UserError: if the file cannot be read, or a sentence has no `{}`.
    """
    return _checked_templates(_read(Path(path)), path)


def read_class_names(path: str | Path) -> list[list[str]]:
    """Read the names of each class: per line, separated by commas; or a YAML list or `.npy` file of names or lists.

    Raises:
        UserError: if the file cannot be read, or a class has no name.
    """
    path = Path(path)
    content = _read(path)
    if path.suffix == ".txt":
        content = [[name.strip() for name in line.split(",") if name.strip()] for line in content]
    return _checked_names(content, path)


def sentences(templates: Sequence[str], names: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return the texts of each class: all templates with all of its names."""
    return [[template.replace("{}", name) for template in templates for name in own] for own in names]


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
    names = [[own] if isinstance(own, str) else own for own in content] if isinstance(content, list) else []
    for number, own in enumerate(names):
        if not isinstance(own, list) or not own or not all(isinstance(name, str) and name.strip() for name in own):
            raise UserError(f"{path}: class {number} needs a name, or a list of names")
    if not names:
        raise UserError(f"{path}: holds no class names")
    return names


def _read(path: Path) -> object:
    """Return the content of a text, YAML or `.npy` file as lists and texts."""
    try:
        content = read_regular_file(path, _MOST_BYTES)
        if path.suffix == ".npy":
            return _read_npy(content, path)
        text = content.decode("utf-8")
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    if path.suffix in (".yaml", ".yml"):
        return _parse_yaml(path, text)
    if path.suffix == ".txt":
        return [line.strip() for line in text.splitlines() if line.strip()]
    raise UserError(f"{path}: must be a .txt, .yaml or .npy file")


def _parse_yaml(path: Path, text: str) -> object:
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: is not YAML ({one_line(error)})") from error


def _read_npy(content: bytes, path: Path) -> list:
    """Read a one-dimensional `.npy` file; one of objects is a pickle, of which only texts and lists are made."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        names = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}
        shape, _, dtype = getattr(np.lib.format, names[version])(file)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: no file of NumPy ({one_line(error)})") from error
    if len(shape) != 1:
        raise UserError(f"{path}: must have one axis, and has {len(shape)}")
    if dtype.hasobject:
        values = safe_pickle.load(file, str(path), extra_names=safe_pickle.OBJECT_ARRAYS)
    else:
        values = np.load(io.BytesIO(content), allow_pickle=False)
    return _as_lists(values)


def _as_lists(value: object) -> object:
    if isinstance(value, (np.ndarray, list, tuple)):
        return [_as_lists(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
