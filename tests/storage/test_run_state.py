"""state.json: values of another kind."""

import pytest

from errors import UserError
from storage import run_state
from tests.helpers.saved_runs import save, trained

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


@pytest.mark.parametrize(
    "text", ["", "[]", "nan", '{"step": true}', '{"step": -1}', '{"step": 1, "best": []}', "[" * 99999]
)
def test_a_state_of_another_kind_is_one_line(tmp_path, text):
    path = save(tmp_path, 1, *trained(steps=1))
    (path / "state.json").write_text(text)
    with pytest.raises(UserError, match="state.json: "):
        run_state.read_state(path)
