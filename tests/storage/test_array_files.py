"""Arrays in .npz files: claims about sizes."""

import io
import zipfile

import numpy as np
import pytest

from errors import UserError
from storage.array_files import read_arrays

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


def test_an_index_that_claims_much_is_refused(tmp_path):
    file = tmp_path / "index.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(1 << 20, np.int64))
        archive.writestr("image.npy", buffer.getvalue())
    with pytest.raises(UserError, match="compressed, or its sizes are wrong"):
        read_arrays(file, 1 << 30, "delete it")
