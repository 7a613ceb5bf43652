"""Sums of the files in a directory, so that damage is noticed: `manifest.json` with size and SHA-256 of each."""

import hashlib
import json
from pathlib import Path

from errors import UserError
from storage.files import is_a, open_file, read_json
from storage.run_files import MANIFEST_FILE

NAME = MANIFEST_FILE


def write(directory: Path) -> None:
    """Write the sums of all files that are there."""
    sums = {
        path.name: {"size": path.stat().st_size, **digests(path, "sha256")}
        for path in sorted(directory.iterdir())
        if path.is_file() and path.name != NAME
    }
    (directory / NAME).write_text(json.dumps(sums, indent=1), encoding="utf-8")


def find_damage(directory: Path, only: str | None = None) -> str | None:
    """Return what is wrong with a directory's files, or with one of them; None if nothing is, or without a manifest."""
    file = directory / NAME
    if not file.is_file():
        return None
    try:
        sums = read_json(file)
    except UserError:
        return f"{file} is damaged"
    wanted = {name: (entry["size"], entry["sha256"]) for name, entry in sums.items() if _is_sum(entry)}
    if len(wanted) < len(sums) or any(Path(name).name != name for name in wanted):
        return f"{file} is damaged"
    for name, (size, sha256) in wanted.items():
        path = directory / name
        if only not in (None, name):
            continue
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size:,} bytes instead of {size:,}"
        if digests(path, "sha256")["sha256"] != sha256:
            return f"{path} is damaged: its SHA-256 sum is another than when it was written"
    return None


def _is_sum(entry: object) -> bool:
    return isinstance(entry, dict) and is_a(entry.get("size"), int) and isinstance(entry.get("sha256"), str)


def digests(path: Path, *algorithms: str) -> dict[str, str]:
    """Return hexadecimal sums of a file by algorithm ("sha256", "md5"), from one reading of it."""
    sums = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with open_file(path) as file:
        while chunk := file.read(1 << 20):
            for digest in sums.values():
                digest.update(chunk)
    return {name: digest.hexdigest() for name, digest in sums.items()}
