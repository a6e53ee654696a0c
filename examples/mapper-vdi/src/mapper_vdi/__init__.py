"""Mapper plugin for VDI, the disk images of VirtualBox."""

from __future__ import annotations

from mapper_core import Attachment, BlockNode, Disk, ImageInfo, MapOptions, Transports, hookimpl

MAPPER_API = (1, 1)  # oldest and newest hook API that this plugin works with


@hookimpl
def inspect(disk: Disk) -> ImageInfo:
    """Read the header and the block map, before any other program opens the image."""
    from mapper_vdi.header import inspect_image

    return inspect_image(disk)


@hookimpl
def recognize(header: bytes) -> bool:
    """Look for the signature, behind a line of text that is different everywhere."""
    return header[0x40:0x44] == b"\x7f\x10\xda\xbe"


@hookimpl
def map(disk: Disk, options: MapOptions, transports: Transports) -> Attachment:
    """Let qemu's driver read the image, by whatever makes block devices here."""
    return transports.attach(BlockNode("vdi", disk.source), options)


@hookimpl
def unmap(transports: Transports) -> None:
    """Take away what `map` made."""
    transports.release()


@hookimpl
def create(disk: Disk, size: int) -> None:
    """Make an image that grows with what is written."""
    from mapper_core import qemu_img

    qemu_img.create("vdi", disk.source, size)
