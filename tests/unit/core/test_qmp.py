"""The client of QMP against servers that are slow, hostile or gone."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mapper_core.errors import DaemonRefused, DeadlineExceeded, NotFound
from mapper_core.transports.qmp import RECEIVE_LIMIT, Monitor

pytestmark = pytest.mark.unit

GREETING = b'{"QMP": {"version": {}, "capabilities": ["oob"]}}\r\n'


@contextmanager
def server(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server for one connection."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(1)
        listening.settimeout(5)

        def run() -> None:
            with suppress(OSError):
                connection, _ = listening.accept()
                with connection:
                    connection.settimeout(5)
                    serve(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield str(path)
        finally:
            listening.close()
            thread.join(10)


def _qemu(answers: dict[str, bytes], asked: list[dict[str, object]]) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        with connection.makefile("rb") as lines:
            for line in lines:
                request = json.loads(line)
                asked.append(request)
                connection.sendall(answers.get(request["execute"], b'{"return": {}}\r\n'))

    return serve


def _open(path: str, seconds: float = 5) -> Monitor:
    return Monitor(path, seconds=seconds, subject="/dev/loop0")


def test_a_conversation(short_dir: Path) -> None:
    asked: list[dict[str, object]] = []
    event = b'{"event": "RESUME", "timestamp": {}}\r\n'
    answers = {"query-version": event + event + b'{"return": {"qemu": 7}}\r\n'}
    with server(short_dir / "q", _qemu(answers, asked)) as path, _open(path) as monitor:
        assert monitor.execute("query-version") == {"qemu": 7}
        assert monitor.execute("block_resize", node_name="disk", size=512) == {}
    assert asked == [
        {"execute": "qmp_capabilities"},
        {"execute": "query-version"},
        {"execute": "block_resize", "arguments": {"node-name": "disk", "size": 512}},
    ]


@pytest.mark.parametrize("reason", ["No space left", "x" * 100_000])
def test_an_error_keeps_its_reason(short_dir: Path, reason: str) -> None:
    answer = json.dumps({"error": {"class": "GenericError", "desc": reason}}).encode() + b"\n"
    with server(short_dir / "q", _qemu({"block_resize": answer}, [])) as path, _open(path) as monitor:
        with pytest.raises(DaemonRefused, match=reason):
            monitor.execute("block_resize")
        assert monitor.execute("anything") == {}


def test_nobody_listens(short_dir: Path) -> None:
    with pytest.raises(NotFound, match="cannot be reached"), _open(f"{short_dir}/none"):
        pass


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (b"", "ended the connection"),
        (b'{"QMP": ', "ended the connection"),
        (b"hello\n", "sends no JSON"),
        (b"[]\n", "sends no JSON object"),
        (b"1\n", "sends no JSON object"),
        (b"{}\n", "does not speak QMP"),
        (b"[" * 100_000 + b"\n", "sends no JSON"),
        (b"\xff\xfe\n", "sends no JSON"),
        (GREETING + b'{"id": 1}\n', "an answer that is none"),
        (GREETING + b'{"error": 3}\n', "refuses qmp_capabilities: 3"),
        (b"x" * (RECEIVE_LIMIT + 1), "sends more than 4 MiB"),
        (GREETING + b'{"event": "x"}\n' * (RECEIVE_LIMIT // 15 + 1), "sends more than 4 MiB"),
    ],
)
def test_nonsense_is_refused(short_dir: Path, said: bytes, complaint: str) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1 << 16)

    with server(short_dir / "q", serve) as path, pytest.raises(DaemonRefused, match=complaint), _open(path):
        pass


@pytest.mark.parametrize("said", [b"", b'{"QMP"', GREETING])
def test_a_silent_server_has_a_deadline(short_dir: Path, said: bytes) -> None:
    silent = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(said)
        silent.wait(5)

    with server(short_dir / "q", serve) as path:
        with pytest.raises(DeadlineExceeded, match=r"within 0\.1 s"), _open(path, 0.1):
            pass
        silent.set()


def test_a_drip_does_not_move_the_deadline(short_dir: Path) -> None:
    silent = threading.Event()

    def serve(connection: socket.socket) -> None:
        while not silent.wait(0.02):
            connection.sendall(b" ")

    with server(short_dir / "q", serve) as path:
        with pytest.raises(DeadlineExceeded), _open(path, 0.2):
            pass
        silent.set()
