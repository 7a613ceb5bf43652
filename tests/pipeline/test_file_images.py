"""Checks of images in files: doubles, names, labels, paths."""

import os

import numpy as np
import pytest
from PIL import Image

import datasets
from errors import UserError
from pipeline import loading
from pipeline.file_images import FileImages
from pipeline.folders import find_images
from pipeline.samplers import EvalSampler

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


def test_doubles_and_odd_names_are_told(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    odd = os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "y.png")
    os.rename(tmp_path / "y.png", os.path.join(tmp_path, odd))
    (tmp_path / "val_list.txt").write_text("x.png 0\nx.png 0\nx.png 1\n")
    source = datasets.open_source("imagenet2012", str(tmp_path), "val", num_classes=2)
    (note,) = source.check(num_classes=2, channels=3)
    assert "2 images are listed more than once, 1 of them with two labels: " in note
    source = FileImages(find_images(tmp_path), np.zeros(2, np.int64), tmp_path)
    (note,) = source.check(num_classes=None, channels=3)
    assert "1 names are not UTF-8, and are shown with escapes: " in note
    assert "caf" in note
    assert note.isascii()
    assert next(iter(loading.Loader(source, lambda i, r: np.zeros(1), EvalSampler(2, 2)))).images.shape == [2, 1]


@pytest.mark.parametrize("label", ["999999999", "1000000"])
def test_a_label_without_sense_allocates_nothing(tmp_path, label):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    (tmp_path / "val_list.txt").write_text(f"x.png {label}\n")
    source = datasets.open_source("imagenet2012", str(tmp_path), "val", num_classes=2)
    with pytest.raises(UserError, match="has the label .*; at most 999,999"):
        source.check(num_classes=None, channels=3)


@pytest.mark.parametrize("path", ["a\0b.png", "x/" * 2500 + "a.png"])
def test_paths_that_cannot_be_are_named(tmp_path, path):
    (tmp_path / "val_list.txt").write_text(f"{path} 0\n")
    with pytest.raises(UserError, match="line 1: .* is not a path"):
        datasets.open_source("imagenet2012", str(tmp_path), "val", num_classes=2)
