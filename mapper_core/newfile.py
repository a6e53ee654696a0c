"""New image files: made exclusively, and gone again when making them fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from mapper_core.errors import AlreadyExists, KernelError, NotFound

#: Only the owner may read a disk, whatever the umask; who wants it otherwise changes the mode.
MODE = 0o600


@contextlib.contextmanager
def new_file(path: str) -> Iterator[int]:
    """Make an empty file for the block to fill; it is removed when the block fails.

    :param path: absolute; the directory exists, symbolic links in it are resolved.
    :returns: descriptor for reading and writing, closed at the end of the block. Programs that are given the path must
        write into this file, as qemu-img does, and not replace it.
    :raises AlreadyExists: something has that name; a symbolic link, too.
    :raises NotFound: there is no such directory.
    :raises KernelError: for all else.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
    except FileExistsError:
        raise AlreadyExists(
            "exists already",
            subject=path,
            hint="choose another name; if it is what a killed command has left, remove it",
        ) from None
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("there is no such directory", subject=os.path.dirname(path)) from None
    except OSError as error:
        raise KernelError(
            f"the image cannot be made: {error.strerror}", errno=error.errno or 0, subject=path
        ) from error
    try:
        yield fd
        os.fsync(fd)
    except BaseException:
        _remove_if_same(path, fd)
        raise
    finally:
        os.close(fd)


def _remove_if_same(path: str, fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.lstat(path), os.fstat(fd)):
            os.unlink(path)
