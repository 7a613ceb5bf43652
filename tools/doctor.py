"""Examine this machine: does Paddle compute rightly and fast on its device, and do runs survive here?

    python -m tools.doctor [-device NAME] [-nproc N] [-out doctor]
    python -m tools.doctor -show doctor.json [...]      rows for the table in benchmarks/RESULTS.md

Ten minutes at most on a GPU, and less on CPU. Six sections: the machine; loss, predictions and gradients of small
models of every method against float64; the kernels that ran; images per second and memory; sums over ranks and the
loader; a run that is killed and resumed. A check that fails comes with advice. DIR/doctor.json is there to be attached
to a report, DIR/doctor.html to be looked at. Exit code 1 if a check failed.
"""

import runtime

runtime.prepare()

import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

from arguments import Parser
from errors import UserError
from launch import command_line, launcher
from measures.doctor import sections
from measures.doctor.check import FAIL, NOT_APPLICABLE, PASS, Case, Check
from pages.html import html_paragraph, html_table, write_page
from storage import atomic, results
from storage.files import read_json, reading
from training.device import set_device

_FILES = ("doctor.json", "doctor.html")


def main(argv: list[str] | None = None) -> bool:
    """Print the table, write the files, and return True if nothing failed."""
    parser = Parser(prog="python -m tools.doctor", description=__doc__)
    what = "as in training (default: the first GPU, or the CPU)"
    parser.add("device", what, type=command_line.device_name, metavar="NAME")
    parser.add("nproc", "ranks (default: the GPUs that are visible, or 1 on CPU)", type=int, metavar="N")
    parser.add(
        "out", "new directory for doctor.json and doctor.html (default: doctor)", default="doctor", metavar="DIR"
    )
    parser.add("show", "print rows of a table from files of this tool, and stop", nargs="+", metavar="FILE")
    args = parser.parse_args(argv)
    if args.show:
        return show([Path(file) for file in args.show])
    if args.nproc is not None and not 1 <= args.nproc <= 64:
        raise UserError(f"-nproc {args.nproc}: must be from 1 to 64")
    nproc = args.nproc or max(1, launcher.num_gpus(args.device))
    launcher.check_device(args.device, nproc)
    if args.device is not None:
        set_device(args.device)
    out = results.new_directory(args.out, writes=_FILES)
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
            found = sections.run_all(Case(args.device, nproc, Path(folder)), _print_check)
    except BaseException:
        with contextlib.suppress(OSError):  # other files are in it
            out.rmdir()
        raise
    return report(out, nproc, found, time.monotonic() - started)


def _print_check(check: Check) -> None:
    limit = f"   (limit: {check.limit})" if check.limit else ""
    print(f"{check.status:5} {check.name}: {check.found}{limit}")
    if check.advice:
        print(f"      -> {check.advice}")
    sys.stdout.flush()


def report(out: Path, nproc: int, found: dict[str, list[Check]], secs: float) -> bool:
    """Write doctor.json and doctor.html; returns True if nothing failed."""
    checks = [check for own in found.values() for check in own]
    failed = [check for check in checks if check.status == FAIL]
    skipped = sum(check.status == NOT_APPLICABLE for check in checks)
    passed = len(checks) - len(failed) - skipped
    summary = f"{passed} passed, {len(failed)} failed, {skipped} not applicable, {nproc} rank(s), {secs:.0f} s"
    content = {title: [dataclasses.asdict(check) for check in own] for title, own in found.items()}
    results.claim(out, _FILES)
    text = json.dumps({"nproc": nproc, "secs": round(secs), "failed": len(failed), "sections": content}, indent=1)
    atomic.write_text(out / "doctor.json", text)
    header = ["", "check", "found", "limit", "advice"]
    rows = {"Failed": failed} | found if failed else found
    tables = [
        (title, html_table(header, [[c.status, c.name, c.found, c.limit, c.advice] for c in own]))
        for title, own in rows.items()
    ]
    write_page(out / "doctor.html", "Doctor", [("Summary", html_paragraph(summary)), *tables])
    print(f"\n{summary}; {out / 'doctor.json'}, {out / 'doctor.html'}")
    return not failed


_ROW = {"device": "device", "Paddle": "version"}  # checks, and their values
_FIGURES = ("images_per_sec", "mfu", "gb_per_sec")


def show(files: list[Path]) -> bool:
    """Print a row of figures for each doctor.json; returns True.

    Raises:
        UserError: if a file is none.
    """
    print("| device | Paddle | ranks | passed, failed | figures |\n|---|---|---|---|---|")
    for file in files:
        content = read_json(file, {"sections": dict, "nproc": int})
        with reading(file, "what this tool writes"):
            checks = [Check(**values) for own in content["sections"].values() for values in own]
            about = {check.name: check.values for check in checks}
            cells = [str(about.get(check, {}).get(value, "?")) for check, value in _ROW.items()]
            figures = [
                f"{check.name} {key} {check.values[key]:.3g}"
                for check in checks
                for key in _FIGURES
                if check.values and key in check.values
            ]
        counts = [sum(check.status == status for check in checks) for status in (PASS, FAIL)]
        print(f"| {' | '.join([*cells, str(content['nproc']), '{}, {}'.format(*counts), '; '.join(figures)])} |")
    return True


if __name__ == "__main__":
    command_line.run(lambda: sys.exit(0 if main() else 1))
