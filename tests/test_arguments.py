"""Arguments: paths of users."""

import pytest

import datasets
from errors import UserError

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


def test_unknown_users_are_named():
    with pytest.raises(UserError, match="-data_path ~nobody_here/x: "):
        datasets.open_source("folder", "~nobody_here/x", "val", num_classes=2)
