"""Nodes that watch each other, here as processes and threads of one machine."""

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from heartbeat import Heartbeat

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.quick


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Node:
    """A node that notes what it is told."""

    def __init__(self, port):
        self.told, self.is_told = [], threading.Event()
        self.heartbeat = Heartbeat("127.0.0.1", port, self._note)

    def _note(self, what):
        self.told.append(what)
        self.is_told.set()


def wait_for_sign_of_life():
    time.sleep(3.0)


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
    monkeypatch.setattr("heartbeat._SILENCE_SECS", 4.0)
    code = f"import sys, time; from heartbeat import Heartbeat\nHeartbeat('127.0.0.1', {port}, print); time.sleep(600)"
    first = Node(port)
    second = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        wait_for_sign_of_life()
        second.send_signal(19)  # SIGSTOP: it is there, and says nothing
        assert first.is_told.wait(15)
        assert first.told == ["node 127.0.0.1 has not been heard of for 4 seconds"]
    finally:
        second.kill()
        first.heartbeat.close(is_well=False)


def test_a_foreign_program_at_the_port_is_no_node(port):
    with socket.create_server(("127.0.0.1", port)) as server:
        node = Node(port)
        peer, _ = server.accept()
        peer.sendall(b"220 mail.example.org ready\r\n")
        peer.close()
        time.sleep(1.0)
        node.heartbeat.close(is_well=True)
    assert not node.told


def test_a_connection_that_gives_no_sign_of_life_was_no_node(port):
    node = Node(port)
    socket.create_connection(("127.0.0.1", port)).close()
    time.sleep(1.0)
    node.heartbeat.close(is_well=True)
    assert not node.told
