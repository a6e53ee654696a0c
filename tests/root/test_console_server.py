"""The console server without any container: ports, answers, and its end."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
from mapper_driver.console import control, definition
from mapper_driver.console.definition import Console
from mapper_driver.errors import ConsoleUnavailable
from mapper_driver.opennebula.framing import Log

from mapper_core.linux import cgroup, process_info
from mapper_core.runtime import Runtime
from tests.ports import free_port

pytestmark = pytest.mark.root


class Messages(Log):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def warning(self, text: str) -> None:
        self.found.append(text)


@pytest.fixture
def runtime() -> Runtime:
    found = Runtime.from_environment()
    found.prepare()
    return found


@pytest.fixture
def console() -> Console:
    return Console("one-1", "127.0.0.1", free_port(), ("/bin/cat",))


def greeting(console: Console) -> bytes:
    with socket.create_connection((console.address, console.port), 20) as connection:
        connection.settimeout(30)
        return connection.recv(12)


def servers(runtime: Runtime) -> list[int]:
    found = process_info.find_by_argument(os.path.basename(sys.executable), f"{runtime.root}/console.sock")
    return [process.pid for process in found]


def wait_for_none(runtime: Runtime) -> None:
    until = time.monotonic() + 10
    while servers(runtime):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_it_lives_as_long_as_there_are_consoles(runtime: Runtime, console: Console) -> None:
    log = Messages()
    other = dataclasses.replace(console, container="one-2", port=free_port())
    control.hide(runtime, "one-1", log)
    assert servers(runtime) == []
    control.show(runtime, console, log)
    (server,) = servers(runtime)
    assert f":/{cgroup.NAME}\n" in Path(f"/proc/{server}/cgroup").read_text(), "it outlives the session"
    control.show(runtime, other, log)
    control.show(runtime, console, log)
    assert servers(runtime) == [server]
    assert greeting(console) == greeting(other) == b"RFB 003.008\n"

    os.kill(server, signal.SIGKILL)
    wait_for_none(runtime)
    control.hide(runtime, "one-2", log)  # the next call heals it
    assert greeting(console) == b"RFB 003.008\n"
    with pytest.raises(ConnectionRefusedError):
        greeting(other)
    control.hide(runtime, "one-1", log)
    control.hide(runtime, "one-1", log)
    wait_for_none(runtime)
    assert log.found == []


def test_what_stands_in_the_way_is_a_warning(runtime: Runtime, console: Console) -> None:
    log = Messages()
    with contextlib.closing(socket.create_server((console.address, console.port))):
        control.show(runtime, console, log)
        (message,) = log.found
        assert f"cannot listen on 127.0.0.1 port {console.port}: Address already in use" in message
        with pytest.raises(ConsoleUnavailable, match="Address already in use"):
            control.reload(runtime)
        other = dataclasses.replace(console, container="one-11", port=free_port())
        control.show(runtime, other, log)
        assert greeting(other) == b"RFB 003.008\n"
        control.hide(runtime, "one-11", log)
        assert log.found == [message], "it is not the other machine's"
    path = Path(definition.path_of(runtime, "one-1"))
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("{")
    with pytest.raises(ConsoleUnavailable, match="is not JSON"):
        control.reload(runtime)
    control.hide(runtime, "one-1", log)
    wait_for_none(runtime)
    assert len(log.found) == 1
