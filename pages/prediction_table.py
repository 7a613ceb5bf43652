"""Tables of predictions, written whole; what is done is kept beside them, so that a stopped command resumes."""

import contextlib
import dataclasses
import errno
import fcntl
import filecmp
import hashlib
import importlib.util
import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
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
_MOVES = b'"moves"'
_MOST_HEADER = 64  # bytes of a table that are read, to see whether it is one


def fingerprint(words: Sequence[object], run: str | Path, config, class_names: list[str]) -> str:
    """Return a digest of a command and its classifier, for `Progress`.

    Args:
        words: of the command.
    """
    about = weight_files.resolve(run).stat()
    values = [*map(str, words), about.st_size, about.st_mtime_ns, config.dump(), *class_names]
    return _digest(json.dumps(values))


def digest_of_photos(source: Source) -> str:
    """Return a digest of the list of photos; their contents are taken to be unchanged while their paths are."""
    paths = map(str, (source.path(index) for index in range(len(source))) if source.path(0) is not None else ())
    return _digest("\n".join([str(source.origin), str(len(source)), *paths]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Progress:
    """Batches of predictions that are done, in a file beside the table: a line per batch.

    Args:
        out: the table.
        fingerprint: of the command; a file of another one is begun again.

    Attributes:
        done: photos whose predictions are there.
        moves: the table is written, and photos are being moved, so the list of photos has changed.
    """

    def __init__(self, out: Path, fingerprint: str):
        self._file, self.done, self.moves = out.with_name(f".{out.name}.progress"), 0, False
        self._header: dict[str, object] = {"command": fingerprint}
        try:
            self._opened = os.fdopen(files.open_lock_file(self._file), "r+b")
            fcntl.flock(self._opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"-out {out}: is being written by another process") from error
        except OSError as error:
            raise UserError(f"{self._file}: cannot be written: {error.strerror or error}") from error
        end, size = 0, os.fstat(self._opened.fileno()).st_size
        for number, start, line in files.iterate_lines(self._opened, _LONGEST_LINE):
            if start + len(line) == size:  # not written whole
                break
            if number == 1:
                self._header = _header_of(line)
                if self._header.get("command") != fingerprint:
                    break
            elif line == _MOVES:
                self.moves = True
            else:
                rows = _rows_of(line)
                if rows is None:
                    break
                self.done += len(rows)
            end = start + len(line) + 1
        self._opened.truncate(end)
        self._opened.seek(end)
        if not end:
            self._begin({"command": fingerprint})

    def _begin(self, header: dict[str, object]) -> None:
        self._header, self.done, self.moves = header, 0, False
        self._opened.seek(0)
        self._opened.truncate()
        self._opened.write(json.dumps(header).encode() + b"\n")
        self._opened.flush()

    def keep_for(self, photos: str) -> None:
        """Begin again unless what is done is of these photos; see `digest_of_photos`."""
        if self._header.get("photos") != photos:
            self._begin({"command": self._header["command"], "photos": photos})

    def begin_moves(self) -> None:
        """Note that the table is written, before the first photo is moved."""
        if not self.moves:
            self._opened.write(_MOVES + b"\n")
            self._opened.flush()
            os.fsync(self._opened.fileno())
            self.moves = True

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
                if line != _MOVES:
                    yield from _rows_of(line)

    def finish(self) -> None:
        """Delete the file, after the table is written."""
        self._file.unlink()
        self._opened.close()


def _header_of(line: bytes) -> dict[str, object]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _rows_of(line: bytes) -> list[Prediction] | None:
    """Return the predictions of a batch; None if its line was not written whole."""
    try:
        rows = [Prediction(*row) for row in json.loads(line)]
        return rows if all(row.error or row.classes for row in rows) else None
    except (ValueError, TypeError):
        return None


def check_out(path: str | Path, inputs: list[str | Path]) -> Path:
    """Return the path of a table if it can be written.

    Raises:
        UserError: if it is another kind of file, an input, or there and not a table of predictions.
    """
    out = results.new_file(path, *SUFFIXES, inputs=inputs)
    if out.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"-out {out}: Parquet needs pyarrow: pip install pyarrow; or choose .csv or .jsonl")
    if os.path.lexists(out) and not _is_table(out):
        raise UserError(f"-out {out}: exists, and is not a table of predictions; choose another name, or delete it")
    return out


def _is_table(file: Path) -> bool:
    with files.reading(file, "a table"), files.open_file(file) as opened:
        start = opened.read(_MOST_HEADER)
    if file.suffix.lower() == ".parquet":
        return start[:4] == b"PAR1"
    return start.startswith((b"file,class_1,probability_1", b'{"file": ')) or not start


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


def folder_names(class_names: Sequence[str]) -> dict[str, str]:
    """Return the name of a folder for each class; different classes have different ones."""
    found: dict[str, str] = {}
    for number, class_name in enumerate(class_names):
        name = _NO_NAME.sub("_", class_name).strip()[:100]
        name = f"_{name}" if name.startswith(".") or not name else name
        found.setdefault(class_name, f"{name}-{number}" if name in found.values() else name)
    return found


class Mover:
    """Moves photos into a folder per class; no file is replaced, and each move is recorded before it is made.

    Args:
        folder: of the folders of classes.
        record: file that gets a line of JSON, [from, to], for each move.
        class_names: of the classifier.
    """

    def __init__(self, folder: Path, record: Path, class_names: Sequence[str]):
        self._folder, self._record, self._names = folder, record, folder_names(class_names)
        try:
            self._opened = os.fdopen(files.open_lock_file(record), "r+b")
        except OSError as error:
            raise UserError(f"{record}: cannot be written: {error.strerror or error}") from error
        lines = (_header_pair(line) for _, _, line in files.iterate_lines(self._opened, _LONGEST_LINE))
        self._begun = dict(pair for pair in lines if pair is not None)
        self._opened.seek(0, os.SEEK_END)

    def run(self, rows: Iterator[Prediction]) -> int:
        """Move photos, and return how many were; one that has gone, or is in its folder, stays out of it."""
        return sum(self._move(Path(row.file), self._names[row.classes[0]]) for row in rows if not row.error)

    def _move(self, source: Path, name: str) -> bool:
        folder = self._folder / name
        if not os.path.lexists(source) or source.parent.resolve() == folder.resolve():
            return False
        try:
            begun = self._begun.get(str(source))
            if begun and Path(begun).is_file() and filecmp.cmp(source, begun, shallow=False):  # it was killed there
                source.unlink()
                return True
            folder.mkdir(parents=True, exist_ok=True)
            target = next(path for path in _free_names(folder, source) if not os.path.lexists(path))
            self._opened.write(json.dumps([str(source), str(target)]).encode() + b"\n")
            self._opened.flush()
            _move_file(source, target)
        except OSError as error:
            raise UserError(f"-move: {source} cannot be moved to {folder}: {error.strerror or error}") from error
        return True


def _header_pair(line: bytes) -> tuple[str, str] | None:
    with contextlib.suppress(ValueError, TypeError):
        source, target = json.loads(line)
        return str(source), str(target)
    return None


def _free_names(folder: Path, source: Path) -> Iterator[Path]:
    yield folder / source.name
    for number in itertools.count(2):
        yield folder / f"{source.stem}-{number}{source.suffix}"


def _move_file(source: Path, target: Path) -> None:
    """Move a file whole or not at all, also to another file system; a link leads where it led."""
    if source.is_symlink():
        target.symlink_to(os.path.join(os.path.abspath(source.parent), os.readlink(source)))
    else:
        try:
            os.rename(source, target)
            return
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
        with atomic.replacing(target) as temporary:
            shutil.copy2(source, temporary)
    try:
        source.unlink()
    except OSError:  # a disk that is only read
        target.unlink()
        raise
