"""A disk becomes another one: of another format, in another place, with the same bytes.

Both are mapped by their plugins, so every installed format can be converted to every other that can be made. Blocks of zeros are
not written, since a new disk reads as zeros.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from mapper_core import capabilities, users
from mapper_core.errors import KernelError
from mapper_core.linux import block
from mapper_core.mapping import UNDO_SECONDS, Mapper
from mapper_core.model import Access, Disk, MapOptions, MappedDisk

#: Bytes that are read at a time, and the unit in which zeros are looked for.
CHUNK = 1 << 20
BLOCK = 64 << 10
_ZEROS = bytes(BLOCK)

#: Is called with bytes done and bytes in all.
Progress = Callable[[int, int], None]


def convert(mapper: Mapper, source: Disk, target: Disk, progress: Progress) -> int:
    """Make a new disk with the content of another one; return its size, bytes.

    :param source: is mapped read-only for the time.
    :param target: does not exist. When something fails it is removed again, if it is a file.
    :raises AlreadyExists: the target is there.
    :raises NotSupported: the plugin of the target cannot make disks.
    """
    size = capabilities.size_of(mapper, source)
    with (
        new_disk(mapper, target, size),
        mapped(mapper, source, MapOptions(Access.READ_ONLY)) as origin,
        mapped(mapper, target, MapOptions()) as copy,
    ):
        _copy(origin.device, copy.device, min(origin.size, copy.size), progress)
    return size


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


def _copy(source: str, target: str, size: int, progress: Progress) -> None:
    with contextlib.ExitStack() as closing:
        reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        closing.callback(os.close, reader)
        closing.enter_context(block.exclusive(target))  # nobody mounts it meanwhile
        writer = os.open(target, os.O_RDWR | os.O_CLOEXEC)
        closing.callback(os.close, writer)
        os.posix_fadvise(reader, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        for offset in range(0, size, CHUNK):
            data = os.pread(reader, min(CHUNK, size - offset), offset)
            if len(data) != min(CHUNK, size - offset):
                raise KernelError("ends before its end", subject=source)
            _write_what_is_not_zero(writer, data, offset)
            progress(offset + len(data), size)
        os.fsync(writer)


def _write_what_is_not_zero(writer: int, data: bytes, offset: int) -> None:
    for start in range(0, len(data), BLOCK):
        piece = data[start : start + BLOCK]
        if piece != _ZEROS[: len(piece)]:
            done = 0
            while done < len(piece):
                done += os.pwrite(writer, piece[done:], offset + start + done)
