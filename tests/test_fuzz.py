"""Readers of users' files get generated and mutated bytes; see fuzz_targets.py."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.fuzz_targets import Targets

NAMES = ("list", "config", "checkpoint")
# Pieces that are likely to mean something to a reader.
WORDS = st.sampled_from(
    b"DATA MODEL. IMAGE_SIZE BASE None : - [ { &a *a !!int -1 0 0x nan 1e999 2001-99-99 true ../ / \\ \" '".split()
    + [b"TRAIN:\n  ", b"!!python/name:os.system ", b'{"step": ', b'"best": ', b"9" * 20, b"9" * 5000, b"a" * 300]
    + [b" ", b"\n", b"\r", b"\0", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8"]
)


@pytest.fixture(scope="module")
def targets():
    return Targets()


@pytest.mark.parametrize("name", NAMES)
def test_good_files_are_read(targets, name):
    for seed in targets.seeds(name):
        targets.all()[name](seed)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_other_bytes_are_an_error_for_the_user(targets, name, data):
    kind = data.draw(st.sampled_from(["words", "bytes", "mutated"]))
    if kind == "mutated":
        content = bytearray(data.draw(st.sampled_from(targets.seeds(name))))
        for _ in range(data.draw(st.integers(1, 4))):
            start = data.draw(st.integers(0, len(content)))
            end = data.draw(st.sampled_from([start, start + 1, len(content)]))
            content[start:end] = data.draw(WORDS | st.binary(max_size=3))
        content = bytes(content)
    elif kind == "words":
        content = bytes([data.draw(st.integers(0, 5))]) + b"".join(data.draw(st.lists(WORDS, max_size=8)))
    else:
        content = data.draw(st.binary(max_size=200))
    targets.all()[name](content)
