"""Finds the points at which an action changes the world, and kills it there with -9.

Nobody lists them. In the process that is to die, every function through which code of the project can change anything outside of
its own memory is wrapped: the system calls of :mod:`mapper_core.linux`, what :mod:`os` has for files and processes, ioctls, and
what is sent to a daemon's socket. A call that comes from a module of the project is a *point*, named after that module, its
function, and what it calls; a new step in the product is a new point. The moment before a point and the moment after it are
numbered from 0 on in the order in which they pass; the process is killed at one of them.

The programs that it has started (those below it, and all whose command line names the runtime directory) can die with it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

#: Packages whose calls count.
OURS = ("mapper_core", "mapper_driver", "mapper_raw", "mapper_qcow2", "mapper_vmdk", "mapper_rbd")

#: What of :mod:`os` changes something outside of the process.
CHANGES = (
    *("write", "pwrite", "fsync", "ftruncate", "truncate", "posix_fallocate"),
    *("rename", "replace", "link", "symlink", "unlink", "remove", "mkdir", "rmdir"),
    *("chmod", "fchmod", "chown", "fchown", "setxattr", "kill", "fork"),
)

_WRITING = os.O_CREAT | os.O_TRUNC


@dataclass(frozen=True)
class Victim:
    """Which moment of its life a process does not survive.

    :param moment: its number; negative: it survives all, and says each.
    :param helpers: directory; who is below the process or names it dies too. Empty: nobody else dies.
    :param say: gets the name of the moment, just before the end.
    :param is_point: chooses among the points by their names.
    :param only_own: of those who name the directory only the ones that were started after the process.
    """

    moment: int
    helpers: str
    say: Callable[[str], object]
    is_point: Callable[[str], bool] = field(default=lambda name: True)
    only_own: bool = False

    def arm(self) -> Armed:
        """Wrap everything, in this process. There is no way back: the process ends soon."""
        armed = Armed(self)
        armed.install()
        return armed


class Armed:
    """A process in which everything is wrapped; ``passed`` counts the moments."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.passed = 0
        self.is_inside = False
        self.pid = os.getpid()
        self.kill, self.getpid = os.kill, os.getpid

    def install(self) -> None:
        from mapper_core.linux import syscalls

        for name in CHANGES:
            setattr(os, name, self.wrapped(getattr(os, name), name))
        os.open = self.wrapped(os.open, "open", lambda _path, flags, *_: bool(flags & _WRITING))
        fcntl.ioctl = self.wrapped(fcntl.ioctl, "ioctl")
        for name in ("connect", "send", "sendall"):
            setattr(socket.socket, name, self.wrapped(getattr(socket.socket, name), name))
        for function in (syscalls.call, syscalls.syscall):
            self._replace_everywhere(function, self.wrapped(function, function.__name__))

    @staticmethod
    def _replace_everywhere(old: object, new: object) -> None:
        """Also where it was imported by name."""
        for name, module in list(sys.modules.items()):
            if name.startswith(OURS):
                for key in [key for key, value in vars(module).items() if value is old]:
                    setattr(module, key, new)

    def wrapped(self, real: Callable[..., Any], name: str, changes: Callable[..., bool] = lambda *_: True) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if self.is_inside or self.getpid() != self.pid or threading.current_thread() is not threading.main_thread():
                return real(*arguments, **named)
            place = _place()
            if not place or not changes(*arguments):
                return real(*arguments, **named)
            point = f"{place}: {name}{_detail(name, arguments)}"
            if not self.victim.is_point(point):
                return real(*arguments, **named)
            self.pass_by(f"before {point}")
            result = real(*arguments, **named)
            if self.getpid() == self.pid:  # and not the child of a fork
                self.pass_by(f"after {point}")
            return result

        return call

    def pass_by(self, where: str) -> None:
        if self.victim.moment < 0:
            self.victim.say(f"{where}\n")
        if self.passed == self.victim.moment:
            self.is_inside = True
            self.victim.say(where)
            for pid in helpers(self.pid, self.victim.helpers, self.victim.only_own) if self.victim.helpers else ():
                self.kill(pid, signal.SIGKILL)
            self.kill(self.pid, signal.SIGKILL)
        self.passed += 1


def _place() -> str:
    """The innermost function of the project that is being executed."""
    frame = sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(OURS) and module != "mapper_core.linux.syscalls":
            return f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _detail(name: str, arguments: tuple[Any, ...]) -> str:
    """The number of a system call or an ioctl tells more than that it is one."""
    if name in ("call", "syscall"):
        return f" {arguments[0]}"
    return f" {arguments[1]:#x}" if name == "ioctl" else ""


def helpers(pid: int, directory: str, only_own: bool) -> list[int]:
    """Processes below a process, and those whose command line names a directory."""
    parents, started, named = {}, {}, set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
            with open(f"/proc/{name}/cmdline", "rb") as file:
                command = file.read()
        except OSError:
            continue
        parents[int(name)], started[int(name)] = int(fields[1]), int(fields[19])
        if os.fsencode(f"{directory}/") in command:
            named.add(int(name))
    found = {other for other in named if not only_own or started[other] >= started.get(pid, 0)}
    for child in parents:
        ancestor = parents[child]
        while ancestor in parents and ancestor != pid:
            ancestor = parents[ancestor]
        if ancestor == pid:
            found.add(child)
    return sorted(found - {pid, os.getppid()})
