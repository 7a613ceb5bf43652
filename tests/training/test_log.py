import io
import json

import pytest

from storage.files import read_records
from training.log import RunLog, Throughput

pytestmark = pytest.mark.quick


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    stream = io.StringIO()
    log = RunLog(tmp_path, stream=stream)
    show = log.progress(10, 0)
    show(4, "loss 1.5")
    log.say("two\nlines")
    log.close()
    assert stream.getvalue() == "step 4/10  loss 1.5\ntwo\nlines\n"
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["step 4/10  loss 1.5", "two", "lines"]


def test_a_bar_on_a_terminal(tmp_path):
    stream = Terminal()
    log = RunLog(tmp_path, stream=stream)
    show = log.progress(10, 2)
    show(4, "loss 1.5")
    log.say("saved")
    log.close()
    assert "4/10" in stream.getvalue()
    assert "loss 1.5" in stream.getvalue()
    assert "saved\n" in stream.getvalue()
    assert "loss 1.5" in (tmp_path / "log.txt").read_text(), "the file has what the bar showed"


def test_quiet_without_directory(capsys):
    log = RunLog(None, quiet=True)
    log.say("x")
    log.record("train", 1, {"loss": 1.0})
    log.progress(2, 0)(1, "y")
    assert capsys.readouterr().out == ""


def test_rewind_drops_later_and_torn_records(tmp_path):
    log = RunLog(tmp_path, quiet=True)
    for step in (1, 2, 3):
        log.record("train", step, {"loss": step / 2})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"event": "train", "st')
    log.rewind(2)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert records == [{"event": "train", "step": step, "loss": step / 2} for step in (1, 2)]


def test_throughput(monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = Throughput()
    clock.count(64)
    now = 104.0
    clock.pause(2.0)  # evaluation
    assert clock.rate()[0] == 32.0
    assert clock.eta(2, 2) == "0:00:02"


@pytest.mark.parametrize("bad", ["\0" * 40, '{"event": "train", "st', "[1, 2]", '{"event": 3, "step": 1}', "[" * 9999])
def test_damaged_lines_of_a_log_are_skipped_with_a_note(tmp_path, bad, capsys):
    log = RunLog(tmp_path)
    for step in (1, 2):
        log.record("train", step, {"loss": 0.5})
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write(f"{bad}\n")
    log.record("train", 3, {"loss": 0.25})
    notes = []
    assert [record["step"] for record in read_records(tmp_path / "log.jsonl", notes.append)] == [1, 2, 3]
    assert "1 damaged lines are skipped" in notes[0]
    log.rewind(2)
    assert "1 damaged lines are skipped" in capsys.readouterr().out
    assert [record["step"] for record in read_records(tmp_path / "log.jsonl")] == [1, 2]
