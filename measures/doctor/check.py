"""What a check found, and whether it is within its limit."""

import dataclasses
import math
from pathlib import Path

PASS, FAIL, NOT_APPLICABLE = "pass", "FAIL", "n. a."


@dataclasses.dataclass(frozen=True)
class Check:
    """A row of the doctor's table.

    Attributes:
        name: what was checked.
        status: PASS, FAIL or NOT_APPLICABLE.
        found: the figure, or why there is none.
        limit: what it must be.
        advice: what to do if it failed.
        values: figures for doctor.json, by names with units.
    """

    name: str
    status: str
    found: str
    limit: str = ""
    advice: str = ""
    values: dict[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is examined.

    Attributes:
        device: as -device takes it; None: the default one.
        nproc: ranks.
        folder: for temporary files.
    """

    device: str | None
    nproc: int
    folder: Path


def assess(name: str, holds: bool, found: str, limit: str, advice: str, **values: object) -> Check:
    """Return a check that passed if it holds."""
    odd = {key: str(value) for key, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
    return Check(name, PASS if holds else FAIL, found, limit, "" if holds else advice, values | odd)  # JSON has no NaN


def not_applicable(name: str, why: str) -> Check:
    """Return a check that says nothing on this machine."""
    return Check(name, NOT_APPLICABLE, why)
