"""Locks between processes: ``flock`` on a file, gone with the process that holds it.

Not always at once: a child that a killed process was starting has the lock until it has become the other program (descriptors
close on exec) or has ended, which is a moment later. Such a holder is waited for; one that is to be seen works, and is not.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator

from mapper_core.errors import Busy, Refused
from mapper_core.linux import process_info
from mapper_core.linux.syscalls import kernel_error

#: How long to wait for a lock whose holder is not to be seen, seconds.
ORPHAN_SECONDS = 3.0
_ATTEMPTS = 64


@contextlib.contextmanager
def try_lock(path: str) -> Iterator[int]:
    """Hold the lock ``path`` for the block; waits for nobody, but for what a killed process has left (:data:`ORPHAN_SECONDS`).

    The file is made with mode 0600 and stays; a symbolic link is refused.

    :returns: the descriptor that holds the lock.
    :raises Busy: naming the process that holds it, where it is visible.
    :raises Refused: when the path is a symbolic link or no regular file.
    :raises KernelError: for all else, such as ENOENT of the directory.
    """
    fd = open_lock(path)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def try_lock_of(path: str, is_there: Callable[[], bool], patience: float = 0.0) -> Iterator[None]:
    """As :func:`try_lock`, for something that comes and goes: the file goes too when it is not there at the end.

    :param is_there: whether what the lock guards exists.
    :param patience: how long to wait for others, seconds.
    """
    lock = open_lock(path, patience)
    try:
        yield
    finally:
        try:
            if not is_there():
                remove(path)
        finally:
            os.close(lock)


def remove(path: str) -> None:
    """Remove the file of a lock that the caller holds. Whoever opened it meanwhile notices and makes a new one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def open_lock(path: str, patience: float = 0.0) -> int:
    """As :func:`try_lock`; the lock is held until the descriptor is closed.

    :param patience: how long to wait for others, seconds.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    until = time.monotonic() + patience
    for _ in range(_ATTEMPTS):
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            if os.path.islink(path):
                raise Refused("a lock must not be a symbolic link", subject=path) from error
            raise kernel_error(error, "cannot open the lock", subject=path) from error
        try:
            if _take(fd, path, until):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    raise Busy("the lock file is replaced again and again", subject=path)


def holder_pid(fd: int) -> int:
    """The process that holds the flock of an open file, from ``/proc/locks``; 0 when it is not visible."""
    status = os.fstat(fd)
    try:
        with open("/proc/locks", encoding="ascii") as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    exact = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    similar = 0
    for line in lines:
        # "1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF"; "->" as second field marks one who waits. A pid of another
        # pid namespace is 0 or -1.
        fields = line.split()
        if len(fields) < 8 or fields[1] != "FLOCK" or int(fields[4]) <= 0:
            continue
        if fields[5] == exact:
            return int(fields[4])
        if int(fields[5].rsplit(":", 1)[1]) == status.st_ino:
            similar = int(fields[4])  # on btrfs stat() tells another device number
    return similar


def _take(fd: int, path: str, until: float) -> bool:
    """Lock an open file; False when it has lost its name meanwhile (see :func:`remove`), so that the lock guards nothing.

    :param until: when to give up waiting for others, as of :func:`time.monotonic`.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if not _is_held_visibly(fd):
            until = max(until, time.monotonic() + ORPHAN_SECONDS)
        if not _wait(fd, until):
            pid = holder_pid(fd)
            who = _describe(pid) if pid else "another process"
            raise Busy(f"{who} works on it now", subject=path, hint="try again when it has finished") from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise Refused("a lock must be a regular file", subject=path)
    return status.st_nlink > 0


def _is_held_visibly(fd: int) -> bool:
    pid = holder_pid(fd)
    return pid != 0 and process_info.is_running(pid)


def _wait(fd: int, until: float) -> bool:
    """Wait for a lock, in the order in which all who wait have come; False when the time is up.

    :manpage:`flock(2)` knows no deadline, so it waits in a thread. One that gets the lock too late gives it back.
    """
    if time.monotonic() >= until:
        return False
    import threading

    guard, finished = threading.Lock(), threading.Event()
    own, is_late = os.dup(fd), False

    def wait() -> None:
        fcntl.flock(own, fcntl.LOCK_EX)
        with guard:
            if not is_late:
                finished.set()
            os.close(own)  # too late: by then the other descriptor is closed, and this one is the last

    threading.Thread(target=wait, daemon=True).start()
    if finished.wait(until - time.monotonic()):
        return True
    with guard:
        is_late = True
        return finished.is_set()


def _describe(pid: int) -> str:
    found = process_info.info(pid)
    if found is None or found.gone:
        return f"a child of process {pid}, which is gone,"
    return f"process {pid} ({found.name})"
