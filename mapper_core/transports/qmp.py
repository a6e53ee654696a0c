"""A client of QMP, the monitor protocol of qemu, on a unix socket.

One connection runs a few commands and is closed again. The server is not trusted to be quick or terse: there is one
deadline for the whole connection, and a limit for what it may send.

Source: qemu's ``docs/interop/qmp-spec.txt``: one JSON object a line; a greeting first, then answers in the order of the
commands, with events in between.
"""

from __future__ import annotations

import collections
import json
import socket
import time
from typing import TYPE_CHECKING, Any

from mapper_core.errors import DaemonRefused, DeadlineExceeded, NotFound

if TYPE_CHECKING:
    from types import TracebackType

#: What a server may send in one connection, bytes.
RECEIVE_LIMIT = 4 << 20


class Monitor:
    """A connection, used as a context manager.

    :param path: of the socket.
    :param seconds: after which every further wait fails, counted from the connection.
    :param subject: the object that the commands are about, for errors.
    """

    def __init__(self, path: str, *, seconds: float, subject: str) -> None:
        self._path = path
        self._seconds = seconds
        self._subject = subject
        self._deadline = 0.0
        self._received = 0
        self._lines: collections.deque[bytes] = collections.deque()
        self._rest = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Monitor:
        """Connect.

        :raises NotFound: nobody listens.
        :raises DeadlineExceeded: the server does not answer in time.
        :raises DaemonRefused: it is no QMP server.
        """
        self._deadline = time.monotonic() + self._seconds
        try:
            try:
                self._wait_at_most()
                self._socket.connect(self._path)
            except TimeoutError as error:  # before OSError, of which it is one
                raise self._late() from error
            except OSError as error:
                raise NotFound(f"its daemon cannot be reached: {error.strerror}", subject=self._subject) from error
            if "QMP" not in self._receive():
                raise self._refused("does not speak QMP")
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        self._socket.close()

    def execute(self, command: str, **arguments: object) -> Any:
        """Run a command; ``_`` in the names of its arguments stands for ``-``.

        :returns: the answer.
        :raises DaemonRefused: the server answers with an error, with nonsense, too much, or not at all.
        :raises DeadlineExceeded: it does not answer in time.
        """
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            self._wait_at_most()
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except TimeoutError as error:
            raise self._late() from error
        except OSError as error:
            raise self._refused(f"has gone: {error.strerror}") from error
        while True:
            answer = self._receive()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                reason = answer["error"].get("desc") if isinstance(answer["error"], dict) else None
                raise self._refused(f"refuses {command}: {reason or answer['error']!r}")
            if "event" not in answer:
                raise self._refused("sends an answer that is none")

    def _receive(self) -> dict[str, Any]:
        while not self._lines:
            try:
                self._wait_at_most()
                piece = self._socket.recv(1 << 16)
            except TimeoutError as error:
                raise self._late() from error
            except OSError as error:
                raise self._refused(f"has gone: {error.strerror}") from error
            if not piece:
                raise self._refused("has ended the connection")
            self._received += len(piece)
            if self._received > RECEIVE_LIMIT:
                raise self._refused(f"sends more than {RECEIVE_LIMIT >> 20} MiB")
            *lines, self._rest = (self._rest + piece).split(b"\n")
            self._lines.extend(lines)
        try:
            answer = json.loads(self._lines.popleft())
        except (ValueError, RecursionError) as error:
            raise self._refused("sends no JSON") from error
        if not isinstance(answer, dict):
            raise self._refused("sends no JSON object")
        return answer

    def _wait_at_most(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"its daemon did not answer within {self._seconds:g} s", subject=self._subject)

    def _refused(self, why: str) -> DaemonRefused:
        return DaemonRefused(f"its daemon {why}", subject=self._subject)
