"""Is somebody else using this image? Leases tell quickly that nobody writes, image locks that a qemu uses it.

qemu (2.10 and later, ``file.locking``) holds open-file-description locks on single bytes of an image: byte 100+N when
it uses permission N, byte 200+N when it does not share it (block/file-posix.c, RAW_LOCK_PERM_BASE and
RAW_LOCK_SHARED_BASE). A loop device takes no lock, so whoever maps a file with one has to ask.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct

_F_OFD_GETLK = 36  # include/uapi/asm-generic/fcntl.h
_F_SETSIG = 10
_FLOCK = "hhqqi4x"  # struct flock on 64 bit: l_type, l_whence, l_start, l_len, l_pid
_FIRST_BYTE = 100
_LENGTH = 200


def foreign_lock(fd: int) -> str:
    """Return who holds qemu's lock on an open image, or an empty string.

    :param fd: descriptor of the image.
    :returns: text for people: ``another program`` (the kernel tells no pid for this kind of lock), or ``pid N``.
    """
    question = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, _FIRST_BYTE, _LENGTH, 0)
    try:
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, _F_OFD_GETLK, question))
    except OSError:
        return ""  # a filesystem without locks cannot tell
    if kind == fcntl.F_UNLCK:
        return ""
    return f"pid {pid}" if pid > 0 else "another program"


def surely_unwritten(path: str) -> bool:
    """Say whether it is certain that nobody has a file open for writing, loop devices and other hosts' daemons included.

    A read lease is granted only then (:manpage:`fcntl(2)`, F_SETLEASE), in constant time, however many devices the host
    has. ``False`` means nothing: some filesystems (NFS) never grant one.

    :param path: of a regular file, symbolic links resolved.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        # whoever opens it in between breaks the lease by a signal; the default one (SIGIO) would end this process
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EINVAL, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP):
            raise
        return False
    finally:
        os.close(fd)
    return True
