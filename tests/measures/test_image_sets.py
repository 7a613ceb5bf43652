"""Images of lists and folders, for the tools."""

from pathlib import Path

import numpy as np
import pytest

from errors import UserError
from pipeline.file_images import FileImages
from pipeline.name_lists import find_listed

pytestmark = pytest.mark.quick


def test_names_of_a_list_that_several_images_have(tmp_path):
    images = [Path(name) for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg")]
    source = FileImages(images, np.zeros(3, np.int64), tmp_path)
    (tmp_path / "list.txt").write_text("b/1.jpg\n2.jpg\n")
    assert find_listed(source, str(tmp_path / "list.txt"), "-list").tolist() == [1, 2]
    (tmp_path / "list.txt").write_text("1.jpg\n")
    with pytest.raises(UserError, match=r"1\.jpg"):
        find_listed(source, str(tmp_path / "list.txt"), "-list")
