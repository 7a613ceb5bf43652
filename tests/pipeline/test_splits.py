"""Splits as people have them: other names, a test split, no splits at all, ImageNet's flat val folder."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import datasets
from errors import UserError
from pipeline.flat_val import find_synsets
from pipeline.sources import ArrayImages
from pipeline.splits import hold_out

pytestmark = pytest.mark.quick


def make_photos(folder, count=4):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (4, 4), (10 * number, 0, 0)).save(folder / f"{number}.png")


def open_split(root, split, name="folder", **options):
    return datasets.open_source(name, str(root), split, num_classes=2, **options)


@pytest.mark.parametrize("train", ["train", "training"])
@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_other_names_of_splits(tmp_path, train, val):
    for split, count in ((train, 4), (val, 2), ("test", 3)):
        for name in ("cat", "dog"):
            make_photos(tmp_path / split / name, count)
    assert len(open_split(tmp_path, "train")) == 8
    assert len(open_split(tmp_path, "val")) == 4
    assert len(open_split(tmp_path, "val", val_split="test")) == 6


def test_test_stands_in_for_val_and_that_is_said(tmp_path):
    for split in ("train", "test"):
        make_photos(tmp_path / split / "cat")
    source = open_split(tmp_path, "val")
    assert len(source) == 4
    assert "test is evaluated" in source.notes[-1]


@pytest.mark.parametrize("kind", ["lists", "imagenet2012"])
def test_lists_have_these_names_too(tmp_path, kind):
    make_photos(tmp_path / "photos", 4)
    (tmp_path / "training_list.txt").write_text("photos/0.png 0\nphotos/1.png 1\n")
    (tmp_path / "validation_list.txt").write_text("photos/2.png 1\n")
    (tmp_path / "test_list.txt").write_text("photos/3.png 0\n")
    sizes = [open_split(tmp_path, split, kind).labels.tolist() for split in ("train", "val")]
    assert sizes == [[0, 1], [1]]
    assert open_split(tmp_path, "val", kind, val_split="test").labels.tolist() == [0]


def test_two_names_of_a_split_are_an_error(tmp_path):
    for split in ("train", "val", "valid"):
        make_photos(tmp_path / split / "cat")
    with pytest.raises(UserError, match=r"has val and valid; choose one with -opts DATA\.VAL_SPLIT"):
        open_split(tmp_path, "val")
    assert len(open_split(tmp_path, "val", val_split="valid")) == 4
    with pytest.raises(UserError, match=r"VAL_SPLIT=dev: .* no folder, list"):
        open_split(tmp_path, "val", val_split="dev")
    with pytest.raises(UserError, match="digits has the splits train and val only"):
        open_split(tmp_path, "val", "digits", val_split="test")


def test_classes_without_splits(tmp_path):
    for name, count in (("cat", 20), ("dog", 40), ("owl", 2)):
        make_photos(tmp_path / name, count)
    with pytest.raises(UserError, match=r"DATA\.VAL_FRACTION 0\.1"):
        open_split(tmp_path, "train")
    train, val = (open_split(tmp_path, split, val_fraction=0.1) for split in ("train", "val"))
    assert train.class_names == val.class_names == ["cat", "dog", "owl"]
    assert np.bincount(val.labels).tolist() == [2, 4, 1]
    assert np.bincount(train.labels).tolist() == [18, 36, 1]
    files = [{str(source.path(index)) for index in range(len(source))} for source in (train, val)]
    assert not files[0] & files[1]
    assert len(files[0] | files[1]) == 62
    unlabelled = open_split(tmp_path, "val", val_fraction=0.1, needs="none")
    assert {str(unlabelled.path(index)) for index in range(len(unlabelled))} == files[1], "pretraining leaves them out"
    other = open_split(tmp_path, "val", val_fraction=0.1, val_seed=1)
    assert {str(other.path(index)) for index in range(len(other))} != files[1]


def held_out(root, **options):
    source = open_split(root, "val", val_fraction=0.2, **options)
    return {str(source.path(index)) for index in range(len(source))}


def test_the_share_is_the_same_in_every_run(tmp_path):
    for name in ("cat", "dog", "owl"):
        make_photos(tmp_path / "data" / name, 20)
    root = tmp_path / "data"
    before = held_out(root)
    assert held_out(root, class_names=["owl", "cat", "dog"]) == before, "other numbers of labels"
    Image.new("RGB", (4, 4)).save(root / "stray.png")
    assert held_out(root, needs="none") == before, "pretraining, with an image that has no class"
    (root / "cat" / "new.png").write_bytes((root / "cat" / "0.png").read_bytes())
    assert len(held_out(root) - before) <= 1, "a photo more"
    for file in (root / "cat").iterdir():
        file.unlink()
    (root / "cat").rmdir()
    assert held_out(root) == {file for file in before if "/cat/" not in file}, "a class less"


def test_lists_hold_out_the_same_with_and_without_labels(tmp_path):
    make_photos(tmp_path / "photos", 20)
    lines = [f"photos/{number}.png {number % 2}\n" for number in range(20)]
    (tmp_path / "train_list.txt").write_text("".join(lines))
    before = held_out(tmp_path, name="lists")
    assert held_out(tmp_path, name="lists", needs="none") == before
    assert held_out(tmp_path, name="lists", needs="labels") == before
    assert {int(file.rpartition("/")[2][:-4]) % 2 for file in before} == {0, 1}


@pytest.mark.parametrize("name", ["train", "../elsewhere", "a/b"])
def test_odd_names_of_val(tmp_path, name):
    make_photos(tmp_path / "train" / "cat")
    with pytest.raises(UserError, match="must be the name of a split"):
        open_split(tmp_path, "val", val_split=name)


def test_the_share_is_drawn_from_the_train_split(tmp_path):
    make_photos(tmp_path / "train" / "cat", 10)
    make_photos(tmp_path / "val" / "cat", 3)
    assert [len(open_split(tmp_path, split, val_fraction=0.2)) for split in ("train", "val")] == [8, 2]
    with pytest.raises(UserError, match="val is one of both"):
        open_split(tmp_path, "val", val_fraction=0.2, val_split="val")


def test_a_single_image_of_a_class_is_trained_on():
    source = ArrayImages(np.zeros((3, 2, 2), np.uint8), np.array([0, 1, 1]), "x")
    assert hold_out(source, "train", 0.5, 0).labels.tolist() == [0, 1]
    with pytest.raises(UserError, match="too few"):
        hold_out(ArrayImages(np.zeros((1, 2, 2), np.uint8), np.array([0]), "x"), "val", 0.5, 0)


# ---- ImageNet's flat folder

NAMES = [f"ILSVRC2012_val_{number:08d}.png" for number in (1, 2, 3)]
SYNSETS = ["n02", "n01", "n02"]


def write_devkit(root):
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    rows = [(1, "n02", "b"), (2, "n01", "a"), (1001, "n09", "above")]
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kinds)})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n1\n")


def write_list(root):
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("n02\nn01\nn02\n")


def write_kaggle(root):
    lines = [f"{name[:-4]},{synset} 1 2 3 4 {synset} 5 6 7 8" for name, synset in zip(NAMES, SYNSETS, strict=True)]
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(lines) + "\n")


@pytest.mark.parametrize("write", [write_devkit, write_list, write_kaggle])
@pytest.mark.parametrize("has_train", [True, False])
def test_flat_val(tmp_path, write, has_train):
    (tmp_path / "val").mkdir()
    for name in NAMES:
        Image.new("RGB", (4, 4)).save(tmp_path / "val" / name)
    with pytest.raises(UserError, match="development kit"):
        open_split(tmp_path, "val", "imagenet2012")
    if has_train:
        for name in ("n00", "n01", "n02"):
            make_photos(tmp_path / "train" / name, 1)
    write(tmp_path)
    source = open_split(tmp_path, "val", "imagenet2012")
    assert [source.class_names[label] for label in source.labels] == SYNSETS
    assert source.class_names == (["n00", "n01", "n02"] if has_train else ["n01", "n02"])


def test_a_list_that_is_too_short_and_other_names(tmp_path):
    write_list(tmp_path)
    assert find_synsets(tmp_path, ["photo.png"]) is None
    with pytest.raises(UserError, match="has 3 lines; expected 50,000"):
        find_synsets(tmp_path, ["ILSVRC2012_val_00000004.JPEG"])
    (tmp_path / "imagenet_2012_validation_synset_labels.txt").write_text("n02\n\nn01\nn02\n")
    with pytest.raises(UserError, match="line 2 is empty"):
        find_synsets(tmp_path, NAMES)
