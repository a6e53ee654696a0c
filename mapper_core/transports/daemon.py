"""Daemons of qemu: started so that they can be found, and ended so that they are gone.

A program that was being started when its parent was killed has no pid file, perhaps not even its own command line yet. So it
inherits a lock on a file of the mapping's directory, from the fork on: while anything that was started for this mapping
lives, the lock is held, and whoever holds the file open is what was started.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time

from mapper_core import qemu_img
from mapper_core.errors import CommandFailed, DeadlineExceeded
from mapper_core.linux import process_info
from mapper_core.linux.confine import CAP_SYS_ADMIN
from mapper_core.linux.files import identity_without_asking
from mapper_core.process import Lifetime, run

_LOCK = "alive"
_PID = "pid"

#: After this time what has not ended is asked again, seconds.
_AGAIN_SECONDS = 1.0


def pid_file(directory: str) -> str:
    """Where the daemon of a directory writes its pid."""
    return f"{directory}/{_PID}"


def start(argv: tuple[str, ...], directory: str, *, seconds: float, subject: str) -> None:
    """Run a program that becomes a daemon, and return when it has.

    :param directory: of the mapping; made when it is missing.
    :param seconds: within which it must be ready.
    :raises ImageInUse: qemu's own image lock is held by another program.
    :raises CommandFailed: it could not start.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    lock = _open_lock(directory, os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.set_inheritable(lock, True)
        # the one mounts its export, the other makes the ioctls of nbd
        run(
            argv,
            timeout=seconds,
            subject=subject,
            inherit=(lock,),
            capabilities=(CAP_SYS_ADMIN,),
            lifetime=Lifetime.DISK,
        )
    except CommandFailed as error:
        raise qemu_img.explained(error, subject) from error
    finally:
        os.close(lock)


def stop(directory: str, program: str, *, seconds: float) -> None:
    """End whatever was started for a directory; a daemon gets SIGTERM, on which qemu's programs write their caches back.

    It gets more than one when it needs them. The main loop of qemu-storage-daemon (7.2) looks whether it was asked to end, and then
    waits for an event: a signal between the two is lost. That happens to one in some thousand, as what the end of a device
    has to do with the export makes the loop turn just then.

    :param program: its name, as the kernel shows it (the first 15 characters).
    :raises DeadlineExceeded: something still runs.
    """
    try:
        lock = _open_lock(directory, 0)
    except FileNotFoundError:
        return  # nothing was started
    try:
        deadline = time.monotonic() + seconds
        known = _from_pid_file(directory, program, lock)
        while not _is_free(lock):
            for process in known or _holders(lock):
                ours = process.name == program[:15]
                process_info.terminate(process.pid, process.start_time, signal.SIGTERM if ours else signal.SIGKILL)
                with contextlib.suppress(DeadlineExceeded):
                    wait = min(_AGAIN_SECONDS, deadline - time.monotonic())
                    process_info.wait_gone(process.pid, process.start_time, max(0.0, wait))
            known = ()
            if time.monotonic() > deadline:
                left = ", ".join(str(process.pid) for process in _holders(lock))
                raise DeadlineExceeded(
                    f"{program} (pid {left}) did not end within {seconds:g} s",
                    subject=directory,
                    hint="it may still be writing the image; run the command again, or look at the process",
                )
    finally:
        os.close(lock)


def kill(directory: str, *, seconds: float) -> None:
    """End whatever was started for a directory at once. Only for what cannot have anything to write back.

    :raises DeadlineExceeded: something still runs.
    """
    try:
        lock = _open_lock(directory, 0)
    except FileNotFoundError:
        return
    try:
        for process in () if _is_free(lock) else _holders(lock):
            process_info.terminate(process.pid, process.start_time, signal.SIGKILL)
            process_info.wait_gone(process.pid, process.start_time, seconds)
    finally:
        os.close(lock)


def remove_files(directory: str, *names: str) -> None:
    """Remove the directory and the files in it that are ours; what else is in it stays, and is an error.

    :raises OSError: the directory is not empty.
    """
    for name in (_LOCK, _PID, *names):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{directory}/{name}")
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(directory)


def _open_lock(directory: str, flags: int) -> int:
    return os.open(f"{directory}/{_LOCK}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)


def _is_free(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _from_pid_file(directory: str, program: str, lock: int) -> tuple[process_info.ProcessInfo, ...]:
    """The daemon, if its pid file is right: the quick way, which needs no look at all processes."""
    try:
        with open(pid_file(directory), encoding="ascii") as file:
            process = process_info.info(int(file.read()))
    except (FileNotFoundError, ValueError):
        return ()
    if process is None or process.name != program[:15] or not _has_open(process.pid, _key(lock)):
        return ()
    return (process,)


def _holders(lock: int) -> tuple[process_info.ProcessInfo, ...]:
    """All processes but this one that have the lock file open."""
    key = _key(lock)
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid())
    processes = (process_info.info(pid) for pid in pids if _has_open(pid, key))
    return tuple(process for process in processes if process is not None and not process.gone)


def _key(lock: int) -> tuple[int, int]:
    found = os.fstat(lock)
    return (found.st_dev, found.st_ino)


def _has_open(pid: int, key: tuple[int, int]) -> bool:
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            # not stat(): what others have open may be on a file server that hangs, or is dead
            with contextlib.suppress(OSError):
                if identity_without_asking(f"/proc/{pid}/fd/{name}") == key:
                    return True
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass
    return False
