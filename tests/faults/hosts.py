"""Two hosts on one machine: network namespaces joined by a cable that can be pulled. Needs root and iproute2."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator

FIRST, SECOND = "mae-first", "mae-second"
FIRST_ADDRESS = "10.77.0.1"
_CABLE = {FIRST: (f"{FIRST_ADDRESS}/24", "cable0"), SECOND: ("10.77.0.2/24", "cable1")}


def are_possible() -> bool:
    """Tell whether this process may make hosts."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def two_hosts() -> Iterator[None]:
    """Make the hosts, and remove them and all that runs there in the end."""
    try:
        for name in (FIRST, SECOND):
            _ip("netns", "add", name)
        one, other = ([_CABLE[name][1], "netns", name] for name in (FIRST, SECOND))
        _ip("link", "add", *one, "type", "veth", "peer", "name", *other)
        for name, (address, cable) in _CABLE.items():
            _ip("-n", name, "addr", "add", address, "dev", cable)
            _ip("-n", name, "link", "set", "lo", "up")
        plug_in()
        yield
    finally:
        for name in (FIRST, SECOND):
            with contextlib.suppress(subprocess.CalledProcessError):
                kill_all(name)
                _ip("netns", "del", name)


def plug_in() -> None:
    """Connect the hosts."""
    for name, (_, cable) in _CABLE.items():
        _ip("-n", name, "link", "set", cable, "up")


def pull_out() -> None:
    """Cut the second host off; nobody is told."""
    _ip("-n", SECOND, "link", "set", _CABLE[SECOND][1], "down")


def kill_all(name: str) -> None:
    """Kill everything that runs on a host, at once."""
    for pid in _ip("netns", "pids", name).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def on(name: str, command: list[str]) -> list[str]:
    """Return the command that runs a command on a host."""
    return ["ip", "netns", "exec", name, *command]
