"""Download files into a cache: resumable, checked, and never half there.

The cache keys a file by its whole address, because different files may share their last part. In the folder of an
address lie the file, a record of its size and SHA-256 sum from its first use, and what an interrupted download left.
"""

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import queue
import re
import shutil
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from arguments import user_path
from errors import UserError, printable
from program import terminal
from storage import manifest
from storage.cache import cache_dir
from storage.json_files import read_json
from storage.lock_files import open_lock_file

MIRROR_VARIABLE = "MAE_MIRROR"
_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 5
_TIMEOUT_SECS = 30.0
_ANSWER_SECS = 120.0  # until a server has sent the header of its answer, redirects included
_SLOW_SECS, _SLOW_BYTES = 60.0, 60 << 10  # a download that gets less in that time is given up
_MOST_SECS = 24 * 3600.0  # for one file
_MOST_BYTES = 64 << 30
_RETRY_CODES = (408, 425, 429, 500, 502, 503, 504)


def cache_folder(url: str) -> Path:
    """Return the folder in the cache that belongs to an address."""
    return cache_dir() / hashlib.sha256(url.encode()).hexdigest()[:16]


def is_cached(url: str) -> bool:
    """Return True if the file of an address was downloaded before."""
    record = _read_record(cache_folder(url))
    return record is not None and (cache_folder(url) / record["file"]).is_file()


def mirrored(url: str, file_name: str = "") -> str:
    """Return where to fetch an address from: $MAE_MIRROR/HOST/PATH, if there is a mirror.

    An address with a query has no path that a file could have: it is $MAE_MIRROR/HOST/FILE_NAME.
    """
    mirror = os.environ.get(MIRROR_VARIABLE)
    if not mirror:
        return url
    rest = url.partition("://")[2]
    if "?" in rest:
        rest = f"{rest.partition('/')[0]}/{file_name}"
    return f"{_address(mirror).rstrip('/')}/{rest}"


def fetch(
    url: str,
    file_name: str = "",
    *,
    md5_prefix: str = "",
    most_bytes: int = _MOST_BYTES,
    source: str | None = None,
    check: Callable[[Path], None] | None = None,
    say: Callable[[str], None] = print,
    first_wait_secs: float = 1.0,
) -> Path:
    """Return the file of an address, from the cache or the network.

    Args:
        url: the address, which is the file's identity in the cache.
        file_name: its name there; the last part of the address, if empty.
        md5_prefix: beginning of the MD5 sum that the file must have.
        most_bytes: a larger file is refused.
        source: a local path or another address to take it from, even if the cache has it.
        check: raises UserError if the content of the file is not right.
        say: gets the lines that tell what happens.
        first_wait_secs: pause before the second attempt; doubles with each further one.

    Raises:
        UserError: if it cannot be had, or is not the file that it should be. The cache has no wrong file then.
    """
    folder = cache_folder(url)
    last_part = url.partition("?")[0].rpartition("/")[2]
    file = folder / _plain_name(url, file_name or urllib.parse.unquote(last_part))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            record = _read_record(folder)
            if file.is_file() and record and source is None:
                if manifest.digests(file, "sha256")["sha256"] == record["sha256"]:
                    return file
                say(f"warning: {file} has changed since it was downloaded; it is fetched again")
            part = folder / f"{file.name}.part"
            address = _address(source) if source else mirrored(url, file_name)
            say(f"fetching {address}")
            _download(address, part, first_wait_secs, most_bytes)
            _accept(part, file, url, md5_prefix, record, check)
            say(f"saved {file} ({file.stat().st_size:,} bytes)")
            return file
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror or error}") from error
    except KeyboardInterrupt as error:
        raise UserError(f"{url}: interrupted; the same command goes on from there") from error


def _plain_name(url: str, name: str) -> str:
    """Return a file name that stays in its folder."""
    if not name or name in (".", "..") or not name.isprintable() or set(name) & set("/\\\0") or len(name) > 200:
        raise UserError(f"{printable(url)}: its last part, {printable(name, 60)!r}, is no name for a file")
    return name


# ---- checks ------------------------------------------------------------------------------------


