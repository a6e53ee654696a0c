"""The C library and system calls that Python 3.11 does not wrap.

The library is loaded on the first call and not on import: the fast path (a raw image on a loop device) needs no
ctypes at all. Failures are raised as :class:`OSError` with the errno of the call.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from typing import TYPE_CHECKING

from mapper_core.errors import KernelError, NotSupported

if TYPE_CHECKING:
    import ctypes

# Calls added since kernel 5.1 have the same number on every architecture that uses the common table, which
# x86_64 and aarch64 do (linux/arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
OPEN_TREE = 428
MOVE_MOUNT = 429
FSOPEN = 430
FSCONFIG = 431
FSMOUNT = 432
FSPICK = 433
OPENAT2 = 437
MOUNT_SETATTR = 442

KNOWN_MACHINES = ("x86_64", "aarch64")

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
AT_RECURSIVE = 0x8000
_AT_NO_AUTOMOUNT = 0x800
_AT_STATX_FORCE_SYNC = 0x2000
_AT_STATX_DONT_SYNC = 0x4000
_STATX_SIZE = 0x200
_STATX_BYTES = 256
_MAX_ARGUMENTS = 6


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library of this process, loaded once.

    :raises NotSupported: on an architecture whose system call numbers were not checked.
    """
    machine = os.uname().machine
    if machine not in KNOWN_MACHINES:
        raise NotSupported(
            f"the system call numbers of {machine} are not known; supported: {', '.join(KNOWN_MACHINES)}"
        )
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    library.syscall.argtypes = (ctypes.c_long, *[ctypes.c_void_p] * _MAX_ARGUMENTS)
    return library


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """Make system call ``number``; see :manpage:`syscall(2)`.

    :param arguments: integers are passed as long, bytes as a pointer to memory that the kernel may only read (a NUL
        follows), ``None`` as NULL. At most six.
    :returns: the result, never negative.
    :raises OSError: with the errno of the call.
    """
    result: int = libc().syscall(number, *arguments, *(None,) * (_MAX_ARGUMENTS - len(arguments)))
    if result < 0:
        raise last_error()
    return result


def call(name: str, *arguments: int | bytes | None) -> int:
    """Call the C library function ``name`` that takes int and pointer arguments and returns -1 with errno on failure.

    :raises OSError: with the errno of the call.
    """
    import ctypes

    result: int = getattr(libc(), name)(
        *[ctypes.c_int(item) if isinstance(item, int) else ctypes.c_char_p(item) for item in arguments]
    )
    if result < 0:
        raise last_error()
    return result


def statx_without_sync(path: str) -> bytes:
    """The ``struct statx`` of a file as this kernel remembers it: no network or FUSE server is asked (:manpage:`statx(2)`).

    :raises OSError: with the errno of the call.
    """
    # Mask 1: only the type is needed; the device number comes with every answer.
    return _statx(path, _AT_STATX_DONT_SYNC, 1)


def size_from_server(path: str) -> int:
    """The size of a file, bytes, asked of the network or FUSE server again, whatever this kernel remembers.

    :raises OSError: with the errno of the call.
    """
    return int.from_bytes(_statx(path, _AT_STATX_FORCE_SYNC, _STATX_SIZE)[0x28:0x30], sys.byteorder)


def statx_of_name(name: str, parent_fd: int = AT_FDCWD) -> bytes:
    """As :func:`statx_without_sync`, not following a final symbolic link, and mounting nothing that mounts itself.

    :param parent_fd: directory in which the name is; ignored for an absolute path.
    """
    return _statx(name, _AT_STATX_DONT_SYNC | AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT, 1, parent_fd)


def _statx(path: str, flags: int, mask: int, parent_fd: int = AT_FDCWD) -> bytes:
    status = _statx_buffer()()
    if libc().statx(parent_fd, os.fsencode(path), flags, mask, status) < 0:
        raise last_error()
    return status.raw


@functools.cache  # ctypes forgets an array type that nobody has, and makes it anew: 10 us
def _statx_buffer() -> type[ctypes.Array[ctypes.c_char]]:
    """The type of a buffer for a ``struct statx``."""
    import ctypes

    return ctypes.c_char * _STATX_BYTES


def last_error() -> OSError:
    """The errno that the last call of this thread left, as an exception."""
    import ctypes

    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def kernel_error(error: OSError, what: str, *, subject: str = "", hint: str = "") -> KernelError:
    """Give an :class:`OSError` without a class of its own the form that people and programs read.

    :param what: what was tried, such as ``cannot attach a loop device``.
    """
    number = error.errno or 0
    name = errno.errorcode.get(number, str(number))
    return KernelError(f"{what}: {os.strerror(number)} ({name})", errno=number, subject=subject, hint=hint)
