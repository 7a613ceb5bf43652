"""The sections of the doctor: each runs in a process of its own, so that one that crashes does not end the others.

python -m measures.doctor.sections RESULT.json FOLDER NPROC DEVICE SECTION [ARGUMENT ...]     one section
"""

import runtime

if __name__ == "__main__":
    runtime.prepare()

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measures.doctor import children
from measures.doctor.check import FAIL, Case, Check

TITLES = {
    "machine": "Machine",
    "numerics": "Numbers, against float64 on CPU",
    "kernels": "Kernels that ran",
    "speed": "Speed and memory",
    "waiting": "Speed and memory",
    "ranks": "Ranks and data",
    "loader": "Ranks and data",
    "crash": "Killed and resumed",
}
_LONGEST_SECS = {"speed": 180}
_LONGEST_SECS_ELSE = 300


def run_all(case: Case, say: Callable[[Check], None]) -> dict[str, list[Check]]:
    """Run all sections, and return their checks by title; `say` gets each as it comes."""
    found: dict[str, list[Check]] = {}
    for arguments in _plan(found):
        title = TITLES[arguments[0]]
        for check in run_section(case, arguments):
            found.setdefault(title, []).append(check)
            say(check)
    return found


def _plan(found: dict[str, list[Check]]) -> Iterator[list[str]]:
    """Yield the arguments of each section, of which some follow from what those before it have found."""
    yield ["machine"]
    devices = [check.values.get("device", "") for check in found.get(TITLES["machine"], ())]
    on_gpu = any(str(name).startswith("gpu") for name in devices)
    yield from (["numerics"], ["kernels"])
    recipes, batches = _GPU if on_gpu else _CPU
    yield from (["speed", recipe, str(batch)] for recipe in recipes for batch in batches)
    yield ["waiting", str(on_gpu)]
    yield ["ranks"]
    timed = [check for check in found.get(TITLES["speed"], ()) if check.name.startswith(recipes[0])]
    rates = [check.values["images_per_sec"] for check in timed if "images_per_sec" in check.values]
    yield ["loader", recipes[0], str(max(rates, default=0.0))]
    yield ["crash"]


_GPU = (("vit_base_patch16_224_pretrain", "vit_base_patch16_224_finetune"), (64, 128, 256, 512))
_CPU = (("vit_micro_patch4_32_pretrain", "vit_micro_patch4_32_finetune"), (64,))


def run_section(case: Case, arguments: list[str]) -> list[Check]:
    """Run a section in a process of its own; a section that fails is a check that failed."""
    result = case.folder / "section.json"
    result.unlink(missing_ok=True)
    words = [str(result), str(case.folder), str(case.nproc), case.device or "", *arguments]
    longest = _LONGEST_SECS.get(arguments[0], _LONGEST_SECS_ELSE)
    started = time.monotonic()
    log = case.folder / "section.log"
    log.unlink(missing_ok=True)
    try:
        command = runtime.module_command("measures.doctor.sections", *words)
        code = children.run(command, log, longest, env=runtime.module_environment())
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = f"exit code {code}: {(lines or ['it says nothing'])[-1]}"
    except subprocess.TimeoutExpired:
        reason = f"not done after {longest} s"
    if result.is_file():
        return [Check(**values) for values in json.loads(result.read_text(encoding="utf-8"))]
    secs, advice = time.monotonic() - started, "what the last line says; report doctor.json"
    return [Check(f"section {' '.join(arguments[:3])}", FAIL, reason[:400], "runs to its end", advice, {"secs": secs})]


def examine(case: Case, section: str, *arguments: str) -> list[Check]:
    """Do the checks of a section in this process."""
    from measures.doctor import kernels_run, machine, numerics, ranks, runs, speed
    from training.device import set_device

    if section not in ("waiting", "ranks", "loader", "crash"):  # whose processes choose it
        set_device(case.device)
    work = {
        "machine": lambda: machine.examine(case),
        "numerics": lambda: numerics.examine(case),
        "kernels": lambda: kernels_run.examine(case),
        "speed": lambda: speed.examine(case, arguments[0], int(arguments[1])),
        "waiting": lambda: runs.examine_waiting(case, arguments[0] == "True"),
        "ranks": lambda: ranks.examine(case),
        "loader": lambda: ranks.examine_loader(case, arguments[0], float(arguments[1])),
        "crash": lambda: runs.examine_crash(case),
    }
    return work[section]()


def main(result: str, folder: str, nproc: str, device: str, section: str, *arguments: str) -> None:
    """Write the checks of a section into a file."""
    checks = examine(Case(device or None, int(nproc), Path(folder)), section, *arguments)
    text = json.dumps([dataclasses.asdict(check) for check in checks])
    Path(result).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
