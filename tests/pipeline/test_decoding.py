"""Decoding: no file of any content starts a program."""

import os
import stat

import pytest

import datasets
from pipeline import sources

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


def open_folder(root, split="val", needs_labels=True):
    return datasets.open_source("folder", str(root), split, num_classes=3, needs="label" if needs_labels else "none")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_no_image_starts_a_program(tmp_path, monkeypatch, name):
    marker, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    folder = tmp_path / "val" / "a"
    folder.mkdir(parents=True)
    (folder / name).write_bytes(EPS)
    problem = sources.why_unreadable(open_folder(tmp_path), 0, 3)
    assert "its content is of none of the formats JPEG, PNG" in problem
    assert not marker.exists()
