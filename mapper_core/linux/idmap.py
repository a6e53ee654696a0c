"""A user namespace that is only a map of ids, for idmapped mounts (:manpage:`user_namespaces(7)`)."""

from __future__ import annotations

import contextlib
import errno
import os
import signal

from mapper_core.errors import NotSupported, UsageError
from mapper_core.linux.syscalls import kernel_error, last_error, libc
from mapper_core.model import IdMap, IdRange

_CLONE_FILES = 0x400
_CLONE_NEWUSER = 0x10000000
_WALL = 0x40000000
_STACK = 64 * 1024
_LIFETIME_SECONDS = 10


def user_namespace(idmap: IdMap) -> int:
    """Make a user namespace with these maps.

    A namespace needs a process to be born in. It is cloned with ``sleep(3)`` of the C library as its only code: no
    line of Python runs in it, so this is safe in a process with threads. It has no signal to its parent, shares the
    descriptor table (so it keeps no device open longer), is killed and reaped before this returns, and ends by itself
    after 10 seconds if this process is killed meanwhile.

    :returns: descriptor of the namespace; it lives while this or a mount uses it.
    :raises UsageError: when a map is empty, overlapping, or not accepted by the kernel.
    :raises NotSupported: when this host forbids user namespaces.
    :raises KernelError: for all else.
    """
    uid_map, gid_map = format_map(idmap.uid), format_map(idmap.gid)
    pid = _clone()
    try:
        _write_map(pid, "uid_map", uid_map)
        _write_map(pid, "gid_map", gid_map)
        try:
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise kernel_error(error, "cannot open the new user namespace") from error
    finally:
        _reap(pid)


def format_map(ranges: tuple[IdRange, ...]) -> bytes:
    """The text for ``/proc/PID/uid_map``.

    :raises UsageError: when it is empty or a range is impossible.
    """
    if not ranges:
        raise UsageError("an id map needs at least one range")
    for item in ranges:
        if item.inside < 0 or item.host < 0 or item.count < 1 or max(item.inside, item.host) + item.count > 2**32 - 1:
            raise UsageError(f"this range of ids is impossible: {item.inside} {item.host} {item.count}")
    return b"".join(b"%d %d %d\n" % (item.inside, item.host, item.count) for item in ranges)


def _clone() -> int:
    import ctypes

    library = libc()
    code = ctypes.cast(library.sleep, ctypes.c_void_p)
    stack = ctypes.create_string_buffer(_STACK)
    top = (ctypes.addressof(stack) + _STACK) & ~0xF
    # All signals are blocked in the child for ever: a ^C must not run Python's handlers in it.
    old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid: int = library.clone(
            code, ctypes.c_void_p(top), ctypes.c_int(_CLONE_NEWUSER | _CLONE_FILES), ctypes.c_void_p(_LIFETIME_SECONDS)
        )
        error = last_error()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)
    if pid > 0:
        return pid
    if error.errno in (errno.ENOSPC, errno.EUSERS, errno.EPERM, errno.EINVAL, errno.ENOSYS):
        raise NotSupported(
            f"this host does not allow a user namespace: {error.strerror}",
            hint="see `sysctl user.max_user_namespaces`; inside of a chroot they are always forbidden",
        ) from error
    raise kernel_error(error, "cannot make a user namespace") from error


def _write_map(pid: int, name: str, text: bytes) -> None:
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text)  # the kernel takes a map in one write and only once
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise UsageError(f"the kernel does not accept this map of ids: {text.decode().strip()}") from error
        raise kernel_error(error, f"cannot write {name}") from error


def _reap(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    # Without an exit signal it is only waited for with __WALL, so no other code of this process can have reaped it.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, _WALL)
