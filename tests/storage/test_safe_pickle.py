"""Pickles: nothing is run, nothing is hashed for ever, memory has a budget."""

import io

import pytest

from errors import UserError
from storage import safe_pickle

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


def test_nested_keys_of_any_instruction_do_not_hang(tmp_path):
    from storage import safe_pickle

    nested = b")" + b"2\x86" * 60
    for name, content in (
        ("dict", b"\x80\x02(" + nested + b"K\x01d."),
        ("setitem", b"\x80\x02}" + nested + b"K\x01s."),
        ("setitems", b"\x80\x02}(" + nested + b"K\x01u."),
        ("tuple of a dict", b"\x80\x02(" + nested + b"K\x01dK\x02\x86."),
    ):
        (tmp_path / "a.pdparams").write_bytes(content)
        with pytest.raises(UserError, match="entry whose name is a tuple"):
            safe_pickle.load(tmp_path / "a.pdparams", name)


def test_a_text_that_is_used_again_and_again_has_a_price(tmp_path):
    from storage import safe_pickle

    text = b"X" + (1 << 20).to_bytes(4, "little") + b"\x00" * (1 << 20)
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01bt\x52"
    state = (
        b"(K\x01(J" + (1 << 20).to_bytes(4, "little") + b"tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR\x89" + text + b"tq\x01"
    )
    content = b"\x80\x02]" + array + state + b"ba" + (array + b"h\x01ba") * 20 + b"."
    (tmp_path / "a.pdparams").write_bytes(content)
    with pytest.raises(UserError, match="makes more of its bytes than plain data needs"):
        safe_pickle.load(tmp_path / "a.pdparams", "a")


def test_a_set_of_nested_tuples_is_never_hashed():
    """(x, x) of itself, 60 times: a hash of it would take for ever."""
    doubled = b"".join(b"\x94h" + bytes([number]) + b"\x86" for number in range(60))
    data = b"\x80\x04\x8f(" + b")" + doubled + b"\x90."
    (value,) = safe_pickle.load(io.BytesIO(data), "x")
    assert value[0] is value[1]
