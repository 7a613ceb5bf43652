"""manifest.json: values of another kind."""

import pytest

from errors import UserError
from launch import run_directory
from tests.helpers.saved_runs import save, trained

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


@pytest.mark.parametrize("text", ["[]", '{"model.pdparams": 3}', '{"../x": {"size": 1, "sha256": "a"}}', "{" * 99])
def test_a_manifest_of_another_kind_is_damage(tmp_path, text):
    path = save(tmp_path, 1, *trained(steps=1))
    (path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="manifest.json is damaged"):
        run_directory.find(path)