def _accept(
    part: Path, file: Path, url: str, md5_prefix: str, record: dict | None, check: Callable[[Path], None] | None
) -> None:
    """Move a whole download into its place if it is the right file; delete it otherwise.

    Without a record, a file in the cache does not count; so the record comes last.
    """
    sums = manifest.digests(part, "md5", "sha256")
    wrong = ""
    if not sums["md5"].startswith(md5_prefix):
        wrong = f"its MD5 sum starts with {sums['md5'][: len(md5_prefix)]}, and {md5_prefix} was published"
    elif record and record["sha256"] != sums["sha256"]:
        wrong = (
            f"its SHA-256 sum is {sums['sha256'][:16]}..., and it was {record['sha256'][:16]}... when first used; "
            f"if the new file is meant, delete {file.parent}"
        )
    if wrong:
        part.unlink()
        _tag_file(part).unlink(missing_ok=True)
        raise UserError(f"{url}: refused, it is not the file that it should be: {wrong}")
    os.replace(part, file)
    _tag_file(part).unlink(missing_ok=True)
    if record is None and check is not None:
        try:
            check(file)
        except UserError:
            file.unlink()
            raise
    _write_record(file.parent, {"url": url, "file": file.name, "size": file.stat().st_size, **sums})


def _read_record(folder: Path) -> dict | None:
    """Return the record of a download; None if there is none, or it is damaged."""
    try:
        record = read_json(folder / "record.json", {"sha256": str, "file": str})
        return record if _plain_name(str(folder), record["file"]) else None
    except UserError:
        return None


