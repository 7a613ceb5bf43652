"""Sentences and class names of zero-shot classification."""

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
        ("absent.txt", None, "cannot be read"),
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
