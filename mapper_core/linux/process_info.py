"""Processes by (pid, start time), which together are never used again, and pidfds (kernel 5.3).

A zombie counts as gone: it holds no memory, descriptor or device any more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from mapper_core.errors import DeadlineExceeded, ProcessGone
from mapper_core.frozen import dataclass
from mapper_core.linux.syscalls import kernel_error


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process that exists.

    :param start_time: clock ticks since boot (field 22 of :manpage:`proc_pid_stat(5)`).
    :param state: one letter; ``Z`` and ``X`` are dead.
    :param name: short name.
    """

    pid: int
    start_time: int
    state: str
    name: str

    @property
    def gone(self) -> bool:
        """Whether only its exit status is left."""
        return self.state in ("Z", "X")


def parse_stat(text: bytes) -> ProcessInfo:
    """Parse ``/proc/PID/stat``. The name stands in parentheses and may contain blanks and parentheses."""
    pid, rest = text.split(b" (", 1)
    name, rest = rest.rsplit(b") ", 1)
    fields = rest.split()
    return ProcessInfo(int(pid), int(fields[19]), fields[0].decode(), name.decode(errors="replace"))


def info(pid: int) -> ProcessInfo | None:
    """What is known about a process, zombies included; ``None`` when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return parse_stat(file.read())
    except (FileNotFoundError, ProcessLookupError):
        return None


def start_time(pid: int) -> int:
    """Start time of a living process.

    :raises ProcessGone: when it is gone.
    """
    found = info(pid)
    if found is None or found.gone:
        raise ProcessGone("there is no such process", subject=f"process {pid}")
    return found.start_time


def is_alive(pid: int, start_time: int) -> bool:
    """Whether exactly this process still runs (or sleeps, or is stopped)."""
    found = info(pid)
    return found is not None and found.start_time == start_time and not found.gone


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only its exit status, which nobody may ever ask for."""
    found = info(pid)
    return found is not None and not found.gone


def find_by_argument(program: str, argument: str) -> tuple[ProcessInfo, ...]:
    """Living processes of this user that run a program with an argument (a whole one, not a part).

    For servers whose pid file was never written or is stale: choose an argument that is unique, such as the path of a
    private directory. Processes of other users are left out, so that nobody can offer a victim by its command line.

    :param program: last component of ``argv[0]``.
    """
    wanted = os.fsencode(argument)
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                argv = file.read().split(b"\0")
                if os.fstat(file.fileno()).st_uid != os.geteuid():
                    continue
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if argv[0].rsplit(b"/", 1)[-1] == program.encode() and wanted in argv[1:]:
            process = info(int(name))
            if process is not None and not process.gone:
                found.append(process)
    return tuple(found)


def wait_gone(pid: int, start_time: int, deadline_seconds: float) -> None:
    """Wait until exactly this process has ended.

    :raises DeadlineExceeded: when it still runs after ``deadline_seconds``.
    """
    import select

    until = time.monotonic() + deadline_seconds
    fd = _open_pidfd(pid, start_time)
    if fd is None:
        return
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while not poll.poll(max(0, int((until - time.monotonic()) * 1000))):
            if time.monotonic() >= until:
                raise DeadlineExceeded(f"still runs after {deadline_seconds:g} seconds", subject=f"process {pid}")
    finally:
        os.close(fd)


def wait_for_an_end(processes: Sequence[ProcessInfo], seconds: float) -> None:
    """Wait until one of several processes has ended, at most ``seconds``; of none, as long. Callers look themselves what is now."""
    import contextlib
    import select

    poll = select.poll()
    with contextlib.ExitStack() as closing:
        for process in processes:
            fd = _open_pidfd(process.pid, process.start_time)
            if fd is None:
                return
            closing.callback(os.close, fd)
            poll.register(fd, select.POLLIN)
        poll.poll(max(1, int(seconds * 1000)))


def terminate(pid: int, start_time: int, signal_number: int = 15) -> bool:
    """Send a signal to exactly this process; never to another one that got its pid.

    :param signal_number: SIGTERM by default.
    :returns: whether there was somebody to send it to.
    :raises KernelError: when it is not allowed.
    """
    import signal

    fd = _open_pidfd(pid, start_time)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, signal_number)
    except ProcessLookupError:
        return False
    except OSError as error:
        raise kernel_error(error, "cannot end the process", subject=f"process {pid}") from error
    finally:
        os.close(fd)
    return True


def _open_pidfd(pid: int, start_time: int) -> int | None:
    """A pidfd, if it refers to the wanted process. The check comes after the open, so nothing can happen in between."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        raise kernel_error(error, "cannot watch the process", subject=f"process {pid}") from error
    try:
        alive = is_alive(pid, start_time)
    except BaseException:
        os.close(fd)
        raise
    if not alive:
        os.close(fd)
        return None
    return fd
