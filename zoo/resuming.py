"""A downloader for pooch that continues what an interrupted download left."""

import json
import os
import queue
import re
import shutil
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from errors import UserError, one_line, printable
from program import terminal
from storage.json_files import read_json

_ATTEMPTS = 5
_TIMEOUT_SECS = 30.0
_ANSWER_SECS = 120.0  # until a server has sent the header of its answer, redirects included
_SLOW_SECS, _SLOW_BYTES = 60.0, 60 << 10  # a download that gets less in that time is given up
_RETRY_CODES = (408, 416, 425, 429, 500, 502, 503, 504)
_ADVICE = (
    ". Without a connection: get the file elsewhere and give it to python -m zoo fetch NAME -from FILE, or set "
    "MAE_MIRROR to an address or a directory that has it under HOST/PATH"
)


class ResumingDownloader:
    """Transfer a file, and resume where an earlier attempt or an earlier command ended.

    Args:
        part: file for what has come so far; `PART.tag` records the address and the version that it belongs to.
        most_bytes: a larger file is refused.
        wait_secs: pause before the second attempt; doubles with each further one.
    """

    def __init__(self, part: Path, most_bytes: int, wait_secs: float):
        self._part, self._most_bytes, self._wait_secs = part, most_bytes, wait_secs
        self._tag = part.with_name(f"{part.name}.tag")

    def __call__(self, url: str, output_file: str, pooch: object) -> None:
        """Write the file of an address to `output_file`, as pooch asks for it."""
        if url.startswith("file:"):
            source = urllib.request.url2pathname(urllib.parse.urlsplit(url).path)
            if not os.path.isfile(source):
                raise UserError(f"{printable(source)}: no such file{_ADVICE}")
            shutil.copyfile(source, output_file)
            return
        attempts = 0
        while True:
            before = self._size()
            try:
                self._transfer(url)
                break
            except requests.HTTPError as error:
                problem, is_final = str(error), error.response.status_code not in _RETRY_CODES
            except (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError, TimeoutError) as error:
                problem, is_final = one_line(error), "NewConnectionError" in repr(error) or "NameRes" in repr(error)
            except (requests.RequestException, ValueError) as error:  # an address that no request can have
                raise error if isinstance(error, UserError) else UserError(f"{printable(url)}: {error}") from error
            kept = self._size()
            attempts = 1 if kept - before >= _SLOW_BYTES else attempts + 1  # one that gets further does not count
            if is_final or attempts >= _ATTEMPTS:
                advice = f"; {kept:,} bytes are kept, and the same command continues from there" if kept else ""
                raise UserError(f"{url}: {printable(problem, 300)}{advice}{_ADVICE}")
            time.sleep(self._wait_secs * 2 ** (attempts - 1))
        os.replace(self._part, output_file)
        self._tag.unlink(missing_ok=True)

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _transfer(self, url: str) -> None:
        """Make one request, and append what comes; raise ConnectionError if it is not all."""
        have, tag = self._size(), self._read_tag(url)
        if have and have == tag.get("total"):
            return  # the last command was interrupted after the last byte
        headers = {"User-Agent": "mae-paddle", "Accept-Encoding": "identity"}
        if have and tag.get("version"):
            headers |= {"Range": f"bytes={have}-", "If-Range": tag["version"]}
        with _answer(url, headers) as response:
            if url.startswith("https:") and not all(r.url.startswith("https:") for r in (*response.history, response)):
                raise UserError(
                    f"{url}: refused, the server redirects to {printable(response.url)}, without encryption"
                )
            if response.status_code == 416:
                self._part.unlink(missing_ok=True)  # it is not the beginning of this file
            response.raise_for_status()
            start, total = _check_answer(url, response, have if "Range" in headers else None)
            version = response.headers.get("ETag") or response.headers.get("Last-Modified")
            if start and (version, total) != (tag["version"], tag["total"]):
                self._part.unlink()  # it would be joined with the end of another version
                raise requests.ConnectionError("the file has changed on the server, and is fetched again")
            if (total or 0) > self._most_bytes:
                raise UserError(f"{url}: has {total:,} bytes, and at most {self._most_bytes:,} can be right")
            free = shutil.disk_usage(self._part.parent).free
            if (total or 0) - start > free:
                raise UserError(f"{self._part}: the disk has {free:,} bytes left, and {total - start:,} are needed")
            self._tag.write_text(json.dumps({"address": url, "version": version, "total": total}), encoding="utf-8")
            self._copy(url, response, start, total)

    def _read_tag(self, url: str) -> dict:
        try:
            tag = read_json(self._tag, {"version": (str, type(None)), "total": (int, type(None))})
        except UserError:
            return {}
        return tag if tag.get("address") == url else {}

    def _copy(self, url: str, response, start: int, total: int | None) -> None:
        """Append the bytes of an answer, as long as they come fast enough and are not too many."""
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=None, file=terminal(sys.stderr))
        with open(self._part, "r+b" if start else "wb") as file, bar:
            file.seek(start)
            since, before = time.monotonic(), start
            while chunk := response.raw.read1(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
                now, done = time.monotonic(), file.tell()
                if done > self._most_bytes:
                    raise UserError(f"{url}: sends more than the {self._most_bytes:,} bytes that can be right")
                if now - since >= _SLOW_SECS:
                    if done - before < _SLOW_BYTES:
                        raise UserError(f"{url}: given up, {done - before:,} bytes came in {now - since:.0f} seconds")
                    since, before = now, done
            file.truncate()
            done = file.tell()
        if total is not None and done < total:
            raise requests.ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _answer(url: str, headers: dict) -> requests.Response:
    """Request an address; raise TimeoutError for a server that sends the header letter by letter."""
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECS))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=_ANSWER_SECS)
    except queue.Empty as error:
        raise TimeoutError(f"no answer within {_ANSWER_SECS:.0f} seconds") from error
    if isinstance(answer, Exception):
        raise answer
    return answer


def _check_answer(url: str, response, asked_from: int | None) -> tuple[int, int | None]:
    """Return where the answer's bytes start in the file, and the file's size if the server sends it."""
    headers, length = response.headers, response.headers.get("Content-Length", "")
    if headers.get("Content-Type", "").startswith("text/html"):
        raise UserError(f"{url}: a web page came instead of a file{_ADVICE}")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise UserError(f"{url}: the server sends it compressed, which was not asked for{_ADVICE}")
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", headers.get("Content-Range", ""))
        if asked_from is None or found is None or int(found[1]) != asked_from or int(found[2]) + 1 != int(found[3]):
            raise UserError(f"{url}: the server sends another part of the file than asked for{_ADVICE}")
        return asked_from, int(found[3])
    if response.status_code != 200 or length == "0":
        raise UserError(f"{url}: the server sends no file (status {response.status_code}){_ADVICE}")
    return 0, int(length) if length.isdecimal() else None
