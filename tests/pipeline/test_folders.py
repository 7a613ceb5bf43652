"""Folders of images: links, depth, pipes, and what cannot be read."""

import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

import datasets
from errors import UserError
from pipeline import sources
from pipeline.folders import find_images

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


def open_folder(root, split="val", needs_labels=True):
    return datasets.open_source("folder", str(root), split, num_classes=3, needs="label" if needs_labels else "none")


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_what_is_no_file_is_named_before_and_never_waited_for(tmp_path, kind):
    folder = tmp_path / "val" / "a"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "good.png")
    odd = folder / "odd.png"
    {"fifo": os.mkfifo, "device": lambda path: os.symlink("/dev/zero", path), "folder": os.mkdir}[kind](odd)
    source = open_folder(tmp_path)
    if kind == "folder":
        assert [path.name for path in source.paths] == ["good.png"]
        return
    with pytest.raises(UserError, match="1 files are missing: .*odd.png"):
        source.check(num_classes=1, channels=3)
    assert "not a regular file" in sources.why_unreadable(source, 1, 3)


def test_a_link_to_itself_is_one_file_that_is_missing(tmp_path):
    folder = tmp_path / "val" / "a"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "good.png")
    for link in (folder / "loop.png", tmp_path / "val" / "loop"):
        link.symlink_to(link.name)
    source = open_folder(tmp_path)
    assert [path.name for path in source.paths] == ["good.png", "loop.png"]
    with pytest.raises(UserError, match="1 files are missing: .*loop.png"):
        source.check(num_classes=1, channels=3)


def test_folders_that_links_lead_to_again_are_listed_once(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "b" / "x.png")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "b" / "here").symlink_to(".")
    assert [str(path.relative_to(tmp_path)) for path in map(Path, find_images(tmp_path))] == ["a/b/x.png"]
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "c").symlink_to(tmp_path / "a")
    found = map(Path, find_images(tmp_path / "linked"))
    assert [str(path.relative_to(tmp_path)) for path in found] == ["linked/c/b/x.png"], "a linked folder counts"


def test_many_ways_and_deep_folders_are_no_trouble(tmp_path):
    for level in range(30):
        (tmp_path / f"level{level}").mkdir()
        for name in ("one", "two"):
            (tmp_path / f"level{level}" / name).symlink_to(tmp_path / f"level{level + 1}")
    assert list(find_images(tmp_path)) == []
    deep = tmp_path / "deep"
    deep.mkdir()
    descriptor = os.open(deep, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    try:
        assert list(find_images(deep)) == []
    finally:  # pytest and Python cannot delete what is so deep
        subprocess.run(["rm", "-rf", str(deep)], check=True)


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(path) == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="a: cannot be listed: Permission denied"):
        list(find_images(tmp_path))
