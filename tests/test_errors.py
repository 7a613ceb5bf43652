"""Text for messages: short, on one line, without control characters."""

import pytest

from errors import escape_controls, printable

pytestmark = [pytest.mark.quick, pytest.mark.usefixtures("soon")]


def test_references_to_references_are_not_written_out():
    nested: object = "x"
    for _ in range(60):
        nested = [nested, nested]
    assert printable(nested) == "a list"


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b31m", "a\rb", "\x07", "\u202egnp.exe", "\udce9"])
def test_names_do_not_steer_the_terminal(text):
    assert escape_controls(f"photo {text}\n").isascii()
    assert escape_controls("Füchse, 狐 and\ttabs\n") == "Füchse, 狐 and\ttabs\n"
