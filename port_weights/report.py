"""What a port of weights has done, for the user."""

import dataclasses
from pathlib import Path

from errors import abridge


@dataclasses.dataclass
class Report:
    """The result of porting a file; `str()` returns the lines that the command prints.

    `architecture` is that of an image model, a text tower or both, see `storage/`.
    """

    source: Path
    family: str
    architecture: object
    heads_from: str
    mapped: int
    num_elements: int
    dtypes: list[str]
    dropped: dict[str, str]
    notes: list[str]
    written: list[Path]
    sha256: str

    def __str__(self) -> str:
        lines = [
            f"{self.source}: {self.family}",
            f"  content       {self.architecture.content}",
            f"  architecture  {self.architecture}",
            f"  heads         {self.heads_from}",
            f"  mapped        {self.mapped} tensors, {self.num_elements:,} numbers, {', '.join(self.dtypes)}",
        ]
        reasons = sorted(set(self.dropped.values()))
        for reason in reasons:
            dropped = [name for name, why in self.dropped.items() if why == reason]
            lines.append(f"  dropped       {abridge(dropped, 4)}: {reason}")
        if not reasons:
            lines.append("  dropped       nothing")
        lines.append("  missing       nothing")
        lines += [f"  note          {note}" for note in self.notes]
        lines.append(f"  source sha256 {self.sha256}")
        lines += [f"wrote {path}" for path in self.written]
        return "\n".join(lines)
