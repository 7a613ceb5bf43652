"""The head of a run's page: what was trained, on what, when, and by which command."""

import re
from datetime import datetime
from pathlib import Path

from config import get_config
from storage.run_files import TEXT_LOG_FILE
from strict_config import all_keys

_TIME = "%Y-%m-%d %H:%M:%S"
_STAMP_LETTERS = 19
_FACTS = {  # title: pattern of a line of log.txt
    "parameters": r"([\d,]+ of [\d,]+) parameters train$",
    "data": r"^data: (.*?), \d+ (?:x \d+ )?pixels",
    "train": r"^train: (.*)$",
    "val": r"^val: (.*)$",
    "commit": r"^code: commit (\w+)",
    "Paddle": r"^run directory .*, paddle (\S+ on \S+), ",
}


def facts_of_run(run_dir: Path) -> dict[str, str]:
    """Return what the log of a run says of it, the last mention of each."""
    lines = _read_lines(run_dir)
    found: dict[str, str] = {}
    for title, pattern in _FACTS.items():
        matches = [match for match in (re.search(pattern, text) for _, text in lines) if match]
        if matches:
            found[title] = matches[-1][1]
    times = [time for time, _ in lines if time is not None]
    if times:
        found = {"started": times[0].strftime(_TIME), "took": str(times[-1] - times[0])} | found
    return found


def command_of_run(run_dir: Path) -> str | None:
    """Return the last command by which a run was started; None if its log has none."""
    found = [text.removeprefix("command: ") for _, text in _read_lines(run_dir) if text.startswith("command: ")]
    return found[-1] if found else None


def _read_lines(run_dir: Path) -> list[tuple[datetime | None, str]]:
    try:
        text = (run_dir / TEXT_LOG_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            time = datetime.strptime(line[:_STAMP_LETTERS], _TIME)
        except ValueError:
            time = None
        lines.append((time, line[_STAMP_LETTERS + 1 :]))
    return lines


def settings_of_run(config) -> tuple[list[list[str]], int]:
    """Return [key, default, value] of the settings that differ from the method's defaults, and the number of all."""
    defaults = get_config(None, ["MODEL.TYPE", config.MODEL.TYPE])
    rows = []
    keys = all_keys(config)
    for key in keys:
        own, usual = (_value(node, key) for node in (config, defaults))
        if own != usual:
            rows.append([key, str(usual), str(own)])
    return rows, len(keys)


def _value(node, key: str) -> object:
    for part in key.split("."):
        node = node[part]
    return node
