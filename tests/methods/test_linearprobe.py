"""Linear probes: rates of several heads."""

import pytest

from errors import UserError
from methods import linearprobe

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    "rates", [[True], [0.1, 0.1 + 1e-12], [float(n) for n in range(1, 5001)], [10**400], ["0.1"], [0.0]]
)
def test_rates_of_a_sweep_of_heads_are_checked(tiny_run, rates):
    run = tiny_run("linearprobe", "TRAIN.LR_SWEEP", rates)
    with pytest.raises(UserError, match=r"TRAIN.LR_SWEEP=.*must be a list of different numbers above 0"):
        linearprobe.build(run)
