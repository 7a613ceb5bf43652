"""Training gives the numbers that it always gave; see `traces.py`."""

import subprocess
import sys

import numpy as np
import pytest

import runtime
from tests import traces

pytestmark = pytest.mark.quick

# On another processor sums are rounded otherwise, and 20 updates amplify that. With MKL on one thread and without its
# vector code: 1e-6 of most values, 3e-4 where batch norms are in the loss, 0.08 where neighbours in a
# queue are, which a rounding can exchange.
RELATIVE = 1e-3
RELATIVE_OF = {"moco": 1e-2, "contrastive_head": 1e-2, "contrastive_tuning": 0.3}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return the directory with the traces of this code."""
    folder = tmp_path_factory.mktemp("traces")
    root = traces.GOLDEN.parent.parent
    command = [sys.executable, "-m", "tests.traces", str(folder)]
    subprocess.run(command, cwd=root, env=runtime.original_environment(), check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("mode", traces.TRACES)
def test_golden_trace(found, mode):
    texts = [(folder / traces.name_of(mode)).read_text(encoding="utf-8") for folder in (found, traces.GOLDEN)]
    if texts[0].splitlines()[0] == texts[1].splitlines()[0]:  # the same processor
        assert texts[0] == texts[1]
    else:
        numbers = [np.loadtxt(text.splitlines()) for text in texts]
        assert numbers[0].shape == (traces.NUM_STEPS, 4)
        np.testing.assert_allclose(*numbers, rtol=RELATIVE_OF.get(mode, RELATIVE))
