"""A disk becomes another one: of another format, in another place, with the same bytes.

Both are mapped by their plugins, so every installed format can be converted to every other that can be made. Blocks of zeros are
not written, since a new disk reads as zeros.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from mapper_core import capabilities, users
from mapper_core.errors import AlreadyExists, KernelError
from mapper_core.linux import block
from mapper_core.linux.syscalls import kernel_error
from mapper_core.mapping import UNDO_SECONDS, Mapper
from mapper_core.model import Access, Disk, MapOptions, MappedDisk

#: Bytes that are read at a time, and the unit in which zeros are looked for.
CHUNK = 1 << 20
BLOCK = 64 << 10
_ZEROS = bytes(BLOCK)
_FULL = "look with df whether there is room where it lies; the kernel log may say more"

#: Is called with bytes done and bytes in all.
Progress = Callable[[int, int], None]


def convert(mapper: Mapper, source: Disk, target: Disk, progress: Progress) -> int:
    """Make a new disk with the content of another one; return its size, bytes.

    :param source: is mapped read-only for the time.
    :param target: does not exist. When something fails it is removed again, if it is a file.
    :raises AlreadyExists: the target is there, or is the source.
    :raises NotSupported: the plugin of the target cannot make disks.
    """
    size = capabilities.size_of(mapper, source)
    if _is_same(source, target):
        raise AlreadyExists("is the source itself", subject=target.source, hint="choose another name for the new disk")
    with (
        new_disk(mapper, target, size),
        mapped(mapper, source, MapOptions(Access.READ_ONLY)) as origin,
        mapped(mapper, target, MapOptions()) as copy,
    ):
        _copy(origin, copy, progress)
    return size


def _is_same(source: Disk, target: Disk) -> bool:
    """Whether two names are those of one disk: files by whatever link, volumes by their name."""
    if not source.source.startswith("/"):
        return (source.format, source.source) == (target.format, target.source)
    try:
        return target.source.startswith("/") and os.path.samefile(source.source, target.source)
    except OSError:  # the target is not there
        return False


@contextlib.contextmanager
def new_disk(mapper: Mapper, disk: Disk, size: int) -> Iterator[None]:
    """Make a disk for the block to fill; when that fails, a file is removed again."""
    capabilities.create(mapper, disk, size)
    try:
        yield
    except BaseException:
        if disk.source.startswith("/"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(disk.source)
        raise


@contextlib.contextmanager
def mapped(mapper: Mapper, disk: Disk, options: MapOptions) -> Iterator[MappedDisk]:
    """Hold a mapping for the length of the block; ``reconcile`` releases it if this process is killed."""
    user = users.this_process()
    found = mapper.map(disk, options, user=user)
    try:
        yield found
    finally:
        mapper.unmap(found.id, user=user, patience=UNDO_SECONDS)


def _copy(origin: MappedDisk, copy: MappedDisk, progress: Progress) -> None:
    size, source, target = min(origin.size, copy.size), origin.disk.source, copy.disk.source
    with contextlib.ExitStack() as closing:
        reader = os.open(origin.device, os.O_RDONLY | os.O_CLOEXEC)
        closing.callback(os.close, reader)
        closing.enter_context(block.exclusive(copy.device))  # nobody mounts it meanwhile
        writer = os.open(copy.device, os.O_RDWR | os.O_CLOEXEC)
        closing.callback(os.close, writer)
        os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        for offset in range(0, size, CHUNK):
            with _told("cannot be read", source, "its storage is broken, or its tables lead nowhere"):
                data = os.pread(reader, min(CHUNK, size - offset), offset)
            if len(data) != min(CHUNK, size - offset):
                raise KernelError("ends before its end", subject=source)
            with _told("cannot be written", target, _FULL):
                _write_what_is_not_zero(writer, data, offset)
            progress(offset + len(data), size)
        with _told("cannot be written", target, _FULL):
            os.fsync(writer)


@contextlib.contextmanager
def _told(what: str, subject: str, hint: str) -> Iterator[None]:
    """A device can only say that something went wrong; people know an image, and what may be the matter with it."""
    try:
        yield
    except OSError as error:
        raise kernel_error(error, what, subject=subject, hint=hint) from error


def _write_what_is_not_zero(writer: int, data: bytes, offset: int) -> None:
    for start in range(0, len(data), BLOCK):
        piece = data[start : start + BLOCK]
        if piece != _ZEROS[: len(piece)]:
            done = 0
            while done < len(piece):
                done += os.pwrite(writer, piece[done:], offset + start + done)
