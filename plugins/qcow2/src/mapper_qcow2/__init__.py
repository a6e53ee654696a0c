"""Mapper plugin for qcow2 images: backing chains, external data files, compression, internal snapshots."""

from __future__ import annotations

from mapper_core import Attachment, Disk, ImageInfo, MapOptions, Snapshot, Transports, hookimpl
from mapper_core.errors import NotSupported

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


@hookimpl
def create(disk: Disk, size: int) -> None:
    """``qemu-img create``, of version 3."""
    from mapper_core import qemu_img

    qemu_img.create("qcow2", disk.source, size, "compat=1.1")


@hookimpl
def resize(
    disk: Disk, image: ImageInfo | None, size: int, attachment: Attachment | None, transports: Transports
) -> None:
    """By the daemon that has it open, or else by ``qemu-img resize``."""
    if attachment is not None:
        transports.resize(size)
        return
    from mapper_core import qemu_img
    from mapper_qcow2.snapshot_table import read_snapshots

    image = image or inspect(disk)
    if image.variant == "v2" and read_snapshots(disk.source):
        raise NotSupported(
            "qemu cannot resize an image of version 2 that has snapshots",
            subject=disk.source,
            hint="upgrade it first: qemu-img amend -f qcow2 -o compat=1.1",
        )
    qemu_img.change(image, "resize", after=(str(size),))


@hookimpl
def snapshots(disk: Disk) -> tuple[Snapshot, ...]:
    """Read them from the image, without any external program."""
    from mapper_qcow2.snapshot_table import read_snapshots

    return tuple(Snapshot(entry.name, entry.size, entry.created) for entry in read_snapshots(disk.source))


@hookimpl
def snapshot_create(disk: Disk, name: str, attachment: Attachment | None, transports: Transports) -> None:
    """An internal snapshot, made by the daemon that has the image open, or else by ``qemu-img snapshot``."""
    from mapper_qcow2.snapshot_table import refuse_data_file

    refuse_data_file(disk.source)
    if attachment is not None:
        transports.snapshot_create(name)
    else:
        _change(disk, "-c", name)


@hookimpl
def snapshot_revert(disk: Disk, name: str) -> None:
    """``qemu-img snapshot -a``. A disk that has grown since has its old size afterwards."""
    from mapper_qcow2.snapshot_table import snapshot_id

    _change(disk, "-a", snapshot_id(disk.source, name))


@hookimpl
def snapshot_delete(disk: Disk, name: str, attachment: Attachment | None, transports: Transports) -> None:
    """Give back the clusters that only the snapshot has used."""
    from mapper_qcow2.snapshot_table import snapshot_id

    identifier = snapshot_id(disk.source, name)
    if attachment is not None:
        transports.snapshot_delete(identifier, name)
    else:
        _change(disk, "-d", name)


def _change(disk: Disk, option: str, name: str) -> None:
    """Run ``qemu-img snapshot``."""
    from mapper_core import qemu_img

    qemu_img.change(inspect(disk), "snapshot", option, name)
