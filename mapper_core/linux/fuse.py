"""The control filesystem of FUSE (Documentation/filesystems/fuse.rst, "Control filesystem").

It is mounted detached for each call, so nothing has to be mounted on the host and nothing stays.
"""

from __future__ import annotations

import errno
import os

from mapper_core.errors import DeadlineExceeded, KernelError, NotMapped
from mapper_core.linux import mountinfo, mounts
from mapper_core.linux.syscalls import kernel_error
from mapper_core.model import Access


def limit_background(mount_point: str, *, deadline_seconds: float = 10) -> None:
    """Let the kernel send at most one background request (direct and asynchronous I/O) at a time to the server of a
    mount.

    Cure for servers that corrupt data with two writes in flight, as the FUSE export of qemu 7.2 does. The server sets
    the limit itself when it answers FUSE_INIT, so this first waits for a request to be answered.

    :param mount_point: the mounted directory or file, symbolic links resolved.
    :raises NotMapped: when no FUSE filesystem is mounted there.
    :raises DeadlineExceeded: when the server does not answer; its connection has been aborted then.
    :raises KernelError: for all else.
    """
    connection = _connection(mount_point)
    _wait_for_server(mount_point, deadline_seconds)
    _write(connection, "max_background", b"1", mount_point)
    answer = _read(connection, "max_background", mount_point)
    if answer != b"1":
        raise KernelError(f"the FUSE connection did not take the limit and says {answer!r}", subject=mount_point)


def abort(mount_point: str) -> None:
    """End the connection of a mount whose server is dead or hangs: all pending and new requests fail with an error.

    :raises NotMapped: when no FUSE filesystem is mounted there.
    """
    _write(_connection(mount_point), "abort", b"1", mount_point)


def max_background(mount_point: str) -> int:
    """The present limit.

    :raises NotMapped: when no FUSE filesystem is mounted there.
    """
    return int(_read(_connection(mount_point), "max_background", mount_point))


def _connection(mount_point: str) -> str:
    """The name of the connection's directory: the device number of the filesystem as the kernel counts it."""
    stacked = mountinfo.at(mount_point)  # not stat(): that asks the server, which may be dead
    if not stacked or stacked[-1].fstype.split(".")[0] not in ("fuse", "fuseblk"):
        raise NotMapped("no FUSE filesystem is mounted there", subject=mount_point)
    major, minor = stacked[-1].device
    return str(major << 20 | minor)


def _wait_for_server(mount_point: str, seconds: float) -> None:
    import threading

    failures: list[OSError] = []

    def ask() -> None:
        try:
            os.statvfs(mount_point)  # never answered from a cache
        except OSError as error:
            failures.append(error)

    # A request to a hanging server cannot be given a time-out, but abort() ends it.
    thread = threading.Thread(target=ask, name="fuse-ready", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        abort(mount_point)
        thread.join(seconds)
        raise DeadlineExceeded(f"the FUSE server did not answer within {seconds:g} seconds", subject=mount_point)
    # Any answer, even "function not implemented", comes from a server that has answered FUSE_INIT before.
    if failures and failures[0].errno in (errno.ENOTCONN, errno.ECONNABORTED):
        raise kernel_error(failures[0], "the FUSE server does not answer", subject=mount_point)


def _write(connection: str, name: str, value: bytes, subject: str) -> None:
    control = mounts.new_filesystem("fusectl", "none", access=Access.READ_WRITE)
    try:
        fd = os.open(f"{connection}/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=control)
        try:
            os.write(fd, value)
        finally:
            os.close(fd)
    except OSError as error:
        raise kernel_error(error, f"cannot set {name} of the FUSE connection", subject=subject) from error
    finally:
        os.close(control)


def _read(connection: str, name: str, subject: str) -> bytes:
    # There is one fusectl superblock on the host: it must not be made read-only, only this mount of it.
    attributes = mounts.MountAttribute.READ_ONLY
    control = mounts.new_filesystem("fusectl", "none", access=Access.READ_WRITE, attributes=attributes)
    try:
        fd = os.open(f"{connection}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=control)
        try:
            return os.read(fd, 64).strip()
        finally:
            os.close(fd)
    except OSError as error:
        raise kernel_error(error, f"cannot read {name} of the FUSE connection", subject=subject) from error
    finally:
        os.close(control)
