"""Runs: the list of images that cannot be read."""

import pytest

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


def test_the_log_escapes_names(tiny_run):
    run = tiny_run("pretrain")
    run.bad_images.append("photo\x1b[31m.jpg\udce9: cannot be read")
    run.report_bad_images()
    for name in ("log.txt", "bad_images.txt"):
        text = (run.directory / name).read_text()
        assert "\x1b" not in text
        assert r"\x1b[31m" in text
