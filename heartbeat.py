"""Nodes of one job that watch each other, so that one which dies or is cut off does not leave the others waiting.

Collective operations wait for hours for a node that is gone without closing its connections. Here the process that
started a node's ranks keeps a connection to the first node, over which both send a sign of life every few seconds.
Silence, or an end without a goodbye, is a failure, which the first node passes on by hanging up.
"""

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable

_BEAT, _GOODBYE = b".", b"q"
_EVERY_SECS, _SILENCE_SECS, _RETRY_SECS = 2.0, 20.0, 1.0


class Heartbeat:
    """Watches the other nodes from a thread, until it is closed.

    Args:
        host: address of the first node; the node that has it listens there, the others connect.
        port: TCP port there.
        lost: called once, from a thread, with what happened.
    """

    def __init__(self, host: str, port: int, lost: Callable[[str], None]):
        self._address, self._lost = (host, port), lost
        self._closed = threading.Event()
        self._lock, self._peers, self._has_failed = threading.Lock(), {}, False
        self._listener = self._listen()
        target = self._connect if self._listener is None else self._accept
        threading.Thread(target=target, name="heartbeat", daemon=True).start()

    def _listen(self) -> socket.socket | None:
        try:
            family = socket.getaddrinfo(*self._address, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server(self._address, family=family)
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):  # another node's, or another launcher is first
                return None
            raise
        return listener

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                peer, (host, *_) = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._watch, args=(peer, f"node {host}"), daemon=True).start()

    def _connect(self) -> None:
        """Connect to the first node; it may not be there yet."""
        peer = None
        while peer is None and not self._closed.is_set():
            try:
                peer = socket.create_connection(self._address, timeout=_SILENCE_SECS)
            except OSError:
                self._closed.wait(_RETRY_SECS)
        if peer is not None:
            self._watch(peer, f"the first node, {self._address[0]},")

    def _watch(self, peer: socket.socket, name: str) -> None:
        """Exchange signs of life until one side says goodbye, or is not heard of any more."""
        with self._lock:
            self._peers[peer] = threading.current_thread()
        problem, is_known, heard_at = "", False, time.monotonic()
        peer.settimeout(_EVERY_SECS)
        while not problem:
            try:
                with self._lock:
                    if not self._closed.is_set():
                        peer.sendall(_BEAT)
                started = time.monotonic()
                received = peer.recv(64)
                heard_at = time.monotonic()
                if _GOODBYE in received or received.strip(_BEAT):  # done, or another program
                    break
                problem = "" if received else "has ended without a goodbye"
                is_known = is_known or bool(received)  # who never gave a sign of life was no node
                self._closed.wait(max(0.0, started + _EVERY_SECS - heard_at))
            except TimeoutError:
                if self._closed.is_set() or time.monotonic() - heard_at > _SILENCE_SECS:
                    problem = f"has not been heard of for {_SILENCE_SECS:.0f} seconds"
            except OSError as error:
                problem = f"cannot be reached any more ({error.strerror})"
        with self._lock:
            del self._peers[peer]
        peer.close()
        if problem and is_known:
            self._fail(f"{name} {problem}")

    def _fail(self, what: str) -> None:
        with self._lock:
            if self._closed.is_set() or self._has_failed:
                return
            self._has_failed = True
        self._lost(what)

    def close(self, is_well: bool) -> None:
        """Stop watching, and say goodbye if this node has done its work; the others stop if it has not."""
        with self._lock:
            self._closed.set()
            watching = list(self._peers.values())
            for peer in self._peers:
                with contextlib.suppress(OSError):
                    if is_well:
                        peer.sendall(_GOODBYE)
                    peer.shutdown(socket.SHUT_WR)  # and read to the end: what is left unread would undo the goodbye
        if self._listener is not None:
            self._listener.close()
        for thread in watching:
            thread.join(2 * _EVERY_SECS)
