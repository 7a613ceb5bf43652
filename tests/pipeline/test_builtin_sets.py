"""CIFAR archives: labels and pixels of another kind, and sizes."""

import gzip
import pickle
import tarfile

import numpy as np
import pytest

import datasets
from errors import UserError
from pipeline import builtin_sets

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


def cifar(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir(exist_ok=True)
    batch = {b"data": np.zeros((4, 3072), np.uint8), b"labels": [0, 1, 2, 3]}
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    return datasets.open_source("cifar10", str(tmp_path), "val", num_classes=10)


@pytest.mark.parametrize(
    "labels", [[0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 10], [0, 1, 2, -1], [0, 1, 2, 2.5], ["0"] * 4, 7, None]
)
def test_cifar_labels_of_another_number_or_kind_are_refused(tmp_path, labels):
    assert len(cifar(tmp_path)) == 4
    with pytest.raises(UserError, match="not the published python version"):
        cifar_with(tmp_path, b"labels", labels)


def cifar_with(tmp_path, key, value):
    folder = tmp_path / "cifar-10-batches-py"
    batch = pickle.loads((folder / "test_batch").read_bytes())
    batch[key] = value
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    return datasets.open_source("cifar10", str(tmp_path), "val", num_classes=10)


@pytest.mark.parametrize("data", [np.zeros((4, 3071), np.uint8), np.zeros((4, 3072)), [1, 2], None])
def test_cifar_pixels_of_another_kind_are_refused(tmp_path, data):
    cifar(tmp_path)
    with pytest.raises(UserError, match="not the published python version"):
        cifar_with(tmp_path, b"data", data)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_an_archive_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(builtin_sets, "_MOST_ARCHIVE_BYTES", 8 << 20)
    member = tarfile.TarInfo("cifar-10-batches-py/filler")
    member.size, member.type = 64 << 20, kind
    with gzip.open(tmp_path / "cifar-10-python.tar.gz", "wb", compresslevel=1) as file:
        file.write(member.tobuf())
        for _ in range(64):
            file.write(bytes(1 << 20))
    with pytest.raises(UserError, match="unpacks to more than 8 MiB") as caught:
        datasets.open_source("cifar10", str(tmp_path), "val", num_classes=10)
    assert "\n" not in str(caught.value)
