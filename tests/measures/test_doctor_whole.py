"""The doctor's command, whole, on two ranks."""

import json
import re

import pytest

from measures.doctor import sections
from measures.doctor.check import NOT_APPLICABLE, PASS
from tools import doctor


@pytest.mark.slow
def test_the_whole_on_two_ranks(tmp_path, capfd):
    assert doctor.main(["-device", "cpu", "-nproc", "2", "-out", str(tmp_path)])
    content = json.loads((tmp_path / "doctor.json").read_text())
    checks = [check for own in content["sections"].values() for check in own]
    assert set(content["sections"]) == set(sections.TITLES.values())
    assert {check["status"] for check in checks} == {PASS, NOT_APPLICABLE}
    assert sum(check["status"] == PASS for check in checks) >= 26 - 1  # MKL on AMD
    assert "killed after" in (tmp_path / "doctor.html").read_text()
    assert "0 failed" in capfd.readouterr().out
    assert doctor.main(["-show", str(tmp_path / "doctor.json")])
    assert re.search(r"\| cpu \| \d.* \| 2 \| \d+, 0 \| .*images_per_sec \d+", capfd.readouterr().out)