def _write_record(folder: Path, record: dict) -> None:
    temporary = folder / "record.json.new"
    temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    os.replace(temporary, folder / "record.json")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time work in a folder."""
    lock = open_lock_file(folder / "lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


# ---- transfer ----------------------------------------------------------------------------------


def _address(source: str) -> str:
    if "://" in source:
        return source
    path = user_path(source, "-from").resolve()
    if not path.exists():
        raise UserError(f"{source}: no such file or directory")
    if not path.is_file() and not path.is_dir():  # a directory is a mirror
        raise UserError(f"{source}: a pipe or a device, and a file is needed")
    return path.as_uri()


def _download(address: str, part: Path, wait_secs: float, most_bytes: int) -> None:
    """Complete `part`; an attempt that gets a good deal further than the one before does not count."""
    attempts, deadline = 0, time.monotonic() + _MOST_SECS
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(address, part, most_bytes, deadline)
            return
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{address}: not an address that can be fetched: {error}") from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code not in _RETRY_CODES:
                raise UserError(f"{address}: {_describe(error)}{_offline_advice()}") from error
            after = part.stat().st_size if part.exists() else 0
            attempts = 1 if after - before >= _SLOW_BYTES else attempts + 1
            if attempts >= _ATTEMPTS or _is_hopeless(error) or time.monotonic() > deadline:
                kept = f"; {after:,} bytes are kept, and the same command goes on from there" if after else ""
                raise UserError(f"{address}: {_describe(error)}{kept}{_offline_advice()}") from error
        time.sleep(wait_secs * 2 ** (attempts - 1))


def _transfer(address: str, part: Path, most_bytes: int, deadline: float) -> None:
    """Make one request, and append what comes to `part`; raise ConnectionError if it is not all."""
    have = part.stat().st_size if part.exists() else 0
    tag = _read_tag(part, address) if have else {}
    if have and have == tag.get("total"):
        return  # the last command was interrupted after the last byte
    request = urllib.request.Request(address, headers={"User-Agent": "mae-paddle", "Accept-Encoding": "identity"})
    if tag.get("version"):
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag["version"])
    try:
        response = _open(request)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # what is there is no beginning of this file
        raise ConnectionError("the server cannot continue the download") from error
    with response:
        start, total = _check_answer(address, response, have if tag.get("version") else None)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if start and (version, total) != (tag["version"], tag["total"]):
            part.unlink()  # it would be joined with the end of another version
            raise ConnectionError("the file has changed on the server, and is fetched anew")
        if total is not None and total > most_bytes:
            raise UserError(f"{address}: has {total:,} bytes, and at most {most_bytes:,} can be right")
        tag = {"address": address, "version": version, "total": total}
        _tag_file(part).write_text(json.dumps(tag), encoding="utf-8")
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - start > free:
            raise UserError(f"{part.parent}: the disk has {free:,} bytes left, and {total - start:,} are needed")
        _copy(response, part, start, total, most_bytes, deadline)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only, and not from https to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        schemes = [urllib.parse.urlsplit(url).scheme for url in (req.full_url, newurl)]
        if schemes[1] not in ("http", "https") or (schemes[0] == "https" and schemes[1] != "https"):
            raise UserError(
                f"{req.full_url}: refused, the server redirects to {printable(newurl)}, which is not encrypted"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request):
    """Open an address; a server that sends the header of its answer letter by letter is given up."""
    opener, answers = urllib.request.build_opener(_SafeRedirects), queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(opener.open(request, timeout=_TIMEOUT_SECS))
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=_ANSWER_SECS)
    except queue.Empty as error:
        raise TimeoutError(f"no answer within {_ANSWER_SECS:.0f} seconds") from error
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _check_answer(address: str, response, asked_from: int | None) -> tuple[int, int | None]:
    """Return where the answer's bytes start in the file, and the file's size if the server sends it."""
    headers = response.headers
    if headers.get_content_type() == "text/html":
        raise UserError(f"{address}: a web page came instead of a file{_offline_advice()}")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise UserError(f"{address}: the server sends it compressed, which was not asked for{_offline_advice()}")
    length = headers.get("Content-Length", "")
    if response.status == http.client.PARTIAL_CONTENT:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""))
        if asked_from is None or found is None or int(found[1]) != asked_from or int(found[2]) + 1 != int(found[3]):
            raise UserError(f"{address}: the server sends another part of the file than asked for{_offline_advice()}")
        return asked_from, int(found[3])
    if response.status not in (None, http.client.OK) or length == "0":
        raise UserError(f"{address}: the server sends no file (status {response.status}){_offline_advice()}")
    return 0, int(length) if length.isdecimal() else None


def _tag_file(part: Path) -> Path:
    """Return the file that records for a later command which file a part belongs to."""
    return part.with_name(f"{part.name}.tag")


def _read_tag(part: Path, address: str) -> dict:
    """Return which file a part belongs to; empty if that is not recorded for this address."""
    try:
        tag = read_json(_tag_file(part), {"version": (str, type(None)), "total": (int, type(None))})
    except UserError:
        return {}
    return tag if tag.get("address") == address else {}


def _copy(response, part: Path, start: int, total: int | None, most_bytes: int, deadline: float) -> None:
    """Append an answer's bytes to `part`, as long as they come fast enough, and are not too many."""
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=None, file=terminal(sys.stderr))
    with open(part, "r+b" if start else "wb") as file, bar:
        file.seek(start)
        since, before = time.monotonic(), start
        while chunk := response.read1(_CHUNK_BYTES):  # what has come is kept, even if the connection breaks then
            file.write(chunk)
            bar.update(len(chunk))
            now, done = time.monotonic(), file.tell()
            if done > most_bytes:
                raise UserError(f"{response.url}: sends more than the {most_bytes:,} bytes that can be right")
            if now > deadline:
                raise TimeoutError(f"not complete after {_MOST_SECS / 3600:.0f} hours")
            if now - since >= _SLOW_SECS:
                if done - before < _SLOW_BYTES:
                    raise UserError(
                        f"{response.url}: given up, {done - before:,} bytes came in {now - since:.0f} seconds; "
                        "what has come is kept, and the same command goes on from there"
                    )
                since, before = now, done
        file.truncate()
        done = file.tell()
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _is_hopeless(error: Exception) -> bool:
    """Return True if another attempt cannot succeed: no such file, no such host, nothing listens, not an address."""
    reason = getattr(error, "reason", error)
    hopeless = (FileNotFoundError, IsADirectoryError, socket.gaierror, ConnectionRefusedError, ssl.SSLError, str)
    return isinstance(reason, (*hopeless, http.client.InvalidURL)) and not isinstance(error, urllib.error.HTTPError)


def _describe(error: Exception) -> str:
    return str(error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error))


def _offline_advice() -> str:
    return (
        ". Without a connection: get the file elsewhere and give it to python -m zoo fetch NAME -from FILE, or set "
        f"{MIRROR_VARIABLE} to an address or a directory that has it under HOST/PATH"
    )
