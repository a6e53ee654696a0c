"""Whether a plugin has made what it says it has (S-13). A plugin is other people's code, and works on images of strangers."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from mapper_core.errors import PluginFault, UsageError
from mapper_core.identity import id_of
from mapper_core.linux import block
from mapper_core.model import Access
from mapper_core.partitions import nodes
from mapper_core.resources import LoopResource
from mapper_core.transports.loop import open_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from mapper_core.journal import Journal, Record
    from mapper_core.model import ImageInfo


def open_device(
    journal: Journal,
    record: Record,
    image: ImageInfo | None,
    owns_device: Callable[[Record], bool],
    closing: contextlib.ExitStack,
) -> nodes.DeviceReader:
    """Check the device of a new mapping, and open it exclusively: nobody else uses it.

    :param journal: where the other mappings are.
    :param record: of the mapping, with the attachment that the plugin returned.
    :param image: what the image's header says; ``None`` when that is not known.
    :param owns_device: says whether a device is the one that a record's resources are for.
    :param closing: closes it.
    :raises PluginFault: it is not what it should be.
    :raises DeviceBusy: somebody uses it.
    """
    assert record.attachment is not None
    device, source = record.attachment.device, record.disk.source
    blame = f"the plugin {record.plugin} returned {device}"
    try:
        found = os.stat(device, follow_symlinks=False)
    except OSError as error:
        raise PluginFault(f"{blame}, which cannot be reached: {error.strerror}", subject=source) from error
    if not device.startswith("/dev/") or not stat.S_ISBLK(found.st_mode):
        raise PluginFault(f"{blame}, which is no block device", subject=source)
    if record.resources:
        try:
            is_ours = owns_device(record)
        except UsageError:  # a disk of the host, for example, where a loop device was made
            is_ours = False
        if not is_ours:
            raise PluginFault(f"{blame}, which is not the device that was made for it", subject=source)
    elif any(other.attachment and other.attachment.device == device for other in journal.records()):
        raise PluginFault(f"{blame}, which is another disk", subject=source)
    fd = block.open_exclusive(device)
    closing.callback(os.close, fd)
    reader = nodes.reader_of(fd, same_bytes(record, closing))
    if image is not None and reader.size != image.virtual_size // 512 * 512:
        raise PluginFault(f"{device} has {reader.size} bytes, the image says {image.virtual_size}", subject=source)
    return reader


def same_bytes(record: Record, closing: contextlib.ExitStack) -> int | None:
    """Open the image whose bytes are those of the device, when it is bound to a loop device as it is: its first bytes were
    looked at before, and have not to be fetched again through the device.
    """
    if [type(resource) for resource in record.resources] != [LoopResource]:
        return None
    with contextlib.suppress(OSError):  # it has lost its name in this moment: the device has it all the same
        fd = open_image(record.disk.source, Access.READ_ONLY)
        closing.callback(os.close, fd)
        if id_of(os.fstat(fd), record.disk.source) == record.id:
            return fd
    return None
