"""Mapper plugin for VMware images: monolithicSparse, monolithicFlat, twoGbMaxExtent*, streamOptimized (read-only)."""

from __future__ import annotations

import os

from mapper_core import Attachment, Disk, ImageInfo, MapOptions, Transports, hookimpl
from mapper_core.errors import UsageError

MAPPER_API = (1, 1)


@hookimpl
def inspect(disk: Disk) -> ImageInfo:
    """Read the header or descriptor of the image, its extents and its parents."""
    from mapper_vmdk.header import inspect_image

    return inspect_image(disk.source, disk.allowed_dirs)


@hookimpl
def recognize(header: bytes) -> bool:
    """Look for a sparse header or the text of a descriptor."""
    return header.startswith((b"KDMV", b"# Disk DescriptorFile"))


@hookimpl
def map(disk: Disk, image: ImageInfo | None, options: MapOptions, transports: Transports) -> Attachment:
    """Attach exactly the files that were inspected."""
    from mapper_core.transports.blockgraph import graph_of

    return transports.attach(graph_of(image or inspect(disk)), options)


@hookimpl
def unmap(transports: Transports) -> None:
    """Take away what ``map`` made."""
    transports.release()


@hookimpl
def create(disk: Disk, size: int) -> None:
    """``qemu-img create``: one sparse file. It can be made, but not be enlarged: qemu (7.2) has no code for that."""
    from mapper_core import qemu_img
    from mapper_core.newfile import NewFile
    from mapper_vmdk.sparse import rename_extent

    if not {'"', "\n", "\r"}.isdisjoint(os.path.basename(disk.source)):
        # it stands in the image, in one line and in quotation marks, and there is no way to write one of these
        raise UsageError("is no name for a vmdk image", subject=disk.source, hint="take the quotation marks out of it")

    def finish(file: NewFile) -> None:
        names = (os.fsencode(os.path.basename(name)) for name in (file.name, disk.source))
        rename_extent(file.fd, *names)

    qemu_img.create("vmdk", disk.source, size, "subformat=monolithicSparse", finish=finish)
