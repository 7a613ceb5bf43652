"""Weight files: what is read, what is named, and what is left in the file."""

import pickle
import zipfile

import numpy as np
import pytest

from errors import UserError
from storage import weight_files

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


def test_a_storage_key_of_references_does_not_hang(tmp_path):
    from storage import weight_files

    memo = b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(50))
    pickled = b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
    pickled += b"ctorch\nFloatStorage\n"
    pickled += b"]q\x00" + memo + b"X\x03\x00\x00\x00cpuK\x01tQK\x00(K\x01t(K\x01t\x89ccollections\nOrderedDict\n)RtRs."
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    with pytest.raises(UserError, match="a.pth"):
        weight_files.read(tmp_path / "a.pth")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_beside_weights_are_counted(tmp_path, protocol):
    values = {"w": np.zeros((2, 3), np.float32), "epochs": {1, 2}, "frozen": frozenset("a"), "z": 1 + 2j}
    values |= {"raw": bytearray(b"xy"), "steps": np.zeros(3, np.uint16), "phase": np.zeros(2, np.complex64)}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(values, protocol))
    file = weight_files.read(tmp_path / "w.pdparams")
    assert set(file.tensors) == {"w", "steps", "phase"}
    assert set(file.others) == {"epochs", "frozen", "z", "raw"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_array_that_two_entries_share_is_in_both(tmp_path, protocol):
    shared = np.ones((2, 3), np.float32)
    values = {"a": shared, "b": shared, "c": np.zeros(2, np.float32), "d": shared, "blob": bytearray(2 << 20)}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(values, protocol))
    file = weight_files.read(tmp_path / "w.pdparams")
    assert all(np.array_equal(file.tensors[name].read(), shared) for name in "abd")
    assert file.others == ("blob",)


def test_large_arrays_stay_in_their_file(tmp_path):
    large = np.random.default_rng(0).normal(size=(1000, 1000)).astype(np.float32)
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({"small": large[:2], "large": large}, 4))  # as we write them
    file = weight_files.read(tmp_path / "w.pdparams")
    assert np.array_equal(file.tensors["large"].read(), large)
    (tmp_path / "w.pdparams").write_bytes(b"")
    with pytest.raises(UserError, match="cut while it was read"):
        file.tensors["large"].read()
    (tmp_path / "w.pdparams").unlink()
    with pytest.raises(UserError, match="was there a moment ago"):
        file.tensors["large"].read()


@pytest.mark.parametrize("entry", ["module", "ema", "teacher", "net"])
def test_the_entry_that_holds_the_weights_is_named(tmp_path, entry):
    values = {entry: {"w": np.zeros(3, np.float32)}, "epoch": 3}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(values))
    with pytest.raises(UserError, match=f"weights are under {entry}: python -m port_weights .* -entry {entry}"):
        weight_files.read(tmp_path / "w.pdparams")
