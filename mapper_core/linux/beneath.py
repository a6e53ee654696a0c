"""Open files of a hostile tree: no name in it can lead out of it (:manpage:`openat2(2)`, kernel 5.6).

The kernel resolves every path as if the root descriptor were ``/``: absolute symbolic links and ``..`` stay inside,
magic links (``/proc/PID/fd/N``) are refused. What is opened is looked at before it is read: opening a FIFO blocks and
opening a device node starts its driver.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from mapper_core.errors import NotFound, UnsafePath
from mapper_core.linux.syscalls import OPENAT2, kernel_error, syscall

_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_PATH_MAX = 4096  # with the final NUL

# The kernel answers EAGAIN when a rename or mount anywhere on the host happens while it walks over "..".
_ATTEMPTS = 128


def open_in_root(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """Open ``path`` inside a tree.

    :param root_fd: directory that is the root of the tree (``O_PATH`` is enough).
    :param path: absolute or relative to the root, which is the same here.
    :param flags: as for :func:`os.open`; ``O_CLOEXEC`` is added.
    :param mode: permissions of a file made with ``O_CREAT``.
    :raises NotFound: when there is no such file.
    :raises UnsafePath: for a NUL, an endless or overlong path, a loop of links, a magic link, a directory that is none.
    :raises KernelError: for all else.
    """
    name = os.fsencode(path)
    shown = _shown(path)
    if b"\0" in name:
        raise UnsafePath("the path contains a NUL", subject=shown)
    if len(name) >= _PATH_MAX:
        raise UnsafePath(f"the path has more than {_PATH_MAX - 1} bytes", subject=shown)
    if not name:
        raise UnsafePath("the path is empty", subject=shown)
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    for _ in range(_ATTEMPTS):
        try:
            return syscall(OPENAT2, root_fd, name, how, len(how))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                raise _typed(error, shown, flags) from error
    raise UnsafePath("the path changes while it is being resolved", subject=shown)


def open_directory_in_root(root_fd: int, path: str, *, create: int | None = None) -> int:
    """Open a directory inside a tree as ``O_PATH``, such as the target of a mount.

    :param create: permissions for the directories that are missing, made one by one inside the tree; ``None``: make
        none.
    :raises NotFound: when it is missing and ``create`` is ``None``.
    :raises UnsafePath: as :func:`open_in_root`, and when a component is a file or a dangling link.
    :raises KernelError: for all else, such as EROFS.
    """
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        return open_in_root(root_fd, path, flags)
    except NotFound:
        if create is None:
            raise
    # Every prefix is resolved from the root again: a link in the middle may be absolute.
    parent = open_in_root(root_fd, "/", flags)
    walked = ""
    try:
        for name in path.split("/"):
            if name in ("", "."):
                continue
            walked += "/" + name
            child = _open_or_make(root_fd, parent, walked, name, create)
            os.close(parent)
            parent = child
    except BaseException:
        os.close(parent)
        raise
    return parent


def read_file_in_root(root_fd: int, path: str, max_bytes: int) -> bytes:
    """Read a whole regular file of a tree.

    :raises NotFound: when there is no such file.
    :raises UnsafePath: when it is no regular file, or has more than ``max_bytes`` bytes; and as :func:`open_in_root`.
    :raises KernelError: for all else, such as EIO.
    """
    shown = _shown(path)
    found = open_in_root(root_fd, path, os.O_PATH)
    try:
        status = os.fstat(found)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafePath(f"is {_kind(status.st_mode)} and not a regular file", subject=shown)
        if status.st_size > max_bytes:
            raise UnsafePath(f"has {status.st_size} bytes; more than {max_bytes} are not read", subject=shown)
        try:
            fd = _reopen(found)
            try:
                return _read(fd, max_bytes, shown)
            finally:
                os.close(fd)
        except OSError as error:
            raise kernel_error(error, "cannot read the file", subject=shown) from error
    finally:
        os.close(found)


def _open_or_make(root_fd: int, parent: int, walked: str, name: str, mode: int | None) -> int:
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        return open_in_root(root_fd, walked, flags)
    except NotFound:
        pass
    try:
        os.mkdir(name, mode=mode or 0o755, dir_fd=parent)
    except FileExistsError:
        pass  # a dangling link, told apart below, or another process was faster
    except OSError as error:
        raise kernel_error(error, "cannot create the directory in the image", subject=_shown(walked)) from error
    try:
        return open_in_root(root_fd, walked, flags)
    except NotFound as error:
        raise UnsafePath("is a symbolic link that leads nowhere", subject=_shown(walked)) from error


def _reopen(found: int) -> int:
    """Open for reading the same inode that was looked at, whatever its name leads to by now."""
    path = f"/proc/self/fd/{found}"
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_NOATIME)  # looking at an image must not write to it
    except PermissionError:  # O_NOATIME is for owners; on an idmapped mount root is not one
        return os.open(path, flags)


def _read(fd: int, max_bytes: int, shown: str) -> bytes:
    chunks: list[bytes] = []
    left = max_bytes + 1
    while left > 0 and (chunk := os.read(fd, min(left, 1 << 20))):
        chunks.append(chunk)
        left -= len(chunk)
    if left <= 0:
        raise UnsafePath(f"has more than {max_bytes} bytes", subject=shown)
    return b"".join(chunks)


def _typed(error: OSError, shown: str, flags: int) -> Exception:
    number = error.errno
    if number == errno.ENOENT:
        return NotFound("there is no such file in the image", subject=shown)
    if number == errno.ENOTDIR:
        if flags & os.O_DIRECTORY:
            return UnsafePath("is not a directory", subject=shown)
        return NotFound("there is no such file in the image: a part of the path is not a directory", subject=shown)
    if number == errno.ELOOP:
        return UnsafePath(
            "leads through too many symbolic links, or through one that must not be followed", subject=shown
        )
    if number == errno.ENAMETOOLONG:
        return UnsafePath("has a part that is too long for a file name", subject=shown)
    if number == errno.EXDEV:
        return UnsafePath("leads out of the image", subject=shown)
    return kernel_error(error, "cannot open the file in the image", subject=shown)


def _shown(path: str) -> str:
    """A name of the image in the form that is safe to print."""
    text = path if len(path) <= 200 else path[:200] + "..."
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
        stat.S_IFLNK: "a symbolic link",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")
