"""Tables of predictions, written whole; what is done is kept beside them, so that a stopped command resumes."""

import dataclasses
import fcntl
import hashlib
import importlib.util
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from errors import UserError
from measures.prediction import Prediction
from pages import tables
from pipeline.sources import Source
from storage import atomic, files, results, weight_files

SUFFIXES = (".csv", ".jsonl", ".parquet")
_LONGEST_LINE = 1 << 28  # bytes, of a batch
_ROWS_AT_ONCE = 4096
_NO_NAME = re.compile(r"[/\0]")


def fingerprint(run: str | Path, config, class_names: list[str], source: Source, topk: int) -> str:
    """Return a digest of everything that the predictions depend on, for `Progress`.

    Files are taken to be unchanged while their paths, and the size and time of the weights, are.
    """
    digest, about = hashlib.sha256(), weight_files.resolve(run).stat()
    digest.update(json.dumps([about.st_size, about.st_mtime_ns, config.dump(), class_names, topk]).encode())
    digest.update(f"{source.origin} {len(source)}".encode("utf-8", "surrogateescape"))
    if source.path(0) is not None:
        for index in range(len(source)):
            digest.update(os.fsencode(source.path(index)) + b"\n")
    return digest.hexdigest()


class Progress:
    """Batches of predictions that are done, in a file beside the table: a line per batch.

    Args:
        out: the table.
        fingerprint: of everything that the predictions depend on; a file of another one is begun again.

    Attributes:
        done: photos whose predictions are there.
    """

    def __init__(self, out: Path, fingerprint: str):
        self._file, self.done = out.with_name(f".{out.name}.progress"), 0
        try:
            self._opened = os.fdopen(files.open_lock_file(self._file), "r+b")
            fcntl.flock(self._opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"-out {out}: is being written by another process") from error
        except OSError as error:
            raise UserError(f"{self._file}: cannot be written: {error.strerror or error}") from error
        end, size = 0, os.fstat(self._opened.fileno()).st_size
        for number, start, line in files.iterate_lines(self._opened, _LONGEST_LINE):
            rows = _rows_of(line) if number > 1 else [] if line == fingerprint.encode() else None
            if rows is None or start + len(line) == size:  # other photos, or not written whole
                break
            self.done, end = self.done + len(rows), start + len(line) + 1
        self._opened.truncate(end)
        self._opened.seek(end)
        if not end:
            self._opened.write(fingerprint.encode() + b"\n")

    def add(self, batch: list[Prediction]) -> None:
        """Note the predictions of a batch."""
        try:
            self._opened.write(json.dumps([list(dataclasses.astuple(row)) for row in batch]).encode() + b"\n")
            self._opened.flush()
        except OSError as error:
            raise UserError(f"{self._file}: cannot be written: {error.strerror or error}") from error
        self.done += len(batch)

    def rows(self) -> Iterator[Prediction]:
        """Yield all predictions that are done."""
        self._opened.flush()
        with files.open_file(self._file) as opened:
            for _, _, line in itertools.islice(files.iterate_lines(opened, _LONGEST_LINE), 1, None):
                yield from _rows_of(line)

    def finish(self) -> None:
        """Delete the file, after the table is written."""
        self._file.unlink()
        self._opened.close()


def _rows_of(line: bytes) -> list[Prediction] | None:
    """Return the predictions of a batch; None if its line was not written whole."""
    try:
        return [Prediction(*row) for row in json.loads(line)]
    except (ValueError, TypeError):
        return None


def check_out(path: str | Path, inputs: list[str | Path]) -> Path:
    """Return the path of a table if it can be written."""
    out = results.new_file(path, *SUFFIXES, inputs=inputs)
    if out.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"-out {out}: Parquet needs pyarrow: pip install pyarrow; or choose .csv or .jsonl")
    return out


def write(out: Path, rows: Iterator[Prediction], topk: int) -> None:
    """Write a table: a row per photo, with `topk` classes and their probabilities; JSON lines have lists of these."""
    if out.suffix.lower() == ".jsonl":
        with atomic.replacing(out) as temporary, open(temporary, "w", encoding="ascii") as file:
            file.writelines(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)
        return
    columns = [f"{word}_{place}" for place in range(1, topk + 1) for word in ("class", "probability")]
    header, flat = ["file", *columns, "error"], (_flat(row, topk) for row in rows)
    if out.suffix.lower() == ".csv":
        tables.write_csv(out, header, flat)
    else:
        _write_parquet(out, header, flat)


def _flat(row: Prediction, topk: int) -> list[object]:
    pairs = list(zip(row.classes, row.probabilities, strict=True))
    cells = [cell for pair in pairs + [("", None)] * (topk - len(pairs)) for cell in pair]
    return [row.file, *cells, " ".join(row.error.split())]


def _write_parquet(out: Path, header: list[str], rows: Iterator[list[object]]) -> None:
    import pyarrow
    from pyarrow import parquet

    kinds = [pyarrow.float32() if name.startswith("probability") else pyarrow.string() for name in header]
    schema = pyarrow.schema(list(zip(header, kinds, strict=True)))
    with atomic.replacing(out) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        while part := list(itertools.islice(rows, _ROWS_AT_ONCE)):
            texts = [[_as_utf8(cell) for cell in column] for column in zip(*part, strict=True)]
            writer.write_table(pyarrow.table(texts, schema=schema))


def _as_utf8(cell: object) -> object:
    return cell.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(cell, str) else cell


def move(rows: Iterator[Prediction], folder: Path, record: Path) -> int:
    """Move photos into a folder per class, and return how many; a file is never replaced.

    Args:
        folder: of the folders of classes.
        record: file that gets a line of JSON, [from, to], before each move.
    """
    moved = 0
    with open(record, "a", encoding="ascii") as log:
        for row in rows:
            if row.error or not os.path.lexists(row.file):  # one that is listed twice has gone
                continue
            source = Path(row.file)
            target = folder / folder_name(row.classes[0]) / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            for number in itertools.count(2):
                if not os.path.lexists(target):
                    break
                target = target.with_name(f"{source.stem}-{number}{source.suffix}")
            log.write(json.dumps([str(source), str(target)]) + "\n")
            log.flush()
            shutil.move(source, target)
            moved += 1
    return moved


def folder_name(class_name: str) -> str:
    """Return a class's name as that of a folder."""
    name = _NO_NAME.sub("_", class_name).strip()[:100]
    return f"_{name}" if name.startswith(".") or not name else name
