"""JSON: depth and size."""

import pytest

from errors import UserError
from storage.json_files import read_json

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


def test_deep_and_large_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"a": ' * 99999)
    with pytest.raises(UserError, match="damaged, or no JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"a": "' + "x" * 2000)
    with pytest.raises(UserError, match="and at most 1,000 are sane"):
        read_json(tmp_path / "b.json", most_bytes=1000)
