"""New image files: they get their name when they are complete. Whatever happens before, nothing of them is left."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from mapper_core.errors import AlreadyExists, KernelError, NotFound
from mapper_core.frozen import dataclass

#: Only the owner may read a disk, whatever the umask; who wants it otherwise changes the mode.
MODE = 0o600


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that is being made.

    :param fd: for reading and writing.
    :param name: by which a program opens it that inherits ``fd``; it must write into this file, as qemu-img does, and not
        replace it.
    """

    fd: int
    name: str


@contextlib.contextmanager
def new_file(path: str) -> Iterator[NewFile]:
    """Make a file for the block to fill. At the end of the block it is stored and gets its name.

    The kernel removes a file without a name when nobody has it open any more (O_TMPFILE, :manpage:`open(2)`), also when this
    process is killed. Where the filesystem has none of those (NFS), the file has its name from the beginning and is removed
    when the block fails.

    :param path: absolute; the directory exists, symbolic links in it are resolved.
    :raises AlreadyExists: something has that name; a symbolic link, too.
    :raises NotFound: there is no such directory.
    :raises KernelError: for all else.
    """
    directory, name = os.path.split(path)
    with contextlib.ExitStack() as stack:
        try:
            parent = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, parent)
            fd, named = _open(name, parent)
            stack.callback(os.close, fd)
        except OSError as error:
            raise _explained(error, path) from error
        try:
            yield NewFile(fd, path if named else f"/proc/self/fd/{fd}")
            try:
                os.fsync(fd)
                if not named:
                    # with a directory, Python uses linkat(2) and follows the link in /proc; without one it does not
                    os.link(f"/proc/self/fd/{fd}", name, dst_dir_fd=parent)
                os.fsync(parent)
            except OSError as error:
                raise _explained(error, path) from error
        except BaseException:
            _remove_if_same(path, fd)
            raise


def _open(name: str, parent: int) -> tuple[int, bool]:
    """Return a new file, and whether it has its name already."""
    try:
        return os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, MODE, dir_fd=parent), False
    except OSError as error:
        # EISDIR: a filesystem from before Linux 3.11 or one in user space; see the man page
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOSYS):
            raise
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE, dir_fd=parent), True


def _explained(error: OSError, path: str) -> AlreadyExists | NotFound | KernelError:
    if isinstance(error, FileExistsError):
        return AlreadyExists("exists already", subject=path, hint="choose another name, or remove it")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return NotFound("there is no such directory", subject=os.path.dirname(path))
    return KernelError(f"the image cannot be made: {error.strerror}", errno=error.errno or 0, subject=path)


def _remove_if_same(path: str, fd: int) -> None:
    with contextlib.suppress(OSError):  # it has no name, or never could have had this one
        if os.path.samestat(os.lstat(path), os.fstat(fd)):
            os.unlink(path)
