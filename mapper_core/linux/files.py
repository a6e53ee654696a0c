"""Small files of the kernel and of our own, read with the fewest system calls."""

from __future__ import annotations

import fcntl
import os
import struct

_PIECE = 32 << 10


def real_path(path: str, flags: int = 0) -> str:
    """The path of an existing file, all symbolic links resolved: three system calls, however deep it is.

    :param flags: of :manpage:`open(2)`, beside ``O_PATH``: what kind of file it has to be.
    :raises OSError: as the kernel answered.
    """
    fd = os.open(path, flags | os.O_PATH | os.O_CLOEXEC)
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def open_directory(path: str) -> int:
    """Open a directory to mount on it: a symbolic link at its end is not followed, nothing in it is read."""
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def read_bytes(path: str) -> bytes:
    """Read a whole file: four system calls, where ``open().read()`` makes nine (Python 3.11).

    A file of /proc and /sys is what it was at the first read; a longer one is put together from pieces as for every reader.

    :raises OSError: as the kernel answered.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, _PIECE)
        while piece := os.read(fd, _PIECE):
            data += piece
        return data
    finally:
        os.close(fd)


def identity_without_asking(path: str) -> tuple[int, int]:
    """``st_dev`` and ``st_ino`` of a file, without any request to a file server that may be dead.

    :raises OSError: as the kernel answered.
    """
    from mapper_core.linux.syscalls import statx_without_sync

    status = statx_without_sync(path)
    (inode,) = struct.unpack_from("=Q", status, 0x20)
    return os.makedev(*struct.unpack_from("=II", status, 0x88)), inode


def is_in_memory(fd: int) -> bool:
    """Whether an open file is on a tmpfs, where there is nothing to sync, and nothing survives.

    Only files there can have seals (:manpage:`fcntl(2)`).
    """
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True
