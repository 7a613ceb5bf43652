"""Flags of tools.knn and its kin."""

import pytest

from errors import UserError
from tools import cluster, knn

pytestmark = pytest.mark.quick


def test_wrong_numbers_and_files_are_told_before_anything_is_computed(tmp_path):
    run = str(tmp_path / "no run, as it is not looked at")
    with pytest.raises(UserError, match="-k 0"):
        knn.main([run, "-k", "0"])
    with pytest.raises(UserError, match="-json nowhere/x.json"):
        knn.main([run, "-json", "nowhere/x.json"])
    with pytest.raises(UserError, match="-clusters at least 2"):
        cluster.main([run, "-clusters", "0"])
