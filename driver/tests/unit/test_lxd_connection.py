"""What the client does when the daemon behaves badly; a real one does so too rarely to wait for it."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from mapper_driver.errors import LxdFailed, LxdUnavailable
from mapper_driver.lxd import glance
from mapper_driver.lxd.connection import Connection
from mapper_driver.lxd.reader import Reader, socket_candidates

from mapper_core.errors import DeadlineExceeded, NotSupported

pytestmark = pytest.mark.unit

Answer = tuple[int, dict[str, Any]]
OPERATION = {"type": "async", "operation": "/1.0/operations/7"}


class FakeDaemon(socketserver.ThreadingUnixStreamServer):
    """Answers what a test wants, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        super().__init__(path, Handler)
        self.answer: Callable[[str, str], Answer] = lambda method, path: (404, {"error": "not found"})
        self.asked: list[str] = []
        self.about: dict[str, Any] | None = {}


class Handler(BaseHTTPRequestHandler):
    server: FakeDaemon

    def _handle(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        status, body = (0 if self.server.about is None else 200, {"type": "sync", "metadata": self.server.about})
        if path != "/1.0":
            status, body = self.server.answer(self.command, path)
        if status == 0:  # break the connection
            return
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.send_header("ETag", "e1")
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST = _handle

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(str(tmp_path / "s")) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def connection(daemon: FakeDaemon) -> Connection:
    return Connection(str(daemon.server_address))


def wait(connection: Connection, settled: bool, seconds: float = 5.0) -> dict[str, Any]:
    class Started:
        @staticmethod
        def json() -> dict[str, Any]:
            return OPERATION

    return connection.wait(Started(), "start the instance", "c1", lambda: settled, seconds)


def test_a_forgotten_operation_is_decided_by_the_state(daemon: FakeDaemon, connection: Connection) -> None:
    """L-13."""
    assert wait(connection, settled=True) == {}
    with pytest.raises(LxdFailed, match="forgotten"):
        wait(connection, settled=False)
    assert daemon.asked[1:] == ["GET /1.0/operations/7/wait"] * 2


def test_a_wait_ends_at_its_deadline(daemon: FakeDaemon, connection: Connection) -> None:
    """L-14: the daemon says "still running" for ever; then the state decides."""

    def slow(method: str, path: str) -> Answer:
        time.sleep(0.2)  # what a real daemon does here: it holds the request
        return 200, {"type": "sync", "metadata": {"status_code": 103}}

    daemon.answer = slow
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        wait(connection, settled=False, seconds=0.5)
    assert wait(connection, settled=True, seconds=0.5) == {}
    assert time.monotonic() - begun < 5


def test_a_failed_operation_has_the_daemons_reason(daemon: FakeDaemon, connection: Connection) -> None:
    daemon.answer = lambda *_: (200, {"type": "sync", "metadata": {"status_code": 400, "err": "no such thing"}})
    with pytest.raises(LxdFailed, match="c1: cannot start the instance: no such thing"):
        wait(connection, settled=True)


def test_the_daemon_dies(daemon: FakeDaemon, connection: Connection) -> None:
    daemon.answer = lambda *_: (0, {})
    with pytest.raises(LxdUnavailable):
        wait(connection, settled=True)


def test_a_daemon_that_ended_is_told_from_one_in_another_container(daemon: FakeDaemon) -> None:
    """Both say they are a process which is none here."""
    reader = Reader.connect([str(daemon.server_address)])
    with pytest.raises(NotSupported, match="process 0, which is none here"):
        reader.daemon_pid()
    daemon.about = {"environment": {"server_pid": 7}}
    with pytest.raises(LxdUnavailable, match="the daemon was replaced meanwhile"):
        reader.daemon_pid()
    daemon.about = None
    with pytest.raises(LxdUnavailable, match="cannot see whether it still runs: the daemon is gone"):
        reader.daemon_pid()


def test_a_container_that_is_ending_is_looked_at_again_after_a_pause(
    daemon: FakeDaemon, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Incus answers in that moment. Neither does the daemon get one request after the other, nor is it asked for ever."""
    monkeypatch.setattr("mapper_driver.lxd.connection._ENDING_SECONDS", 0.6)
    begun = time.monotonic()

    def answer(method: str, path: str) -> Answer:
        if path.endswith("c2") or time.monotonic() - begun < 0.25:
            return 500, {"error": 'Invalid PID "-1"'}
        return 200, {"type": "sync", "metadata": {"status": "Stopped"}}

    daemon.answer = answer
    found = connection.get(connection.api.instances["c1"], "look at the instance", "c1")
    assert found.json()["metadata"] == {"status": "Stopped"}
    assert 2 <= daemon.asked.count("GET /1.0/instances/c1") <= 4
    with pytest.raises(LxdFailed, match="Invalid PID"):
        connection.get(connection.api.instances["c2"], "look at the instance", "c2")
    assert 2 <= daemon.asked.count("GET /1.0/instances/c2") <= 8


def test_a_change_is_repeated_until_it_is_there(daemon: FakeDaemon, connection: Connection) -> None:
    """L-12: refused because somebody was faster, then accepted and lost all the same, then there."""
    config = {"a": "1"}
    outcomes = ["there", "lost", "refused"]

    def answer(method: str, path: str) -> Answer:
        if method == "PUT":
            outcome = outcomes.pop()
            if outcome == "refused":
                return 412, {"error": "ETag doesn't match"}
            if outcome == "there":
                config["b"] = "2"
            return 200, {"type": "sync", "metadata": {}}
        return 200, {"type": "sync", "metadata": {} if "operations" in path else {"config": config, "devices": None}}

    daemon.answer = answer
    node = connection.api.instances["c1"]
    connection.change(node, "change it", "c1", lambda body: body["config"].update(b="2"))
    assert outcomes == []
    connection.change(node, "change it", "c1", lambda body: body["config"].update(b="2"))
    assert daemon.asked.count("PUT /1.0/instances/c1") == 3


def test_another_operation_in_the_way_is_waited_for(daemon: FakeDaemon, connection: Connection) -> None:
    config: dict[str, str] = {}
    running = [{"id": "9", "resources": {"instances": ["/1.0/instances/c1"]}}]

    def answer(method: str, path: str) -> Answer:
        if method == "PUT":
            if running:
                return 500, {
                    "error": 'Failed to create instance update operation: Instance is busy running a "stop" operation'
                }
            config["b"] = "2"
            return 200, {"type": "sync", "metadata": {}}
        if path == "/1.0/operations/9/wait":
            running.clear()
            return 200, {"type": "sync", "metadata": {"status_code": 200}}
        if path == "/1.0/operations":
            return 200, {"type": "sync", "metadata": {"running": running}}
        return 200, {"type": "sync", "metadata": {"config": config}}

    daemon.answer = answer
    connection.change(connection.api.instances["c1"], "x", "c1", lambda body: body["config"].update(b="2"))
    assert daemon.asked.count("GET /1.0/operations/9/wait") == 1


def test_a_refused_change_is_not_repeated(daemon: FakeDaemon, connection: Connection) -> None:
    daemon.answer = lambda method, _: (
        (400, {"error": "Unknown key"}) if method == "PUT" else (200, {"type": "sync", "metadata": {}})
    )
    with pytest.raises(LxdFailed, match="Unknown key"):
        connection.change(connection.api.instances["c1"], "x", "c1", lambda body: body["config"].update(b="2"))
    assert daemon.asked.count("PUT /1.0/instances/c1") == 1


def test_a_daemon_that_does_not_answer_is_not_replaced_by_another(daemon: FakeDaemon, tmp_path: Path) -> None:
    """On a node with two daemons the machines of one that is being restarted would seem to be switched off."""
    daemon.answer = lambda method, path: (200, {"metadata": []})
    first, second, gone = str(tmp_path / "first"), str(daemon.server_address), str(tmp_path / "gone")
    with socket.socket(socket.AF_UNIX) as ended:
        ended.bind(first)
    assert glance.configurations(socket_candidates({}, (gone, second))) == ()
    assert socket_candidates({}, (gone,)) == (gone,)
    with pytest.raises(LxdUnavailable, match="Connection refused"):
        glance.configurations(socket_candidates({}, (gone, first, second)))
