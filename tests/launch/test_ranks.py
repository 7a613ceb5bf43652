"""Ends of ranks, in words and exit codes."""

import signal

import pytest

from launch import launcher


@pytest.mark.parametrize(
    ("killed", "note", "code", "said"),
    [
        (("0", signal.SIGABRT), "1-1-1", 1, "rank 1 failed first:\nits traceback"),  # rank 0 lost its peer
        (("0", signal.SIGABRT), None, 134, "error: rank 0 was ended by SIGABRT"),
        (("1", signal.SIGKILL), "1-0-1", 137, "error: rank 1 was ended by SIGKILL"),  # rank 0 lost its peer
        (("1", signal.SIGSEGV), "1-1-1", 1, "rank 1 failed first:\nits traceback"),
        (None, None, 134, "error: a rank was ended by SIGABRT"),
    ],
)
def test_the_first_end_is_told(tmp_path, capsys, killed, note, code, said):
    if note is not None:
        (tmp_path / note).write_text("its traceback")
    assert launcher._report_end(tmp_path, 134, [], [], killed) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("code", "told"), [(0, 0), (1, 1), (75, 75), (247, 137), (250, 134), (-9, 137), (-15, 143)])
def test_exit_codes_are_those_of_a_shell(code, told):
    assert launcher._shell_code(code) == told
