"""Nodes that watch each other, here as processes and threads of one machine."""

import socket
import subprocess
import sys
import threading
import time

import pytest

from launch.heartbeat import Heartbeat
from runtime import ROOT

TOKEN = b"of this job"
pytestmark = pytest.mark.quick


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """Let nodes of this process send their signs of life ten times as often."""
    monkeypatch.setattr("launch.heartbeat._EVERY_SECS", 0.2)
    monkeypatch.setattr("launch.heartbeat._RETRY_SECS", 0.1)


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Node:
    """A node that notes what it is told."""

    def __init__(self, port):
        self.told, self.is_told = [], threading.Event()
        self.heartbeat = Heartbeat("127.0.0.1", port, TOKEN, self._note)

    def _note(self, what):
        self.told.append(what)
        self.is_told.set()


def wait_for_sign_of_life():
    time.sleep(0.8)


def test_nodes_that_end_well_part_in_peace(port):
    nodes = [Node(port) for _ in range(3)]
    wait_for_sign_of_life()
    for node in (nodes[1], nodes[0], nodes[2]):
        node.heartbeat.close(is_well=True)
        time.sleep(0.5)
    assert [node.told for node in nodes] == [[], [], []]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_node_that_fails_stops_all_others(port, failing):
    nodes = [Node(port) for _ in range(3)]
    wait_for_sign_of_life()
    nodes[failing].heartbeat.close(is_well=False)
    if failing == 1:  # the first node is told, stops its ranks, and hangs up
        assert nodes[0].is_told.wait(10)
        nodes[0].heartbeat.close(is_well=False)
        nodes[0].heartbeat.close(is_well=False)
    others = [node for index, node in enumerate(nodes) if index != failing]
    assert all(node.is_told.wait(10) for node in others)
    assert all("has ended without a goodbye" in node.told[0] for node in others)
    assert not nodes[failing].told
    for node in nodes:
        node.heartbeat.close(is_well=False)


def test_a_node_that_falls_silent_is_noticed(port, monkeypatch):
    monkeypatch.setattr("launch.heartbeat._SILENCE_SECS", 2.0)
    code = "import time, launch.heartbeat; from launch.heartbeat import Heartbeat; launch.heartbeat._EVERY_SECS = 0.2\n"
    code += f"Heartbeat('127.0.0.1', {port}, {TOKEN!r}, print)\n"
    code += "time.sleep(600)"
    first = Node(port)
    second = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        deadline = time.monotonic() + 15
        while not first.heartbeat._peers and time.monotonic() < deadline:
            time.sleep(0.1)
        second.send_signal(19)  # SIGSTOP: it is there, and says nothing
        assert first.is_told.wait(15)
        assert first.told == ["node 127.0.0.1 has not been heard of for 2 seconds"]
    finally:
        second.kill()
        first.heartbeat.close(is_well=False)


# ---- strangers: whoever does not know the token


@pytest.mark.parametrize("words", [b"", b".", b"q", b"." * 1000, b"GET / HTTP/1.1\r\n\r\n", bytes(range(256))])
def test_what_strangers_say_counts_for_nothing(port, words):
    first, second = Node(port), Node(port)
    wait_for_sign_of_life()
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(words)
        time.sleep(0.2)
    time.sleep(0.5)
    for node in (second, first):
        node.heartbeat.close(is_well=True)
    assert not first.told + second.told


def test_many_silent_connections_keep_no_node_away(port):
    first = Node(port)
    strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
    second = Node(port)
    deadline = time.monotonic() + 15
    while not first.heartbeat._peers and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(first.heartbeat._peers) == 1
    second.heartbeat.close(is_well=False)
    assert first.is_told.wait(10)
    first.heartbeat.close(is_well=False)
    for stranger in strangers:
        stranger.close()


def test_another_program_at_the_port_is_named(port, monkeypatch):
    monkeypatch.setattr("launch.heartbeat._STRANGER_SECS", 1.0)
    with socket.create_server(("127.0.0.1", port)) as server:

        def greet():
            while True:
                try:
                    peer, _ = server.accept()
                    peer.sendall(b"220 mail.example.org ready\r\n" * 4)
                    peer.close()
                except OSError:
                    return

        threading.Thread(target=greet, daemon=True).start()
        node = Node(port)
        assert node.is_told.wait(10)
        assert node.told == [
            f"another program or another job uses port {port} of 127.0.0.1; choose another -master port"
        ]
        node.heartbeat.close(is_well=False)


def test_a_node_of_another_job_is_a_stranger(port, monkeypatch):
    monkeypatch.setattr("launch.heartbeat._STRANGER_SECS", 1.0)
    first = Node(port)
    told = []
    other = Heartbeat("127.0.0.1", port, b"of another job", told.append)
    time.sleep(2.0)
    assert [len(told), first.told] == [1, []]
    other.close(is_well=False)
    first.heartbeat.close(is_well=True)
