"""Transport ``loop``: a file is bound to a loop device by one ioctl, without any process."""

from __future__ import annotations

import errno
import os
import stat

from mapper_core.errors import ForbiddenReference, ImageInUse, NotSupported, ReadOnlyImage, Refused, UnsafePath
from mapper_core.identity import id_of
from mapper_core.linux import image_locks, loop, loop_status
from mapper_core.linux.syscalls import kernel_error
from mapper_core.model import Access, Attachment
from mapper_core.resources import LoopResource, PluginResource, Resource
from mapper_core.transports.base import Availability, Scope
from mapper_core.transports.blockgraph import BlockNode

#: How long the last writes to a disk that a daemon serves may take.
FLUSH_SECONDS = 60


class LoopTransport:
    """See the module."""

    name = "loop"

    def availability(self) -> Availability:
        """Works wherever ``/dev/loop-control`` is."""
        if not os.path.exists("/dev/loop-control"):
            return Availability("the kernel has no loop device (/dev/loop-control is missing)", "run: modprobe loop")
        return Availability()

    def accepts(self, node: BlockNode) -> bool:
        """Only bytes as they are, in a file: no format, no backing file."""
        return node.driver == "raw" and node.backing is None and node.data_file is None and node.protocol is None

    def attach(self, node: BlockNode, access: Access, scope: Scope) -> Attachment:
        """Bind the file.

        :raises ImageInUse: another program has locked it, or another loop device writes to it.
        :raises ReadOnlyImage: write access is asked for and not permitted (U-06).
        """
        # asked before we open it for writing ourselves
        unwritten = access is Access.READ_WRITE and image_locks.surely_unwritten(node.filename)
        fd = open_image(node.filename, access)
        try:
            found = os.fstat(fd)
            if scope.ledger.id != (now := id_of(found, node.filename)):
                raise ForbiddenReference(
                    f"the file was replaced while it was being mapped (was {scope.ledger.id}, is {now})",
                    subject=node.filename,
                )
            if access is Access.READ_WRITE:
                refuse_if_in_use(fd, found, node.filename, unwritten)
            return self.bind(fd, access, scope)
        finally:
            os.close(fd)

    def bind(self, fd: int, access: Access, scope: Scope) -> Attachment:
        """Bind an open file; shared with transports that make a file first."""
        resource = LoopResource(f"mapper:{scope.ledger.id}")
        scope.ledger.record(resource)
        device = loop.attach(fd, access=access, tag=resource.tag, direct_io=True)
        return Attachment(device.path, self.name)

    def resize(self, size: int, scope: Scope) -> None:
        """Make the file longer, then the device.

        :raises UnsafePath: the file is not the one that was mapped.
        :raises Refused: the disk is larger already, or is a block device that is smaller.
        """
        path = loop_status.backing_file(scope.ledger.device)
        fd = open_image(path, Access.READ_WRITE)
        try:
            if id_of(os.fstat(fd), path) != scope.ledger.id:
                raise UnsafePath("is not the file that was mapped any more", subject=path)
            extend(fd, size, path)
        finally:
            os.close(fd)
        loop.set_capacity(scope.ledger.device)

    def release(self, resource: Resource, scope: Scope) -> None:
        """Unbind the loop device with our tag; after a crash nobody knows its number, and all are asked."""
        assert isinstance(resource, LoopResource)
        known = scope.ledger.device
        if known and _detach(known, resource, scope):
            return
        for device in loop.find(resource.tag):
            _detach(device.path, resource, scope)


def _detach(device: str, resource: LoopResource, scope: Scope) -> bool:
    """Unbind one device, if it has our tag; one that a daemon serves may have a storage behind it that is gone.

    :raises DeadlineExceeded: that storage does not answer.
    """
    served = any(not isinstance(other, (LoopResource, PluginResource)) for other in scope.ledger.resources)
    status = loop.status(device) if served else None
    if status is not None and status.tag == resource.tag:
        from mapper_core.linux.flush import flush_within

        flush_within(device, FLUSH_SECONDS)
    return loop.detach(device, tag=resource.tag)


def open_image(path: str, access: Access) -> int:
    """Open an image file or block device, never blocking on a FIFO; return the descriptor.

    :raises ReadOnlyImage: write access is not permitted; it is never downgraded in silence.
    """
    flags = os.O_RDONLY if access is Access.READ_ONLY else os.O_RDWR
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and access is Access.READ_WRITE:
            raise ReadOnlyImage(
                f"the image cannot be opened for writing: {error.strerror}",
                subject=path,
                hint="check mode, owner and mount options of the datastore (root squash on NFS?), or map it read-only",
            ) from error
        raise


def extend(fd: int, size: int, path: str) -> None:
    """Make an open file longer; the new part takes no room until it is written, and reads as zeros.

    :param size: bytes.
    :raises NotSupported: it is a block device of another size.
    :raises Refused: it is longer already.
    :raises KernelError: the filesystem cannot have it so long.
    """
    present = os.lseek(fd, 0, os.SEEK_END)
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        if present == size:
            return
        raise NotSupported(
            f"is a block device of {present} bytes",
            subject=path,
            hint="enlarge it with the tool that made it (lvextend, for example), then resize it to that size here",
        )
    if present > size:
        raise Refused(f"has {present} bytes, more than {size}; a disk is never made smaller", subject=path)
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
    except OSError as error:
        raise kernel_error(error, f"cannot make the file {size} bytes long", subject=path) from error


def refuse_if_in_use(fd: int, found: os.stat_result, path: str, unwritten: bool) -> None:
    """Check that nobody else uses an image, before it is written.

    :param fd: the image, open.
    :param found: its status.
    :param unwritten: that no file descriptor can write it is known already.
    :raises ImageInUse: another program has locked it, or a loop device writes to it.
    """
    if holder := image_locks.foreign_lock(fd):
        raise ImageInUse(
            f"the image is locked by {holder}",
            subject=path,
            hint="a virtual machine or a qemu tool uses it; stop that first, or map read-only",
        )
    for status in () if unwritten else loop.list_devices():
        if not status.read_only and (status.backing_device, status.backing_inode) == (found.st_dev, found.st_ino):
            device = status.device.path
            raise ImageInUse(
                f"the image is bound to {device} already",
                subject=path,
                hint=f"look at it with: losetup --list {device}",
            )
