"""Files and members that are not used: counted and named, by the reason."""

from collections.abc import Iterable
from pathlib import Path

from errors import UserError, printable

_MOST_REASONS = 40


class LeftOut(dict):
    """{reason: [count, name of one of them]}: what is there and is not used."""

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count something; beyond a number of reasons, all others share one."""
        if reason not in self and len(self) >= _MOST_REASONS:
            reason = "are left out for other reasons"
        self.setdefault(reason, [0, printable(name, 80)])[0] += count

    def merge(self, other: "LeftOut") -> None:
        """Add the counts of another part of the data set."""
        for reason, (count, name) in other.items():
            self.add(reason, name, count)

    def notes(self, origin: str | Path, what: str = "members") -> list[str]:
        """Return a line per reason for the user; `what` names the things that were counted."""
        return [f"{origin}: {count:,} {what} {reason}: {name}" for reason, (count, name) in self.items()]


def no_images(origin: str | Path, notes: Iterable[str]) -> UserError:
    """Return the error of a data set without images; the notes say what is there instead."""
    return UserError("; ".join([f"{origin}: no images found", *notes]))
