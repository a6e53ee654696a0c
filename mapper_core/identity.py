"""Which disk is this? Names change, identities don't.

A file is (st_dev, st_ino), a block device its number, everything else (a volume in a cluster) its name. The identity
is the key of locks and of the journal, so that two names of one file are one mapping, and a file that merely took
over the name of another is not.
"""

from __future__ import annotations

import os
import stat

from mapper_core.errors import ImageNotFound, MapperError, NeedsRoot, UnsafePath
from mapper_core.frozen import dataclass
from mapper_core.model import Disk


@dataclass(frozen=True, slots=True)
class Identity:
    """Identity of a disk.

    :param id: key: ``f-<device>-<inode>``, ``b-<major>-<minor>`` or ``n-<digest>``; at most 40 characters of
        ``[a-z0-9-]``.
    :param source: the real path, symbolic links resolved; a volume's name unchanged.
    """

    id: str
    source: str

    @property
    def is_file(self) -> bool:
        """Whether the disk is a file or a block device of this host."""
        return not self.id.startswith("n-")


def identify_volume(disk: Disk, name: str) -> Identity:
    """Return the identity of a disk that is neither a file nor a block device.

    :param name: what its plugin calls it (hook ``identify``).
    """
    import hashlib

    digest = hashlib.sha256(f"{disk.format}\0{name}".encode(errors="surrogateescape")).hexdigest()
    return Identity(f"n-{digest[:32]}", disk.source)


def identify(disk: Disk) -> Identity:
    """Return the identity of a file or block device.

    :raises ImageNotFound: the path does not exist.
    :raises NeedsRoot: the caller may not reach it.
    :raises UnsafePath: it is neither a regular file nor a block device (S-26).
    """
    try:
        fd = os.open(disk.source, os.O_PATH | os.O_CLOEXEC)  # the path and the status of one and the same file
        try:
            real, found = os.readlink(f"/proc/self/fd/{fd}"), os.fstat(fd)
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        raise ImageNotFound(
            "the image does not exist", subject=disk.source, hint="check the path; is the datastore mounted?"
        ) from error
    except (OSError, ValueError) as error:
        raise refusal(error, "the image cannot be reached", disk.source) from error
    return Identity(id_of(found, real), real)


def refusal(error: OSError | ValueError, what: str, path: str) -> MapperError:
    """Return the error for a path that the kernel does not open.

    :param what: what was tried, such as ``the image cannot be opened``.
    """
    reason = error.strerror if isinstance(error, OSError) else str(error)
    if isinstance(error, PermissionError) and os.geteuid() != 0:
        return NeedsRoot(f"{what}: {reason}", subject=path, hint="run it as root, or as somebody who may read it")
    return UnsafePath(f"{what}: {reason}", subject=path)


def id_of(found: os.stat_result, path: str) -> str:
    """Return the key for a stat result.

    :raises UnsafePath: it is neither a regular file nor a block device.
    """
    if stat.S_ISREG(found.st_mode):
        return f"f-{found.st_dev:x}-{found.st_ino:x}"
    if stat.S_ISBLK(found.st_mode):
        return f"b-{os.major(found.st_rdev)}-{os.minor(found.st_rdev)}"
    raise UnsafePath(
        "is neither a regular file nor a block device",
        subject=path,
        hint="an image must be a file or a block device",
    )
