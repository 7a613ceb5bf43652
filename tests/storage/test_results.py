"""Results never go over an input, nor into a run."""

import pytest
from PIL import Image

import tools.evaluate
import tools.export
import tools.features
import tools.visualise
from errors import UserError
from tests.helpers.saved_runs import contents

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("place", [".", "latest", "sub", "latest/sub"])
@pytest.mark.parametrize("tool", [tools.evaluate, tools.export, tools.features])
def test_no_tool_writes_into_a_run_or_a_checkpoint(run_dir, tool, place):
    before = contents(run_dir)
    flags = ["-format", "paddle"] if tool is tools.export else []
    with pytest.raises(UserError, match="is a (run|checkpoint), which holds its own files only"):
        tool.main([str(run_dir), "-out", str(run_dir / place), *flags])
    assert contents(run_dir) == before


def test_no_picture_goes_over_an_input(run_dir, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 20)).save(photos / name)
    before = contents(photos)
    for images in ([photos / "a.png"], [photos], [photos / "b.png", tmp_path / "photos" / ".." / "photos" / "a.png"]):
        with pytest.raises(UserError, match="is an input, which would be overwritten"):
            tools.visualise.main([str(run_dir), *map(str, images), "-attention", "-out", str(photos / "a.png")])
    (tmp_path / "link.png").symlink_to(photos / "a.png")
    with pytest.raises(UserError, match="is an input"):
        tools.visualise.main([str(run_dir), str(photos / "a.png"), "-attention", "-out", str(tmp_path / "link.png")])
    assert contents(photos) == before
