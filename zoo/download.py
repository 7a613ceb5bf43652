"""Download files into a cache: resumed, checked, and never half there.

pooch compares sums and moves files into their place; `resuming.py` transfers them. The cache keys a file by its whole
address, because different files may share their last part. In the folder of an address lie the file and a record of its
size and SHA-256 sum from its first use.
"""

import hashlib
import json
import logging
import os
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pooch

from arguments import user_path
from errors import UserError, printable
from storage import atomic, manifest
from storage.cache import cache_dir
from storage.files import locked, read_json
from zoo.resuming import ResumingDownloader

MIRROR_VARIABLE = "MAE_MIRROR"
_MOST_BYTES = 64 << 30
pooch.get_logger().setLevel(logging.ERROR)  # `say` reports


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
        say: gets the lines for the user.
        first_wait_secs: pause before the second attempt; doubles with each further one.

    Raises:
        UserError: if the download fails, or its sum differs. The cache keeps no wrong file.
    """
    folder = cache_folder(url)
    last_part = url.partition("?")[0].rpartition("/")[2]
    name = _plain_name(url, file_name or urllib.parse.unquote(last_part))
    file = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "lock"):
            record = _read_record(folder)
            if file.is_file() and record and source is None:
                if manifest.digests(file, "sha256")["sha256"] == record["sha256"]:
                    return file
                say(f"warning: {file} has changed since it was downloaded; it is fetched again")
            address = _address(source) if source else mirrored(url, file_name)
            say(f"fetching {address}")
            downloader = ResumingDownloader(folder / f"{name}.part", most_bytes, first_wait_secs)
            # In a folder of its own, as an earlier file stays until this one is accepted.
            found = pooch.retrieve(address, None, name, folder / "incoming", downloader=downloader)
            _accept(Path(found), file, url, md5_prefix, record, check)
            say(f"saved {file} ({file.stat().st_size:,} bytes)")
            return file
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror or error}") from error
    except KeyboardInterrupt as error:
        raise UserError(f"{url}: interrupted; the same command continues from there") from error


def _plain_name(url: str, name: str) -> str:
    """Return a file name that stays in its folder."""
    if not name or name in (".", "..") or not name.isprintable() or set(name) & set("/\\\0") or len(name) > 200:
        raise UserError(f"{printable(url)}: its last part, {printable(name, 60)!r}, is not a name for a file")
    return name


def _accept(
    new: Path, file: Path, url: str, md5_prefix: str, record: dict | None, check: Callable[[Path], None] | None
) -> None:
    """Move a download into its place if it is the right file, and record its sums; delete it otherwise."""
    sums = manifest.digests(new, "md5", "sha256")
    try:
        if not sums["md5"].startswith(md5_prefix):
            found = sums["md5"][: len(md5_prefix)]
            raise UserError(f"{url}: refused, its MD5 sum starts with {found}, and {md5_prefix} was published")
        if record and record["sha256"] != sums["sha256"]:
            raise UserError(
                f"{url}: refused, its SHA-256 sum is {sums['sha256'][:16]}..., and it was {record['sha256'][:16]}... "
                f"when first used; if the new file is meant, delete {file.parent}"
            )
        if record is None and check is not None:
            check(new)
    except UserError:
        new.unlink()
        raise
    os.replace(new, file)
    record = {"url": url, "file": file.name, "size": file.stat().st_size, **sums}
    atomic.write_text(file.parent / "record.json", json.dumps(record, indent=1))  # without it, the file does not count


def _read_record(folder: Path) -> dict | None:
    """Return the record of a download; None if there is none, or it is damaged."""
    try:
        record = read_json(folder / "record.json", {"sha256": str, "file": str})
        return record if _plain_name(str(folder), record["file"]) else None
    except UserError:
        return None


def _address(source: str) -> str:
    if "://" in source:
        return source
    path = user_path(source, "-from").resolve()
    if not path.is_file() and not path.is_dir():  # a directory is a mirror
        raise UserError(f"{source}: no such file or directory, or a pipe or a device, and a file is needed")
    return path.as_uri()
