"""Users' files: kinds, sizes, texts, JSON and arrays."""

import io
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from errors import UserError
from storage import files, safe_pickle, torch_file, weight_files
from storage.files import read_arrays, read_file, read_json, read_lines, read_records, reading
from storage.manifest import digests

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


def test_what_is_not_a_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for path in (tmp_path / "pipe.json", tmp_path):
        with pytest.raises(UserError, match="not a regular file"):
            read_json(path)
    os.mkfifo(tmp_path / "w.pdparams")
    readers = (read_records, weight_files.read, torch_file.read, safe_pickle.load, lambda file: digests(file, "md5"))
    for read in readers:
        with pytest.raises((UserError, OSError), match="not a regular file"):
            read(tmp_path / "w.pdparams")
    with pytest.raises(UserError, match="-list .*none.txt: No such file"):
        read_lines(tmp_path / "none.txt", "-list ")
    with pytest.raises(OSError, match="not a regular file"):
        read_file("/dev/zero")


def test_a_file_of_a_terabyte_is_refused_without_reading_it(tmp_path):
    for name in ("a.json", "a.npz", "a.txt"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(1 << 40)  # a hole, which takes no disk
    for read in (lambda: read_json(tmp_path / "a.json"), lambda: read_arrays(tmp_path / "a.npz", "delete it")):
        with pytest.raises(UserError, match="has 1,099,511,627,776 bytes, and at most 1,073,741,824 are sane"):
            read()
    with pytest.raises(UserError, match="are sane"):
        read_lines(tmp_path / "a.txt")


def test_reading_a_small_file_takes_little_memory(tmp_path):
    (tmp_path / "small.json").write_text("{}")
    tracemalloc.start()
    assert read_json(tmp_path / "small.json") == {}
    assert read_file("/proc/version")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_deep_json_and_other_values_are_refused(tmp_path):
    file = tmp_path / "a.json"
    for text, why in (
        ('{"a": ' * 99999, "RecursionError"),
        ("[1]", "holds a list, where an object is expected"),
        ('{"a": true}', "damaged, its a is True"),
        ("{}", "damaged, its a is missing"),
        ("\xff\xfe{", "save it as UTF-8"),
    ):
        file.write_bytes(text.encode("latin1"))
        with pytest.raises(UserError, match=f"{why}.*; delete it"):
            read_json(file, {"a": int}, advice="delete it")


def test_arrays_that_claim_much_are_refused(tmp_path):
    file = tmp_path / "index.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(1 << 20, np.int64))
        archive.writestr("image.npy", buffer.getvalue())
    with pytest.raises(UserError, match="compressed, or its sizes are wrong"):
        read_arrays(file, "delete it")


def test_a_text_may_have_a_mark_and_any_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\rtwo \n\n three")
    assert read_lines(tmp_path / "a.txt") == ["one", "two", "three"]
    with open(tmp_path / "a.txt", "rb") as file:
        lines = [(number, line) for number, _, line in files.iterate_lines(file, 100)]
    assert lines == [(1, b"one"), (2, b""), (3, b"two "), (4, b""), (5, b" three")]


def test_errors_of_a_reader_name_the_file_once(tmp_path):
    with pytest.raises(UserError) as error, reading("outer", "a list"), reading("inner", "an image"):
        raise KeyError("x")
    assert str(error.value) == "inner: cannot be read as an image (KeyError: 'x')"
