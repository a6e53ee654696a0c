"""What actions do about consoles: show one, take one away. A console that cannot be shown keeps no machine from running."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys

from mapper_core.errors import DeadlineExceeded, MapperError, ToolMissing
from mapper_core.linux import cgroup, locks
from mapper_core.process import find_program
from mapper_core.runtime import Runtime
from mapper_core.state_files import json_files
from mapper_driver.console import definition
from mapper_driver.console.definition import Console
from mapper_driver.console.server import DONE, RELOAD
from mapper_driver.console.viewer import PROGRAMS
from mapper_driver.errors import ConsoleUnavailable
from mapper_driver.opennebula.framing import Log

#: Until the server listens, and until it has answered.
SECONDS = 20.0


def show(runtime: Runtime, console: Console, log: Log) -> None:
    """Let a machine have its console; what stands in the way is a warning."""
    try:
        missing = [f"{program} ({package})" for program, package in PROGRAMS if find_program(program) is None]
        if missing:
            raise ToolMissing(f"programs are missing: {', '.join(missing)}", hint="install these packages")
        definition.write(runtime, console)
        _refuse([line for line in _ask(runtime) if _is_about(line, runtime, console.container)])
    except (MapperError, OSError) as error:
        log.warning(f"there is no console for {console.container}: {error}")


def hide(runtime: Runtime, container: str, log: Log) -> None:
    """Take the console of a machine away, with its viewers; nothing happens when it has none."""
    try:
        if os.path.exists(definition.path_of(runtime, container)):
            definition.forget(runtime, container)
            _ask(runtime)
    except (MapperError, OSError) as error:
        log.warning(f"the console of {container} may still be there: {error}")


def reload(runtime: Runtime) -> None:
    """Make the server do what the files say; it is started if there is something to serve.

    :raises ConsoleUnavailable: it cannot; the message says what is wrong.
    :raises DeadlineExceeded: it does not answer.
    """
    _refuse(_ask(runtime))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConsoleUnavailable("\n".join(problems))


def _is_about(problem: str, runtime: Runtime, container: str) -> bool:
    """Whether a line of the server is about this machine, and not one of those that it could not serve before."""
    return problem.startswith((f"{container}: ", f"{definition.path_of(runtime, container)}: "))


def _ask(runtime: Runtime) -> list[str]:
    """Make the server do what the files say; what it cannot do, one line for each machine."""
    path = f"{runtime.root}/console.sock"
    files = definition.directory(runtime, os.environ)
    with contextlib.ExitStack() as undo:
        lock = f"{runtime.locks}/console"
        undo.callback(os.close, locks.open_lock(lock, SECONDS))
        undo.callback(locks.remove, lock)
        connection = _connect(path)
        if connection is None:
            if not json_files(files):
                return []
            connection = _start(files, path)
        with connection:
            connection.sendall(RELOAD)
            answer = connection.makefile("rb").read()
    if not answer:
        raise ConsoleUnavailable("the console server ended without an answer")
    return [] if answer == DONE else answer.decode(errors="replace").splitlines()


def _connect(path: str) -> socket.socket | None:
    """A connection to the server; ``None`` when there is none.

    :raises ConsoleUnavailable: it takes none.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(SECONDS)  # with none, it would wait for a place in the queue of a server that hangs
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BlockingIOError as error:
        connection.close()
        hint = "end that process; the next action starts another"
        raise ConsoleUnavailable("the console server answers nobody", subject=path, hint=hint) from error
    return connection


def _start(files: str, path: str) -> socket.socket:
    """Start the server as a daemon, in a session of its own, and wait until it listens; the connection to it."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of one that was killed; nobody else is here, the lock is held
    reader, ready = os.pipe()
    with open(reader, "rb", buffering=0) as answer:
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                cgroup.enter()
                if os.fork() == 0:
                    _become_server(files, path, ready)
            finally:
                os._exit(0)
        os.close(ready)
        os.waitpid(pid, 0)
        if not select.select([answer], [], [], SECONDS)[0]:
            raise DeadlineExceeded(f"the console server does not listen after {SECONDS:.0f} s", subject=path)
    connection = _connect(path)
    if connection is None:
        raise ConsoleUnavailable("the console server ended at once", subject=path)
    return connection


def _become_server(files: str, path: str, ready: int) -> None:
    """With nothing of ours open but ``ready``, which the server closes when it listens."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.dup2(ready, 3)
    os.closerange(4, 4096)
    os.chdir("/")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    os.execve(sys.executable, [sys.executable, "-m", "mapper_driver.console.server", files, path], environment)  # noqa: S606
