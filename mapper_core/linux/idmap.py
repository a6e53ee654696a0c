"""A user namespace that is only a map of ids, for idmapped mounts (:manpage:`user_namespaces(7)`)."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator

from mapper_core.errors import MapperError, NotSupported, UsageError
from mapper_core.linux import forked
from mapper_core.linux.syscalls import call, kernel_error, libc
from mapper_core.model import IdMap, IdRange

_CLONE_NEWUSER = 0x10000000


def user_namespace(idmap: IdMap) -> int:
    """Make a user namespace with these maps.

    A namespace needs a process to be born in. It has nothing of this one's open, and it is gone before this returns; when this
    process is killed meanwhile, it ends at once.

    :returns: descriptor of the namespace; it lives while this or a mount uses it.
    :raises UsageError: when a map is empty, overlapping, or not accepted by the kernel.
    :raises NotSupported: when this host forbids user namespaces.
    :raises KernelError: for all else.
    """
    uid_map, gid_map = format_map(idmap.uid), format_map(idmap.gid)
    with _process_in_namespace() as pid:
        _write_map(pid, "uid_map", uid_map)
        _write_map(pid, "gid_map", gid_map)
        try:
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise kernel_error(error, "cannot open the new user namespace") from error


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


@contextlib.contextmanager
def _process_in_namespace() -> Iterator[int]:
    libc()  # loaded before the fork: little should happen after it
    alive_read, alive_write = os.pipe2(os.O_CLOEXEC)
    report_read, report_write = os.pipe2(os.O_CLOEXEC)
    pid = forked.fork()
    if pid == 0:
        _live(alive_read, report_write)
    os.close(alive_read)
    os.close(report_write)
    try:
        number = int(os.read(report_read, 16) or errno.ECHILD)
        if number:
            raise _refusal(number)
        yield pid
    finally:
        os.close(report_read)
        os.close(alive_write)
        _reap(pid)


def _live(alive: int, report: int) -> None:
    """Be the process; never returns."""
    try:
        forked.close_all_but(alive, report)
        number = 0
        try:
            call("unshare", _CLONE_NEWUSER)
        except OSError as error:
            number = error.errno or errno.EINVAL
        os.write(report, b"%d" % number)
        os.read(alive, 1)  # returns when the other side is closed, by whatever
    finally:
        os._exit(0)


def _refusal(number: int) -> MapperError:
    error = OSError(number, os.strerror(number))
    if number in (errno.ENOSPC, errno.EUSERS, errno.EPERM, errno.EINVAL, errno.ENOSYS):
        return NotSupported(
            f"this host does not allow a user namespace: {error.strerror}",
            hint="see `sysctl user.max_user_namespaces`; inside of a chroot they are always forbidden",
        )
    return kernel_error(error, "cannot make a user namespace")


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
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
