"""Mapper plugin for qcow2 images: backing chains, external data files, compression."""

from __future__ import annotations

from mapper_core import Attachment, Disk, ImageInfo, MapOptions, Transports, hookimpl

MAPPER_API = (1, 1)


@hookimpl
def inspect(disk: Disk) -> ImageInfo:
    """Read the headers of the image and of everything below it."""
    from mapper_qcow2.header import inspect_image

    return inspect_image(disk.source, disk.allowed_dirs)


@hookimpl
def recognize(header: bytes) -> bool:
    """Look for the magic number and a version that is supported."""
    return header.startswith((b"QFI\xfb\0\0\0\2", b"QFI\xfb\0\0\0\3"))


@hookimpl
def map(disk: Disk, image: ImageInfo | None, options: MapOptions, transports: Transports) -> Attachment:
    """Attach exactly the files that were inspected."""
    from mapper_core.transports.blockgraph import graph_of

    return transports.attach(graph_of(image or inspect(disk)), options)


@hookimpl
def unmap(transports: Transports) -> None:
    """Take away what ``map`` made."""
    transports.release()
