"""Mount namespaces (:manpage:`setns(2)`, :manpage:`mount_namespaces(7)`)."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from mapper_core.errors import ProcessGone
from mapper_core.linux.syscalls import call, kernel_error

_CLONE_FS = 0x200
_CLONE_NEWNS = 0x20000


def mount_namespace_id(pid: int | str = "self") -> int:
    """Inode number of the mount namespace of a process, the number that ``lsns`` shows.

    :raises ProcessGone: when there is no such process.
    """
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ProcessGone("there is no such process", subject=f"process {pid}") from error
    except OSError as error:
        raise kernel_error(error, "cannot look at the mount namespace", subject=f"process {pid}") from error


@contextlib.contextmanager
def in_mount_namespace(pid: int) -> Iterator[None]:
    """Work in the mount namespace of another process; at the end the calling thread is back where it was.

    Only the calling thread moves; its root and working directory become the root of that namespace. From then on it no
    longer shares root, working directory and umask with the other threads of the process (a kernel condition for
    setns). Descriptors opened on either side stay valid on the other. A thread that is started inside of the block
    stays in the other namespace.

    :raises ProcessGone: when there is no such process.
    :raises KernelError: when it is not allowed (CAP_SYS_ADMIN and CAP_SYS_CHROOT are needed), or when there is no way
        back.
    """
    subject = f"process {pid}"
    flags = os.O_RDONLY | os.O_CLOEXEC
    with contextlib.ExitStack() as stack:

        def opened(path: str, mode: int) -> int:
            fd = os.open(path, mode)
            stack.callback(os.close, fd)
            return fd

        try:
            there = opened(f"/proc/{pid}/ns/mnt", flags)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESRCH):
                raise ProcessGone("there is no such process", subject=subject) from error
            raise kernel_error(error, "cannot open the mount namespace", subject=subject) from error
        try:
            here = opened("/proc/thread-self/ns/mnt", flags)
            if os.path.sameopenfile(here, there):
                yield
                return
            root = opened("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            directory = opened(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            call("unshare", _CLONE_FS)
            stack.callback(_return, here, root, directory)
            call("setns", there, _CLONE_NEWNS)
        except OSError as error:
            raise kernel_error(error, "cannot enter the mount namespace", subject=subject) from error
        yield


def _return(namespace: int, root: int, directory: int) -> None:
    try:
        call("unshare", _CLONE_FS)  # a thread that was started meanwhile shares them with us again
        call("setns", namespace, _CLONE_NEWNS)
        # setns() puts us into the root of the namespace; a process that was in a chroot goes back there.
        if not os.path.samestat(os.stat("/"), os.fstat(root)):
            os.fchdir(root)
            os.chroot(".")
        os.fchdir(directory)
    except OSError as error:
        raise kernel_error(error, "cannot return to the own mount namespace") from error
