"""A downloader for pooch that resumes what an interrupted download left."""

import json
import os
import re
import shutil
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from errors import UserError, one_line, printable
from program import terminal
from storage.files import read_json

_ATTEMPTS = 5
_TIMEOUT_SECS = 30.0
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
        attempts, is_whole = 0, False
        while not is_whole:
            before = self._size()
            try:
                is_whole = self._transfer(url)
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                kept = self._size()
                attempts = 1 if kept - before >= _SLOW_BYTES else attempts + 1  # one that gets further does not count
                if _is_final(error) or attempts >= _ATTEMPTS:
                    advice = f"; {kept:,} bytes are kept, and the same command continues from there" if kept else ""
                    raise UserError(f"{url}: {printable(one_line(error), 300)}{advice}{_ADVICE}") from error
                time.sleep(self._wait_secs * 2 ** (attempts - 1))
        os.replace(self._part, output_file)
        self._tag.unlink(missing_ok=True)

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _transfer(self, url: str) -> bool:
        """Make one request, and append what comes; return True if the file is whole."""
        have, tag = self._size(), self._read_tag(url)
        if have and have == tag.get("total"):
            return True  # the last command was interrupted after the last byte
        headers = {"User-Agent": "mae-paddle", "Accept-Encoding": "identity"}
        if have and tag.get("version"):
            headers |= {"Range": f"bytes={have}-", "If-Range": tag["version"]}
        with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECS) as response:
            insecure = [r.url for r in (*response.history, response) if not r.url.startswith("https:")]
            if url.startswith("https:") and insecure:
                raise UserError(f"{url}: refused, the server redirects to {printable(insecure[0])}, without encryption")
            if response.status_code == 416:
                self._part.unlink(missing_ok=True)  # it is not the beginning of this file
            response.raise_for_status()
            start, total = _read_range(url, response, have)
            version = response.headers.get("ETag") or response.headers.get("Last-Modified")
            if start and (version, total) != (tag.get("version"), tag.get("total")):
                self._part.unlink()  # it would be joined with the end of another version
                raise requests.ConnectionError("the file has changed on the server, and is fetched again")
            if (total or 0) > self._most_bytes:
                raise UserError(f"{url}: has {total:,} bytes, and at most {self._most_bytes:,} can be right")
            self._tag.write_text(json.dumps({"address": url, "version": version, "total": total}), encoding="utf-8")
            return self._copy(url, response, start, total)

    def _read_tag(self, url: str) -> dict:
        try:
            tag = read_json(self._tag, {"version": (str, type(None)), "total": (int, type(None))})
        except UserError:
            return {}
        return tag if tag.get("address") == url else {}

    def _copy(self, url: str, response, start: int, total: int | None) -> bool:
        """Append the bytes of an answer, as long as they come fast enough and are not too many."""
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, disable=None, file=terminal(sys.stderr))
        with open(self._part, "r+b" if start else "wb") as file, bar:
            done = before = file.seek(start)
            since = time.monotonic()
            while chunk := response.raw.read1(1 << 20):
                done += file.write(chunk)
                bar.update(len(chunk))
                now = time.monotonic()
                if done > self._most_bytes:
                    raise UserError(f"{url}: sends more than the {self._most_bytes:,} bytes that can be right")
                if now - since >= _SLOW_SECS:
                    if done - before < _SLOW_BYTES:
                        raise UserError(f"{url}: given up, {done - before:,} bytes came in {now - since:.0f} seconds")
                    since, before = now, done
            file.truncate()
        if total is not None and done < total:
            raise requests.ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")
        return True


def _is_final(error: Exception) -> bool:
    """Return True if asking again would not help: no such file, host or address."""
    code = getattr(getattr(error, "response", None), "status_code", None)
    no_server = "NewConnectionError" in repr(error) or "NameRes" in repr(error)
    return no_server or isinstance(error, ValueError) or code not in (None, *_RETRY_CODES)


def _read_range(url: str, response, have: int) -> tuple[int, int | None]:
    """Return where the answer's bytes start in the file, and the file's size if the server sends it."""
    headers, code = response.headers, response.status_code
    length = headers.get("Content-Length", "")
    if headers.get("Content-Type", "").startswith("text/html") or code not in (200, 206) or length == "0":
        what = "a web page came instead of a file" if code == 200 and length != "0" else "the server sends no file"
        raise UserError(f"{url}: {what} (status {code}){_ADVICE}")
    if code == 200:
        return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None
    found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18})", headers.get("Content-Range", ""))
    if found is None or int(found[1]) != have:
        raise UserError(f"{url}: the server sends another part of the file than asked for{_ADVICE}")
    return have, int(found[2])
