"""Run directories: places that are taken."""

import pytest

from errors import UserError
from tests.helpers.saved_runs import save, trained

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("name", ["step-00000002", "best", "latest"])
def test_a_place_that_is_taken_is_an_error(tmp_path, name):
    model, optimizer = trained(steps=1)
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=f"{name}: is not from here, and a checkpoint would go there"):
        save(tmp_path, 2, model, optimizer, is_best=True)
    assert (tmp_path / name / "notes.txt").read_text() == "mine"
