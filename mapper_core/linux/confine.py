"""What a program may do that is about to be started: capabilities, no_new_privs, limits of resources.

Root's user id stays. What goes are the capabilities (:manpage:`capabilities(7)`) that the program does not need, and with
``no_new_privs`` (Documentation/userspace-api/no_new_privs.rst) the way back to them: neither a set-user-id program nor
the user id 0 gives any of them to what it executes.
"""

from __future__ import annotations

import os
import resource
import signal
from typing import TYPE_CHECKING

from mapper_core.linux.syscalls import call, libc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# include/uapi/linux/capability.h
CAP_CHOWN = 0
CAP_DAC_OVERRIDE = 1
CAP_FOWNER = 3
CAP_FSETID = 4
CAP_SETGID = 6
CAP_SETUID = 7
CAP_IPC_LOCK = 14
CAP_SYS_MODULE = 16
CAP_SYS_ADMIN = 21
CAP_SYS_NICE = 23
CAP_MKNOD = 27
CAP_SETFCAP = 31
_VERSION_3 = 0x20080522

# include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38

#: Private memory that can be written, bytes. qemu 7.2 needs some 20 MiB and at most 32 MiB for the tables of each image
#: of a chain. Not RLIMIT_AS: the C library reserves far more than it uses, for each thread.
MEMORY_LIMIT = 4 << 30
#: Open files: an image has at most 2048 extents, and a client of Ceph has connections to all servers with its data.
FILES_LIMIT = 16384

_LIMITS = (
    (resource.RLIMIT_CORE, 0),  # a core dump of theirs would hold the content of disks
    (resource.RLIMIT_DATA, MEMORY_LIMIT),
    (resource.RLIMIT_NOFILE, FILES_LIMIT),
)


def confinement(capabilities: Iterable[int]) -> Callable[[], None]:
    """Return what confines the process that calls it, between fork and exec.

    Everything is prepared before: what is returned makes five system calls and raises only what they raise.

    :param capabilities: numbers of those that are kept, as far as this process has them.
    """
    import ctypes

    limits = [(kind, _lowered(kind, limit)) for kind, limit in _LIMITS]
    wanted = sum(1 << number for number in set(capabilities))
    library = libc()
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    present = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: the lower halves, then the upper ones
    library.capget(header, present)
    kept = (ctypes.c_uint32 * 6)()
    for half in (0, 1):
        kept[3 * half] = kept[3 * half + 1] = wanted >> 32 * half & present[3 * half + 1]

    def confine() -> None:
        for kind, limit in limits:
            resource.setrlimit(kind, (limit, limit))
        call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # inherited ones would come back with exec, and so would those of user id 0, but for no_new_privs
        if library.capset(header, kept) != 0:
            raise OSError(ctypes.get_errno(), "capset")

    return confine


def end_with_this_process() -> Callable[[], None]:
    """Return what makes the process that calls it, between fork and exec, be killed when this one ends (:manpage:`prctl(2)`).

    More exactly, when the thread ends that has forked. The daemons that it forks itself are not.
    """
    parent = os.getpid()

    def end() -> None:
        call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it has ended before we could say that
            os.kill(os.getpid(), signal.SIGKILL)

    return end


def _lowered(kind: int, limit: int) -> int:
    """A limit, or the present one when that is lower."""
    present = resource.getrlimit(kind)[1]
    return limit if present == resource.RLIM_INFINITY else min(limit, present)
