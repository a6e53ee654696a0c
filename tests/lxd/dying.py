"""What happens at a chosen moment of an action, mostly that the daemon dies: a second socket of it, which sees each request of the
driver pass.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_SECONDS = 60.0
_ASKING = ("GET",)
_CHANGING = ("PUT", "POST", "PATCH", "DELETE")


@dataclass(frozen=True)
class Moment:
    """When it happens.

    :param number: at which request of the kind, counted from 1.
    :param changing: at one that changes something, or at one that only asks.
    :param when: after the request has been handed to the daemon, as soon as this is true.
    :param with_driver: the driver is killed as well, so that it cannot undo anything.
    """

    number: int = 1
    changing: bool = True
    when: Callable[[], bool] = field(default=lambda: True)
    with_driver: bool = False


class Door:
    """What comes in is handed on to the daemon.

    :param real: the daemon's own socket; the one for the driver is in the same directory.
    :param kill: ends the daemon, and returns when it has ended. Without it the daemon lives, and the driver gets its answer at the
        moment.
    """

    def __init__(self, real: str, kill: Callable[[], None] | None = None) -> None:
        self.path = f"{os.path.dirname(real)}/door.socket"
        self._real, self._kill = real, kill
        self._lock = threading.Lock()
        self._moment, self._count = Moment(number=0), 0
        self._killed = threading.Event()

    def arm(self, moment: Moment) -> None:
        """Choose when the daemon dies; requests are counted from now on."""
        self._moment, self._count = moment, 0
        self._killed.clear()

    def has_killed(self) -> bool:
        """Whether it came to that since :meth:`arm`; when the call is over."""
        return self._killed.wait(_SECONDS / 6)

    @contextlib.contextmanager
    def open(self) -> Iterator[Door]:
        """Take requests."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
            listening.bind(self.path)
            listening.listen()
            accepting = threading.Thread(target=self._accept, args=(listening,))
            accepting.start()
            try:
                yield self
            finally:
                listening.shutdown(socket.SHUT_RDWR)
                accepting.join(_SECONDS)
                os.unlink(self.path)

    def _accept(self, listening: socket.socket) -> None:
        serving = []
        with contextlib.suppress(OSError):
            while True:
                asking, _ = listening.accept()
                serving.append(threading.Thread(target=self._serve, args=(asking,)))
                serving[-1].start()
        for thread in serving:
            thread.join(_SECONDS)

    def _serve(self, asking: socket.socket) -> None:
        with asking, contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as real:
            for end in (asking, real):
                end.settimeout(_SECONDS)
            request = _read_request(asking)
            real.connect(self._real)
            real.sendall(request)
            if self._is_moment(request):
                self._wait_for_it()
                if self._kill is not None:
                    self._end(asking, self._kill)
                    return
            while data := real.recv(1 << 16):
                asking.sendall(data)

    def _is_moment(self, request: bytes) -> bool:
        kinds = _CHANGING if self._moment.changing else _ASKING
        with self._lock:
            self._count += request.partition(b" ")[0].decode() in kinds
            return self._count == self._moment.number and not self._killed.is_set()

    def _wait_for_it(self) -> None:
        until = time.monotonic() + _SECONDS / 2
        while not self._moment.when() and time.monotonic() < until:
            pass  # what it waits for may last a few milliseconds only

    def _end(self, asking: socket.socket, kill: Callable[[], None]) -> None:
        kill()
        if self._moment.with_driver:  # which does not see the end of the daemon before we hang up
            pid, _, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            os.kill(pid, signal.SIGKILL)
        self._killed.set()


def _read_request(asking: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += asking.recv(1 << 16) or _hung_up()
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < int(lengths[0] if lengths else 0):
        body += asking.recv(1 << 16) or _hung_up()
    return head + b"\r\n\r\n" + body


def _hung_up() -> bytes:
    raise ConnectionError("the client hung up")
