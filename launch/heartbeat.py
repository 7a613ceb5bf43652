"""Nodes of one job that watch each other, so that one which dies or is cut off does not leave the others waiting.

Collective operations wait for hours for a node that is gone without closing its connections. Here the process that
started a node's ranks keeps a connection to the first node, over which both send a sign of life every few seconds.
A node that is silent for 20 s, or closes its connection without the goodbye byte, counts as failed; the first node
then closes all connections, so that every node stops.

Whoever connects has to prove first that it knows the job's token, and so has whoever listens: each sends a random
number, and the other one answers with its HMAC. Messages without a valid HMAC are ignored.
"""

import contextlib
import errno
import hashlib
import hmac
import os
import socket
import threading
import time
from collections.abc import Callable

_BEAT, _GOODBYE = b".", b"q"
_EVERY_SECS, _SILENCE_SECS, _RETRY_SECS = 2.0, 20.0, 1.0
_HELLO = b"mae-heartbeat-1\n"
_NUM_RANDOM, _NUM_PROOF = 16, hashlib.sha256().digest_size
_HELLO_SECS = 5.0  # for one proof
_STRANGER_SECS = 20.0  # after which a port whose listener proves nothing is another program's
_MOST_STRANGERS = 128  # connections that have not proved anything yet; then the oldest goes


class NotOfThisJob(Exception):
    """The other side does not have the token."""


class Heartbeat:
    """Watches the other nodes from a thread, until it is closed.

    Args:
        host: address of the first node; the node that has it listens there, the others connect.
        port: TCP port there.
        token: of the job.
        lost: called once, from a thread, with what happened.

    Attributes:
        is_first: this node is the one that listens.
    """

    def __init__(self, host: str, port: int, token: bytes, lost: Callable[[str], None]):
        self._address, self._token, self._lost = (host, port), token, lost
        self._closed = threading.Event()
        self._lock, self._peers, self._has_failed = threading.Lock(), {}, False
        self._strangers: dict[socket.socket, None] = {}
        self._listener = self._listen()
        self.is_first = self._listener is not None
        target = self._accept if self.is_first else self._connect
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
            except OSError as error:
                if self._closed.is_set() or error.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED):
                    return
                self._closed.wait(0.1)
                continue
            with self._lock:
                self._strangers[peer] = None
                if len(self._strangers) > _MOST_STRANGERS:
                    oldest = next(iter(self._strangers))
                    del self._strangers[oldest]
                    with contextlib.suppress(OSError):
                        oldest.shutdown(socket.SHUT_RDWR)  # its thread closes it
            threading.Thread(target=self._admit, args=(peer, f"node {host}"), daemon=True).start()

    def _admit(self, peer: socket.socket, name: str) -> None:
        """Watch a node that has connected, once it has proved that it is one."""
        try:
            _prove(peer, self._token, b"first", b"other")
        except (OSError, NotOfThisJob):
            peer.close()
            return
        finally:
            with self._lock:
                self._strangers.pop(peer, None)
        self._watch(peer, name)

    def _connect(self) -> None:
        """Connect to the first node; it may not be there yet, and another program may be in its place."""
        stranger_since = None
        while not self._closed.is_set():
            peer = None
            try:
                peer = socket.create_connection(self._address, timeout=_HELLO_SECS)
                _prove(peer, self._token, b"other", b"first")
                break
            except (OSError, NotOfThisJob):
                was_there = peer is not None
                if was_there:
                    peer.close()
                stranger_since = (stranger_since or time.monotonic()) if was_there else None
            if stranger_since is not None and time.monotonic() - stranger_since > _STRANGER_SECS:
                host, port = self._address
                self._fail(f"another program or another job uses port {port} of {host}; choose another -master port")
                return
            self._closed.wait(_RETRY_SECS)
        if not self._closed.is_set():
            self._watch(peer, f"the first node, {self._address[0]},")

    def _watch(self, peer: socket.socket, name: str) -> None:
        """Exchange signs of life until one side sends the goodbye byte, or is silent for too long."""
        with self._lock:
            self._peers[peer] = threading.current_thread()
        problem, heard_at = "", time.monotonic()
        peer.settimeout(_EVERY_SECS)
        while not problem:
            try:
                with self._lock:
                    if not self._closed.is_set():
                        peer.sendall(_BEAT)
                started = time.monotonic()
                received = peer.recv(64)
                heard_at = time.monotonic()
                if _GOODBYE in received:
                    break
                problem = "" if received else "has ended without a goodbye"
                self._closed.wait(max(0.0, started + _EVERY_SECS - heard_at))
            except TimeoutError:
                if self._closed.is_set() or time.monotonic() - heard_at > _SILENCE_SECS:
                    problem = f"has not been heard of for {_SILENCE_SECS:.0f} seconds"
            except OSError as error:
                problem = f"cannot be reached any more ({error.strerror})"
        with self._lock:
            del self._peers[peer]
        peer.close()
        if problem:
            self._fail(f"{name} {problem}")

    def _fail(self, what: str) -> None:
        with self._lock:
            if self._closed.is_set() or self._has_failed:
                return
            self._has_failed = True
        self._lost(what)

    def close(self, is_well: bool) -> None:
        """Stop watching; send the goodbye byte if this node has done its work, else the others stop, too."""
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


def _prove(peer: socket.socket, token: bytes, own_role: bytes, other_role: bytes) -> None:
    """Prove to the other side that this one has the token, and check its proof.

    Raises:
        NotOfThisJob: if it does not, within some seconds.
    """
    deadline = time.monotonic() + _HELLO_SECS
    challenge = os.urandom(_NUM_RANDOM)
    peer.settimeout(_HELLO_SECS)
    peer.sendall(_HELLO + challenge)
    hello = _receive(peer, len(_HELLO) + _NUM_RANDOM, deadline)
    if not hello.startswith(_HELLO):
        raise NotOfThisJob
    peer.sendall(hmac.digest(token, own_role + hello[len(_HELLO) :], "sha256"))
    expected = hmac.digest(token, other_role + challenge, "sha256")
    if not hmac.compare_digest(_receive(peer, _NUM_PROOF, deadline), expected):
        raise NotOfThisJob


def _receive(peer: socket.socket, count: int, deadline: float) -> bytes:
    """Receive `count` bytes; the deadline is absolute, however slowly they arrive."""
    received = b""
    while len(received) < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise NotOfThisJob
        peer.settimeout(left)
        part = peer.recv(count - len(received))
        if not part:
            raise NotOfThisJob
        received += part
    return received
