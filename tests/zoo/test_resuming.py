"""Transfers: slow servers, and files that are not regular."""

import os
import socket
import threading

import pytest

from errors import UserError
from zoo import download

pytestmark = pytest.mark.quick


def test_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setenv("MAE_CACHE", str(tmp_path / "cache"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="a pipe or a device, and a file is needed"):
        download.fetch("https://example.org/x.pth", source=str(tmp_path / "pipe"), say=lambda line: None)


def test_a_server_that_sends_a_byte_per_connection_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setenv("MAE_CACHE", str(tmp_path / "cache"))
    listener, count = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                request = peer.recv(4096).decode()
                start = int(request.partition("Range: bytes=")[2].partition("-")[0] or 0)
                count.append(start)
                lines = ["HTTP/1.1 206 Partial Content" if start else "HTTP/1.1 200 OK", 'ETag: "1"']
                lines += [f"Content-Range: bytes {start}-99999/100000"] if start else []
                peer.sendall("\r\n".join([*lines, f"Content-Length: {100000 - start}", "", ""]).encode() + b"x")

    threading.Thread(target=serve, daemon=True).start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/x.pth"
    with pytest.raises(UserError, match="bytes are kept"):
        download.fetch(address, say=lambda line: None, first_wait_secs=0.01)
    listener.close()
    assert len(count) <= 10
