"""Training gives the numbers that it always gave; see `traces.py`."""

import subprocess
import sys

import numpy as np
import pytest

import runtime
from tests import traces

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return the directory with the traces of this code."""
    folder = tmp_path_factory.mktemp("traces")
    root = traces.GOLDEN.parent.parent
    command = [sys.executable, "-m", "tests.traces", str(folder)]
    subprocess.run(command, cwd=root, env=runtime.original_environment(), check=True)
    return folder


@pytest.mark.parametrize("mode", traces.MODES)
def test_golden_trace(found, mode):
    texts = [(folder / traces.name_of(mode)).read_text(encoding="utf-8") for folder in (found, traces.GOLDEN)]
    if texts[0].splitlines()[0] == texts[1].splitlines()[0]:  # the same processor
        assert texts[0] == texts[1]
    else:  # other instructions add up in another order; 20 updates make roundings larger
        numbers = [np.loadtxt(text.splitlines()) for text in texts]
        assert numbers[0].shape == (traces.NUM_STEPS, 4)
        np.testing.assert_allclose(*numbers, rtol=1e-3)
