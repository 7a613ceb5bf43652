"""Sentences and class names of zero-shot classification."""

import io
import time

import numpy as np
import pytest

from errors import UserError
from pipeline import prompts

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("language", ["en", "fr", "de", "es", "hi", "zh"])
def test_six_languages_have_sentences_and_names(language):
    assert language in prompts.LANGUAGES
    templates = prompts.language_templates(language)
    assert len(templates) >= 8
    for dataset in ("cifar10", "digits"):
        names = prompts.language_class_names(language, dataset, None)
        texts = prompts.sentences(templates, names)
        assert [len(own) for own in texts] == [len(templates)] * 10
        assert len({text for own in texts for text in own}) == 10 * len(templates)
        assert not any("{" in text for own in texts for text in own)


def test_names_of_folders_are_used_where_a_language_has_none():
    assert prompts.language_class_names("fr", "folder", ["golden_retriever", "cat"]) == [["golden retriever"], ["cat"]]
    with pytest.raises(UserError, match="has none for it"):
        prompts.language_class_names("fr", "folder", None)
    with pytest.raises(UserError, match="there are de, en"):
        prompts.language_templates("xx")


def test_files_of_every_kind(tmp_path):
    (tmp_path / "t.txt").write_text("a photo of {}\n\nmy {}!\n", encoding="utf-8")
    (tmp_path / "t.yaml").write_text("- a photo of {}\n- my {}!\n", encoding="utf-8")
    np.save(tmp_path / "t.npy", np.array(["a photo of {}", "my {}!"]))
    np.save(tmp_path / "objects.npy", np.array(["a photo of {}", "my {}!"], object))
    for name in ("t.txt", "t.yaml", "t.npy", "objects.npy"):
        assert prompts.read_templates(tmp_path / name) == ["a photo of {}", "my {}!"]
    names = [["cat", "tabby"], ["dog"]]
    (tmp_path / "c.txt").write_text("cat, tabby\ndog\n", encoding="utf-8")
    (tmp_path / "c.yaml").write_text("- [cat, tabby]\n- dog\n", encoding="utf-8")
    lists = np.empty(2, object)
    lists[:] = names
    np.save(tmp_path / "c.npy", lists)  # as MAWS's class names are
    for name in ("c.txt", "c.yaml", "c.npy"):
        assert prompts.read_class_names(tmp_path / name) == names


class Planted:
    def __reduce__(self):
        return print, ("planted",)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.yaml", "cat\n", "one text"),
        ("c.yaml", "- []\n", "class 0 needs a name"),
        ("c.yaml", "- {a: b}\n", "class 0 needs a name"),
        ("c.yaml", "[", "is not YAML"),
        ("c.txt", "\n", "no class names"),
        ("c.csv", "cat", r"must be a .txt, .yaml, .json or .npy file"),
        ("c.txt", b"\xff", "cannot be read"),
        ("absent.txt", None, "absent.txt: No such file"),
        ("c.npy", b"no numpy", "not a NumPy file"),
        ("c.npy", np.array([Planted()], object), "refused"),
        ("c.npy", np.array([[["a"]]]), "one or two axes"),
    ],
)
def test_bad_files_are_refused(tmp_path, capsys, name, content, words):
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words):
        prompts.read_class_names(path)
    assert "planted" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["no place\n", "{} and {}\n"])
def test_a_sentence_needs_one_place(tmp_path, text):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(UserError, match="once, in the place of a class name"):
        prompts.read_templates(tmp_path / "t.txt")


def write(path, content) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.yaml", b"- 2001-01-01\n- no\n- [1, one]\n"),
        ("c.json", b'["2001-01-01", "no", ["1", "one"]]'),
        ("c.txt", b"2001-01-01\rno\r1, one\r"),
    ],
)
def test_names_are_the_texts_that_are_written(tmp_path, name, content, mark):
    assert prompts.read_class_names(write(tmp_path / name, mark + content)) == [["2001-01-01"], ["no"], ["1", "one"]]


@pytest.mark.parametrize("kind", [object, "U9"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpys_names_of_two_axes_are_read(tmp_path, kind, order):
    names = np.array([["cat", "kitten"], ["dog", "puppy"], ["cow", "calf"]], dtype=kind, order=order)
    np.save(tmp_path / "c.npy", names)
    assert prompts.read_class_names(tmp_path / "c.npy") == names.tolist()


def growing_array() -> bytes:
    """Return a `.npy` file of objects, in which one long list is a million times."""
    names = [f"name {number}" for number in range(3000)]
    array = np.empty(3000, object)
    array[:] = [names] * 3000
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.yaml", "a: &a [x]\nb: *a\n", "a reference"),
        ("c.yaml", "[" * 200 + "]" * 200, "nested more than"),
        ("c.json", b"[" * 100_000 + b"]" * 100_000, "cannot be read"),
        ("c.json", "{}", "no class names"),
        ("c.npy", growing_array(), "more than 2,000,000 names"),
        ("c.npy", npy("{'descr': '<U9', 'fortran_order': False, 'shape': (99999999999,), }"), "names; from 1 to"),
        ("c.npy", npy("{'descr': '<U1', 'fortran_order': False, 'shape': (1000000000, 0), }"), "names; from 1 to"),
        ("c.npy", npy("{'descr': '|O', 'fortran_order': False, 'shape': (1000000000, 0), }"), "names; from 1 to"),
        ("c.npy", npy("{'descr': '<U9', 'fortran_order': False, 'shape': (9,), }"), "texts are needed"),
        ("c.npy", npy("{'descr': '<U9', 'fortran_order': __import__('os'), 'shape': (1,), }"), "not a NumPy file"),
        ("c.npy", npy("(" * 100), "not a NumPy file"),
        ("c.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", bytes(8)), "texts are needed"),
    ],
)
def test_names_have_a_budget(tmp_path, name, content, words):
    started = time.monotonic()
    with pytest.raises(UserError, match=words):
        prompts.read_class_names(write(tmp_path / name, content))
    assert time.monotonic() - started < 20


def test_lists_that_contain_themselves_are_refused(tmp_path):
    array = np.empty(1, object)
    array[0] = endless = []
    endless.append(endless)
    np.save(tmp_path / "c.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match="class 0 needs a name"):
        prompts.read_class_names(tmp_path / "c.npy")


def test_a_name_that_is_one_text_is_one_name():
    assert prompts.sentences(["a {}", "the {}"], ["cat", ["dog", "hound"]]) == [
        ["a cat", "the cat"],
        ["a dog", "a hound", "the dog", "the hound"],
    ]
