"""The node's console server: one process that listens on the ports of all consoles.

It is started by the first action that needs it, and ends with the last console. It is told that the files have changed by a
line on its control socket, and answers what is wrong with them; it has no state of its own, and can be killed at any time.
"""

from __future__ import annotations

import collections
import contextlib
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field

from mapper_core.errors import MapperError
from mapper_core.state_files import json_files
from mapper_driver.console import definition
from mapper_driver.console.definition import Console

#: Viewers of one console at a time: each has an X server of some 40 MB, which is there before the password is asked for.
MAX_VIEWERS = 8
#: Connections that one address may begin in a minute: passwords have only eight characters.
MAX_CONNECTIONS = 20
_MINUTE = 60.0

#: What a client of the control socket says.
RELOAD = b"reload\n"
#: The answer when all is well.
DONE = b"ok\n"

_CONTROL_SECONDS = 5.0


@dataclass(slots=True)
class Listener:
    """An open port.

    :ivar viewers: process ids of the sessions.
    :ivar begun: when each address began its latest connections.
    """

    console: Console
    socket: socket.socket
    viewers: set[int] = field(default_factory=set)
    begun: dict[str, collections.deque[float]] = field(default_factory=dict)

    def may_connect(self, address: str, now: float) -> bool:
        """Count a connection, and say whether there have not been too many."""
        if len(self.begun) > 1000:
            self.begun.clear()
        times = self.begun.setdefault(address, collections.deque(maxlen=MAX_CONNECTIONS))
        if len(self.viewers) >= MAX_VIEWERS or (len(times) == MAX_CONNECTIONS and now - times[0] < _MINUTE):
            return False
        times.append(now)
        return True


class Server:
    """Serves the consoles of a directory.

    :param files: directory of the definitions.
    :param control: the listening control socket.
    """

    def __init__(self, files: str, control: socket.socket) -> None:
        self._files = files
        self._selector = selectors.DefaultSelector()
        self._control = control
        self._selector.register(control, selectors.EVENT_READ)
        self._listeners: dict[str, Listener] = {}
        self._wake, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        self._selector.register(self._wake, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve until there is no console any more."""
        try:
            served = False
            while self._listeners or not served:
                for key, _ in self._selector.select():
                    if key.fileobj is self._control:
                        self._obey()
                        served = True
                    elif key.fileobj == self._wake:
                        self._reap()
                    elif isinstance(key.data, Listener):
                        self._accept(key.data)
        finally:
            for listener in list(self._listeners.values()):
                self._close(listener)

    def _obey(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._control.accept()
            with connection:
                connection.settimeout(_CONTROL_SECONDS)
                if connection.recv(64) == RELOAD:
                    problems = self.reload()
                    if not self._listeners:  # whoever comes after the answer is to find nobody, and start another one
                        self._control.close()
                    connection.sendall("\n".join(problems).encode() + b"\n" if problems else DONE)

    def reload(self) -> list[str]:
        """Open and close ports as the files say; return what cannot be done."""
        wanted, problems = {}, []
        for path in json_files(self._files):
            try:
                console = definition.read(path)
            except (MapperError, OSError) as error:  # of one machine: the others have their consoles
                problems.append(str(error))
                continue
            if console is not None:
                wanted[console.container] = console
        for name, listener in list(self._listeners.items()):
            if wanted.get(name) != listener.console:
                self._close(listener)
        for name, console in wanted.items():
            if name not in self._listeners:
                try:
                    self._open(console)
                except OSError as error:
                    problems.append(f"{name}: cannot listen on {console.address} port {console.port}: {error.strerror}")
        return problems

    def _open(self, console: Console) -> None:
        family = socket.AF_INET6 if ":" in console.address else socket.AF_INET
        opened = socket.create_server((console.address, console.port), family=family, backlog=16)
        listener = Listener(console, opened)
        self._listeners[console.container] = listener
        self._selector.register(opened, selectors.EVENT_READ, listener)

    def _close(self, listener: Listener) -> None:
        self._selector.unregister(listener.socket)
        listener.socket.close()
        del self._listeners[listener.console.container]
        for pid in listener.viewers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _accept(self, listener: Listener) -> None:
        try:
            connection, peer = listener.socket.accept()
        except OSError:
            return
        with connection:
            if not listener.may_connect(str(peer[0]), time.monotonic()):
                return
            pid = os.fork()
            if pid == 0:
                try:
                    self._become_viewer(listener.console, connection)
                finally:
                    os._exit(127)
            listener.viewers.add(pid)

    def _become_viewer(self, console: Console, connection: socket.socket) -> None:
        os.setsid()
        os.dup2(connection.fileno(), 0)
        path = f"{self._files}/{console.container}.json"
        argv = [sys.executable, "-m", "mapper_driver.console.viewer", path]
        os.execv(sys.executable, argv)  # noqa: S606

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                for listener in self._listeners.values():
                    listener.viewers.discard(pid)


def main() -> int:
    """``python -m mapper_driver.console.server FILES SOCKET``; descriptor 3 is closed when it listens."""
    files, path = sys.argv[1:3]
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    control.bind(path)
    os.chmod(path, 0o600)
    control.listen(16)
    os.close(3)  # whoever has started us waits for that
    try:
        Server(files, control).run()
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
