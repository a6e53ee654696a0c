"""Mapper plugin for raw images: the file's bytes are the disk's bytes."""

from __future__ import annotations

import os
import stat

from mapper_core import Access, Attachment, BlockNode, Disk, ImageInfo, MapOptions, Transports, hookimpl
from mapper_core.errors import TruncatedImage

MAPPER_API = (1, 1)


@hookimpl
def inspect(disk: Disk) -> ImageInfo:
    """Size is all there is to know; an end that is no full sector is not part of the disk, as for a loop device."""
    found = os.lstat(disk.source)
    size = found.st_size if stat.S_ISREG(found.st_mode) else _end(disk.source)
    if size < 512:
        raise TruncatedImage(f"a raw disk of {size} bytes has not even one sector", subject=disk.source)
    return ImageInfo(path=disk.source, format="raw", virtual_size=size // 512 * 512, file_size=size)


def _end(device: str) -> int:
    """The size of a block device, bytes: its status does not tell."""
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


@hookimpl
def map(disk: Disk, options: MapOptions, transports: Transports) -> Attachment:
    """``disk.raw`` becomes ``/dev/loop0``."""
    return transports.attach(BlockNode("raw", disk.source), options)


@hookimpl
def unmap(transports: Transports) -> None:
    """Take away what ``map`` made."""
    transports.release()


@hookimpl
def create(disk: Disk, size: int) -> None:
    """A file without content: it takes no room until it is written."""
    from mapper_core.newfile import new_file
    from mapper_core.transports.loop import extend

    with new_file(disk.source) as file:
        extend(file.fd, size, disk.source)


@hookimpl
def resize(disk: Disk, size: int, attachment: Attachment | None, transports: Transports) -> None:
    """Make the file longer, and the loop device with it."""
    if attachment is not None:
        transports.resize(size)
        return
    from mapper_core.transports.loop import extend, open_image

    fd = open_image(disk.source, Access.READ_WRITE)
    try:
        extend(fd, size, disk.source)
    finally:
        os.close(fd)
