"""Downloads against a server on this machine that misbehaves."""

import contextlib
import hashlib
import http.server
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests

from errors import UserError
from runtime import ROOT
from storage import cache
from zoo import download, resuming

pytestmark = pytest.mark.quick


CONTENT = bytes(range(256)) * 4096  # 1 MiB


MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `CONTENT` at any address, in a way that tests choose.

    Attributes:
        cuts: numbers of bytes after which the next responses end; then they are whole.
        answer: status code instead of the file.
        etag: version of the file; "" for none.
        content: the file.
        requests: Range header of each request so far, and its path.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts, self.answer, self.etag, self.content, self.requests = [], 200, '"v1"', CONTENT, []
        self.mime, self.shift = "application/octet-stream", 0
        self.headers, self.ignores_if_range = {}, False

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        # Everything is taken from the server before the client gets a byte, after which the test may change it.
        server, wanted = self.server, self.headers.get("Range")
        server.requests.append((self.path, wanted))
        if server.answer != 200:
            self.send_error(server.answer)
            return
        start = 0
        if wanted and (server.ignores_if_range or self.headers.get("If-Range") == server.etag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        content, shift, headers, etag = server.content, server.shift, server.headers, server.etag
        body = content[start:][: server.cuts.pop(0)] if server.cuts else content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", server.mime)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {start + shift}-{last}/{last + 1}")
        if etag:
            self.send_header("ETag", etag)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(download.MIRROR_VARIABLE, raising=False)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(server, path="/a/weights.pth", **options):
    return download.fetch(server.address + path, say=lambda line: None, first_wait_secs=0.01, **options)


def cached(tmp_path) -> set[str]:
    """Return the names of whole files in the cache."""
    helpers = ("lock", "record.json")
    return {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name not in helpers}


