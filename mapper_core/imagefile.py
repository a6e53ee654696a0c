"""Reading the header of a hostile image: what every inspector needs, done once.

An inspector opens each file through :func:`open_image`, reads at most :data:`METADATA_LIMIT` bytes in all, and follows
the names in the image only through :class:`mapper_core.references.Boundary`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from mapper_core.errors import (
    CorruptImage,
    ImageNotFound,
    KernelError,
    TruncatedImage,
    UnsafePath,
    UnsupportedFormat,
)
from mapper_core.frozen import dataclass
from mapper_core.identity import refusal
from mapper_core.policy import is_below

#: Metadata that is read for one disk, all its files together, bytes (S-19).
METADATA_LIMIT = 4 << 20

#: Part of it that is kept for what must be read: the headers of a long chain, of many extents.
_RESERVE = 2 << 20

#: Kernel interfaces that look like regular files.
KERNEL_DIRECTORIES = ("/proc", "/sys")


class Budget:
    """How much metadata may still be read, bytes."""

    def __init__(self) -> None:
        self.left = METADATA_LIMIT


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An open image file or block device.

    :param path: its real path.
    :param size: bytes.
    :param key: the same for two names of one file.
    """

    path: str
    size: int
    key: tuple[int, int]
    is_device: bool
    _fd: int
    _budget: Budget

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Read exactly ``length`` bytes.

        :param what: what is being read, for the error.
        :raises TruncatedImage: the file ends before.
        :raises UnsupportedFormat: the budget does not allow it.
        """
        if offset + length > self.size:
            raise self.truncated(what, offset + length)
        if length > self._budget.left:
            raise UnsupportedFormat(
                f"has more metadata than can be checked ({METADATA_LIMIT >> 20} MiB)", subject=self.path
            )
        self._budget.left -= length
        try:
            data = os.pread(self._fd, length, offset)
        except OSError as error:
            raise KernelError(
                f"cannot read the {what}: {error.strerror}", errno=error.errno or 0, subject=self.path
            ) from error
        if len(data) != length:  # it was shortened meanwhile
            raise self.truncated(what, offset + length)
        return data

    def read_start(self, length: int) -> bytes:
        """Read the first bytes, fewer if the file is shorter."""
        return self.read(0, min(length, self.size), "header")

    def affords(self, length: int) -> bool:
        """Say whether the budget has that many bytes for a check that is good to have but need not be made."""
        return length <= self._budget.left - _RESERVE

    def truncated(self, what: str, needed: int) -> TruncatedImage:
        """Return the error for a file that is shorter than its own metadata says."""
        return TruncatedImage(
            f"the file is truncated: the {what} needs {needed} bytes, but it has {self.size}",
            subject=self.path,
            hint="the copy or download did not finish; fetch the image again",
        )

    def corrupt(self, message: str, hint: str = "") -> CorruptImage:
        """Return the error for metadata that contradict themselves."""
        return CorruptImage(message, subject=self.path, hint=hint)

    def unsupported(self, message: str, hint: str = "") -> UnsupportedFormat:
        """Return the error for a variant that is not handled."""
        return UnsupportedFormat(message, subject=self.path, hint=hint)


@contextmanager
def open_image(path: str, budget: Budget) -> Iterator[ImageFile]:
    """Open a file for inspection.

    The type is checked before the file is opened, because opening alone can do something (a watchdog, a tape), and
    again afterwards on the open file.

    :raises ImageNotFound: it does not exist.
    :raises UnsafePath: it is neither a regular file nor a block device (S-26), or lies in /proc or /sys.
    :raises UnsafePath, NeedsRoot: the caller may not open it.
    :raises KernelError: it cannot be opened for another reason.
    """
    try:
        real = os.path.realpath(path, strict=True)
        before = os.stat(real)
    except (FileNotFoundError, NotADirectoryError):
        raise ImageNotFound(
            "the image does not exist", subject=path, hint="check the path; is the datastore mounted?"
        ) from None
    except (OSError, ValueError) as error:  # ELOOP, ENAMETOOLONG, NUL
        raise refusal(error, "the path cannot be followed", ascii(path)) from error
    _refuse_special(real, before)
    try:
        fd = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NOCTTY)
    except PermissionError as error:
        raise refusal(error, "cannot be opened for reading", real) from error
    except OSError as error:
        raise KernelError(
            f"cannot be opened for reading: {error.strerror}", errno=error.errno or 0, subject=real
        ) from error
    try:
        found = os.fstat(fd)
        _refuse_special(real, found)
        is_device = stat.S_ISBLK(found.st_mode)
        size = os.lseek(fd, 0, os.SEEK_END) if is_device else found.st_size
        key = (-1, found.st_rdev) if is_device else (found.st_dev, found.st_ino)
        yield ImageFile(real, size, key, is_device, fd, budget)
    finally:
        os.close(fd)


def _refuse_special(real: str, found: os.stat_result) -> None:
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode)):
        raise UnsafePath(
            "is neither a regular file nor a block device",
            subject=real,
            hint="an image must be a file or a block device",
        )
    if any(is_below(real, directory) for directory in KERNEL_DIRECTORIES):
        raise UnsafePath("is an interface of the kernel, not an image", subject=real)
