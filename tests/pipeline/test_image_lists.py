"""Lists of images with captions or labels, and what their lines must be."""

import json

import numpy as np
import pytest
from PIL import Image

import datasets
from errors import UserError
from pipeline.image_lists import ListedImages

pytestmark = pytest.mark.quick


def write(root, name: str, text: str | bytes):
    for number in range(4):
        pixels = np.full((4, 4, 3), 10 * number, np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / name


def open_lists(root, needs="none", **options):
    return datasets.open_source("lists", str(root), "train", num_classes=10, needs=needs, **options)


def test_captions(tmp_path):
    write(tmp_path, "train.tsv", "0.png\tun chat\r\n\n1.png\t  a\tdog  \n2.png\t\n3.png\t马")
    source = open_lists(tmp_path)
    assert [source.captions[index] for index in range(4)] == ["un chat", "a dog", "", "马"]
    assert source.image(1).getpixel((0, 0)) == (10, 10, 10)
    needed = open_lists(tmp_path, "caption")
    assert (len(needed), needed.left_out) == (3, 1)
    assert needed.describe(2) == str(tmp_path / "3.png")
    assert "1 images without a caption are left out" in needed.check(num_classes=None, channels=3)[0]
    assert needed.summary() == "3 images with captions"


def test_labels(tmp_path):
    write(tmp_path, "train_list.txt", "0.png 3,1\n1.png\n2.png 4\n3.png 0,9,2\n")
    source = open_lists(tmp_path, "labels")
    assert [source.labels[index] for index in range(3)] == [[3, 1], [4], [0, 9, 2]]
    assert source.left_out == 1
    assert source.captions is None
    assert source.count_classes() == 10
    source.check(num_classes=10, channels=3)
    with pytest.raises(UserError, match=r"3.png has 9"):
        source.check(num_classes=9, channels=3)


@pytest.mark.parametrize("separator", [" ", "\t", ",", ", ", ";"])
def test_separators_of_a_label(tmp_path, separator):
    (tmp_path / "train_list.txt").write_text(f"a photo.jpg{separator}3\n1,2.jpg{separator}4\n")
    source = ListedImages(tmp_path / "train_list.txt", "label", strict=True)
    assert source.labels.tolist() == [3, 4]
    assert [source.path(index).name for index in range(2)] == ["a photo.jpg", "1,2.jpg"]


def test_a_list_from_windows_is_named(tmp_path):
    (tmp_path / "train_list.txt").write_text("cat\\1.jpg 0\n")
    source = ListedImages(tmp_path / "train_list.txt", "label", strict=True)
    with pytest.raises(UserError, match="a list from Windows"):
        source.check(num_classes=1, channels=3)


def test_json_lines(tmp_path):
    lines = [
        {"image": "0.png", "caption": "a\nb", "labels": [2]},
        {"image": "1.png", "label": 3},
        {"image": "2.png", "caption": None, "labels": None},
        {"image": "3.png", "caption": "c"},
    ]
    write(tmp_path, "train.jsonl", "\n".join(map(json.dumps, lines)))
    source = open_lists(tmp_path)
    assert [source.captions[index] for index in range(4)] == ["a b", "", "", "c"]
    assert [source.labels[index] for index in range(4)] == [[2], [3], [], []]
    assert len(open_lists(tmp_path, "caption")) == len(open_lists(tmp_path, "labels")) == 2


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("train.tsv", "0.png a cat\n", "line 1: expected 'path<TAB>caption'"),
        ("train.tsv", b"0.png\tok\n1.png\t\xff\xfe\n", "line 2: is not UTF-8"),
        ("train.tsv", "../0.png\ttext\n", "is outside"),
        ("train.tsv", "/etc/passwd\ttext\n", "is outside"),
        ("train.tsv", "\ttext\n", "is not a path"),
        ("train.tsv", "0.png\t\n", "none of its 1 images has captions"),
        ("train_list.txt", "0.png one\n", "expected 'path label' or 'path label,label'"),
        ("train_list.txt", "0.png 1,,2\n", "are not labels"),
        ("train.jsonl", "{\n", "is not JSON"),
        ("train.jsonl", "[]\n", "is not a JSON object"),
        ("train.jsonl", '{"image": "0.png", "labels": ["a"]}\n', "labels must be integers"),
        ("train.jsonl", '{"image": "0.png", "labels": [-1]}\n', "labels must be integers"),
        ("train.jsonl", '{"image": "0.png", "caption": 3}\n', "is not a text"),
    ],
)
def test_bad_lines_are_named(tmp_path, name, text, words):
    write(tmp_path, name, text)
    with pytest.raises(UserError, match=words):
        open_lists(tmp_path, "caption")


def test_missing_and_doubled_lists(tmp_path):
    with pytest.raises(UserError, match="has no list"):
        open_lists(tmp_path)
    write(tmp_path, "train.tsv", "0.png\ta")
    write(tmp_path, "train.jsonl", '{"image": "0.png"}')
    with pytest.raises(UserError, match=r"has train.tsv and train.jsonl"):
        open_lists(tmp_path)
    write(tmp_path, "empty.tsv", "")
    assert len(ListedImages(tmp_path / "empty.tsv", "none")) == 0
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match="missing"):
        open_lists(tmp_path).check(num_classes=None, channels=3)