def test_a_file_is_fetched_once_and_recorded(server, tmp_path):
    file = fetch(server, md5_prefix=MD5[:6])
    assert file.read_bytes() == CONTENT
    assert fetch(server) == file
    assert len(server.requests) == 1
    record = json.loads((file.parent / "record.json").read_text())
    assert record["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert cached(tmp_path) == {"weights.pth"}


def test_two_files_of_one_name_do_not_meet(server):
    first = fetch(server, "/a/vit_b16.pt")
    server.content = CONTENT[::-1]
    second = fetch(server, "/b/vit_b16.pt")
    assert first != second
    assert (first.read_bytes(), second.read_bytes()) == (CONTENT, CONTENT[::-1])
    assert fetch(server, "/a/vit_b16.pt").read_bytes() == CONTENT


def test_a_cut_download_goes_on_where_it_ended(server):
    server.cuts = [len(CONTENT) // 2]
    assert fetch(server).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, f"bytes={len(CONTENT) // 2}-"]


def test_a_download_that_failed_goes_on_with_the_next_command(server, tmp_path):
    server.cuts = [len(CONTENT) // 2] + [0] * 10
    with pytest.raises(UserError, match="524,288 bytes are kept, and the same command continues from there"):
        fetch(server)
    assert cached(tmp_path) == {"weights.pth.part", "weights.pth.part.tag"}
    server.cuts, server.requests = [], []
    assert fetch(server, md5_prefix=MD5[:6]).read_bytes() == CONTENT
    assert server.requests[0][1] == f"bytes={len(CONTENT) // 2}-"
    assert cached(tmp_path) == {"weights.pth"}


@pytest.mark.parametrize("etag", ['"v2"', ""])
def test_a_file_that_changed_meanwhile_is_fetched_anew(server, etag):
    server.cuts = [len(CONTENT) // 2] + [0] * 10
    with pytest.raises(UserError):
        fetch(server)
    server.cuts, server.etag, server.content = [], etag, CONTENT[::-1]
    assert fetch(server).read_bytes() == CONTENT[::-1]


def test_a_wrong_checksum_is_refused(server, tmp_path):
    with pytest.raises(UserError, match=f"its MD5 sum starts with {MD5[:6]}, and 8cad7c was published"):
        fetch(server, md5_prefix="8cad7c")
    assert not cached(tmp_path)


def test_another_file_than_at_first_is_refused(server, tmp_path):
    file = fetch(server)
    file.unlink()
    server.content = CONTENT[::-1]
    with pytest.raises(UserError, match="it was .* when first used; if the new file is meant, delete"):
        fetch(server)
    assert not cached(tmp_path)


def test_a_damaged_cache_is_repaired(server):
    file = fetch(server)
    file.write_bytes(CONTENT[:-1] + b"x")
    assert fetch(server).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_errors_say_what_to_do(server, tmp_path):
    advice = "python -m zoo fetch NAME -from FILE, or set MAE_MIRROR"
    server.answer = 404
    with pytest.raises(UserError, match=f"404 Client Error: Not Found.*{advice}"):
        fetch(server)
    assert len(server.requests) == 1  # asking again would not help
    server.answer, server.requests = 503, []
    with pytest.raises(UserError, match="503 Server Error"):
        fetch(server)
    assert len(server.requests) == 5
    server.answer, server.mime = 200, "text/html"
    with pytest.raises(UserError, match="a web page came instead of a file"):
        fetch(server)
    with pytest.raises(UserError, match=f"refused.*{advice}"):
        download.fetch("http://127.0.0.1:9/weights.pth", say=lambda line: None)
    assert not cached(tmp_path)


def test_odd_answers_are_refused(server, tmp_path):
    server.content = b""
    with pytest.raises(UserError, match="the server sends no file"):
        fetch(server)
    server.content, server.cuts, server.shift = CONTENT, [1000] + [0] * 10, 7
    with pytest.raises(UserError, match="another part of the file than asked for"):
        fetch(server)
    server.shift, server.cuts = 0, []
    assert fetch(server).read_bytes() == CONTENT
    for address in ("http://[bad/x", "ftx://host/x", "http://host:1/a b"):
        with pytest.raises(UserError):
            download.fetch(address, source=address, say=print)
    with pytest.raises(UserError):
        download.fetch("https://example.org/z", source=str(tmp_path), say=print)


def test_a_part_from_elsewhere_is_not_continued(server):
    server.cuts = [1000] + [0] * 10
    with pytest.raises(UserError):
        fetch(server)
    other = Server()
    other.content = CONTENT[::-1]
    thread = threading.Thread(target=other.serve_forever, daemon=True)
    thread.start()
    file = download.fetch(
        server.address + "/a/weights.pth", source=other.address + "/a/weights.pth", say=print, first_wait_secs=0.01
    )
    assert file.read_bytes() == CONTENT[::-1]
    other.shutdown()
    other.server_close()


def test_a_whole_part_is_not_fetched_again(server, monkeypatch):
    """Interrupted after the last byte, while the sums were computed."""

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(download, "_accept", interrupt)
        with pytest.raises(UserError, match="interrupted; the same command continues from there"):
            fetch(server)
    assert fetch(server).read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_mirror_and_local_files(server, tmp_path, monkeypatch):
    monkeypatch.setenv(download.MIRROR_VARIABLE, f"{server.address}/mirror")
    url = "https://example.org/deep/weights.pth"
    file = download.fetch(url, say=lambda line: None)
    assert server.requests[0][0] == "/mirror/example.org/deep/weights.pth"
    assert file.parent == download.cache_folder(url)  # the cache goes by the address itself
    folder = tmp_path / "disk" / "example.org" / "other file"
    folder.mkdir(parents=True)
    (folder / "weights.pth").write_bytes(CONTENT)
    monkeypatch.setenv(download.MIRROR_VARIABLE, f"file://{tmp_path}/disk")
    (folder.parent / "named.pth").write_bytes(CONTENT)
    assert download.fetch("https://example.org/download?id=3", "named.pth", say=print).name == "named.pth"
    assert download.fetch("https://example.org/other%20file/weights.pth", say=print).read_bytes() == CONTENT
    local = download.fetch("https://example.org/x", "x.pth", source=str(folder / "weights.pth"), say=print)
    assert local.read_bytes() == CONTENT
    assert local.name == "x.pth"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(download.MIRROR_VARIABLE, "disk")  # a directory as one types it
    assert download.fetch("https://example.org/named.pth", say=print).read_bytes() == CONTENT
    with pytest.raises(UserError, match="no such file"):
        download.fetch("https://example.org/y", source=str(folder / "none"), say=print)


def test_a_write_that_fails_leaves_no_file(server, tmp_path):
    """The operating system refuses to write more than half of the file, as it does on a full disk."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, len(CONTENT) // 2))

    code = f"from zoo import download; download.fetch('{server.address}/weights.pth')"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "cannot be written: File too large" in result.stderr
    assert "weights.pth" not in cached(tmp_path)
    assert fetch(server, "/weights.pth").read_bytes() == CONTENT


def test_two_processes_share_one_download(server):
    code = f"from zoo import download; print(download.fetch('{server.address}/weights.pth', say=lambda line: None))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    paths = {process.communicate()[0].strip() for process in processes}
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == CONTENT
    assert len(server.requests) == 1


@pytest.mark.parametrize("change", ["etag", "total", "both"])
def test_halves_of_two_versions_are_never_joined(server, monkeypatch, change):
    """The server answers a request for the rest with the rest of another version, against If-Range."""
    server.cuts, half = [len(CONTENT) // 2], len(CONTENT) // 2
    monkeypatch.setattr(resuming, "_ATTEMPTS", 1)
    with pytest.raises(UserError, match=f"{half:,} bytes are kept"):
        fetch(server)
    monkeypatch.setattr(resuming, "_ATTEMPTS", 3)
    server.content = bytes(reversed(CONTENT)) + (b"more" if change != "etag" else b"")
    server.etag = server.etag if change == "total" else '"v2"'
    server.ignores_if_range = True
    assert fetch(server).read_bytes() == server.content
    assert len(server.requests) == 3, "cut, rest of another version, whole"


def test_no_redirect_leaves_https(tmp_path, monkeypatch):
    """A chain of answers as requests returns it, whose last one is not encrypted."""
    first, last = (requests.Response() for _ in range(2))
    first.url, last.url, last.history = "https://example.org/a", "http://example.org/b", [first]
    last.close = lambda: None
    monkeypatch.setattr(resuming.requests, "get", lambda *args, **options: last)
    with pytest.raises(UserError, match="refused, the server redirects to http://example.org/b"):
        resuming.ResumingDownloader(tmp_path / "part", 10, 0.01)("https://example.org/a", str(tmp_path / "out"), None)


def test_a_file_that_cannot_be_right_is_not_fetched(server, tmp_path):
    with pytest.raises(UserError, match="has 1,048,576 bytes, and at most 1,000 can be right"):
        fetch(server, most_bytes=1000)
    assert not cached(tmp_path)


def raw_server(answer):
    """Return the address of a server that does what a function does with each connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            peer, _ = listener.accept()
            threading.Thread(target=quietly, args=(answer, peer), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/weights.pth"


def quietly(answer, peer):
    with contextlib.suppress(OSError):
        peer.recv(10000)
        answer(peer)


def endless(peer):
    peer.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
    while True:
        peer.sendall(bytes(10000))


def trickling(peer):
    peer.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        peer.sendall(b"x")
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("answer", "message"), [(endless, "sends more than the 1,000,000 bytes"), (trickling, "given up, .* bytes came in")]
)
def test_answers_without_end_are_given_up(server, monkeypatch, tmp_path, answer, message):
    for name, value in (("_SLOW_SECS", 0.5), ("_ATTEMPTS", 2)):
        monkeypatch.setattr(resuming, name, value)
    started = time.monotonic()
    with pytest.raises(UserError, match=message):
        download.fetch(raw_server(answer), say=lambda line: None, first_wait_secs=0.01, most_bytes=1_000_000)
    assert time.monotonic() - started < 10
    assert "weights.pth" not in cached(tmp_path)


@pytest.mark.parametrize("name", ["%2e%2e%2fup.pth", "..%2f..%2fup", "a%5cb", "%00", "%2e%2e", ""])
def test_names_stay_in_their_folder(server, tmp_path, name):
    with pytest.raises(UserError, match="is not a name for a file"):
        fetch(server, f"/a/{name}")
    assert not list(tmp_path.rglob("up*"))


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"sha256": 3, "file": "x"}', '{"sha256": "x", "file": "../x"}', "[" * 9999]
)
def test_damaged_records_are_none(server, text):
    file = fetch(server)
    (file.parent / "record.json").write_text(text)
    assert not download.is_cached(server.address + "/a/weights.pth")
    assert fetch(server).read_bytes() == CONTENT
