"""What some formats can do besides being mapped: be made, grow, keep snapshots, be taken from a dead host.

The plugin does the format's part; what must not be got wrong is here: the disk is locked, the header is checked as for a
mapping, nothing is overwritten or made smaller, a mapped disk is journaled and afterwards looked at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re

from mapper_core.errors import (
    AlreadyExists,
    BadPartitionTable,
    DeviceBusy,
    ImageInUse,
    MappedDifferently,
    NotFound,
    NotSupported,
    PluginFault,
    ReadOnlyImage,
    Refused,
    SnapshotMissing,
    UsageError,
)
from mapper_core.identity import Identity
from mapper_core.journal import Record
from mapper_core.linux import block
from mapper_core.mapping import Mapper
from mapper_core.model import Access, Disk, ImageInfo, MapOptions, Snapshot

#: A disk has whole sectors of this size, bytes.
SECTOR = 512

#: No disk is larger, bytes: the kernel counts offsets in 63 bits, and a table behind the end must not overflow them.
MAX_SIZE = 1 << 62

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_WRITE = MapOptions(Access.READ_WRITE)


# --- size ---------------------------------------------------------------------------------------------------


def create(mapper: Mapper, disk: Disk, size: int) -> None:
    """Make a new, empty disk.

    :param disk: a file's ``source`` is a path that does not exist, in a directory that does.
    :param size: bytes, a multiple of 512.
    :raises AlreadyExists: there is a disk, or anything else, of that name.
    :raises NotSupported: the format's plugin cannot make disks.
    """
    check_size(size, disk.source)
    mapper.registry.require(disk.format)
    disk = dataclasses.replace(disk, source=_new_source(disk.source))
    with mapper.lock(_key_of_new(disk)):
        if disk.source.startswith("/") and os.path.lexists(disk.source):
            raise AlreadyExists("exists already", subject=disk.source, hint="choose another name, or remove it")
        mapper.registry.create(disk, size)
        with contextlib.ExitStack() as undo:
            identity = mapper.identify(disk)
            if identity.is_file:
                undo.callback(os.unlink, identity.source)
            _check_image_size(disk, mapper.inspect_for(disk, identity, _WRITE), size)
            undo.pop_all()


def size_of(mapper: Mapper, disk: Disk) -> int:
    """Return the size of a disk, bytes; of a mapped one that of its device.

    :raises NotSupported: the format's plugin cannot tell.
    """
    identity = mapper.identify(disk)
    mapped = mapper.find(identity.id)
    if mapped is not None:
        return mapped.size
    return _known(mapper.inspect_for(disk, identity, MapOptions(Access.READ_ONLY)), disk).virtual_size


def resize(mapper: Mapper, disk: Disk, size: int) -> None:
    """Make a disk larger: the image, and when it is mapped its device, while it is in use.

    Partitions and filesystems are left alone, see :mod:`mapper_core.grow`. A disk that has the size already is a success.
    What a crash interrupts is finished by the same call, and by ``reconcile``.

    :param size: bytes, a multiple of 512.
    :raises Refused: the disk is larger.
    :raises ReadOnlyImage: it is mapped read-only.
    :raises ImageInUse: another program uses it.
    :raises NotSupported: its plugin or its transport cannot do that, in this state.
    """
    check_size(size, disk.source)
    identity = mapper.identify(disk)
    disk = dataclasses.replace(disk, source=identity.source)
    with mapper.lock(identity.id):
        record = mapper.settled(identity.id)
        if record is None:
            _resize_free(mapper, disk, identity, size)
        else:
            _resize_mapped(mapper, disk, record, size)


def finish_resize(mapper: Mapper, record_id: str) -> bool:
    """Finish the resize of a mapped disk that a crash has interrupted; of that disk, whatever has its name by now.

    :returns: whether there was something to do.
    :raises Busy: a process resizes it now.
    """
    with mapper.lock(record_id):
        record = mapper.settled(record_id)
        if record is None or not record.resize_to:
            return False
        _resize_mapped(mapper, record.disk, record, record.resize_to)
        return True


def check_size(size: int, subject: str) -> None:
    """Check that a disk can have a size.

    :raises UsageError: it is not positive, no multiple of 512, or absurd.
    """
    if not 0 < size <= MAX_SIZE or size % SECTOR:
        raise UsageError(
            f"a disk cannot have {size} bytes", subject=subject, hint=f"a multiple of {SECTOR}, at most {MAX_SIZE}"
        )


def _resize_free(mapper: Mapper, disk: Disk, identity: Identity, size: int) -> None:
    image = _known(mapper.inspect_for(disk, identity, _WRITE), disk)
    if size == image.virtual_size:
        return
    refuse_to_shrink(disk, image.virtual_size, size)
    _refuse_foreign_use(identity)
    mapper.registry.resize(disk, image, size, None, mapper.transports_of(_no_record(mapper, disk, identity)))
    _check_image_size(disk, mapper.inspect_for(disk, identity, _WRITE), size)


def _resize_mapped(mapper: Mapper, disk: Disk, record: Record, size: int) -> None:
    _check_mapped(disk, record)
    assert record.attachment is not None
    device = record.attachment.device
    if record.options.max_virtual_size is not None and size > record.options.max_virtual_size:
        raise Refused(
            f"it was mapped on the condition that it has at most {record.options.max_virtual_size} bytes",
            subject=disk.source,
        )
    present = block.size_of(device)
    refuse_to_shrink(disk, max(present, record.resize_to), size)
    if size != present or size != record.size or record.resize_to:
        _refuse_to_lose_the_table(record)
        mapper.journal.write(begun := dataclasses.replace(record, resize_to=size))
        try:
            mapper.registry.resize(record.disk, None, size, record.attachment, mapper.transports_of(begun))
        except Exception:  # and not on a crash, after which somebody has to finish it
            mapper.journal.write(record)
            raise
        if (found := block.size_of(device)) != size:
            raise PluginFault(
                f"the plugin {record.plugin} has left {device} with {found} bytes instead of {size}",
                subject=disk.source,
            )
        record = dataclasses.replace(begun, size=size, resize_to=0)
        mapper.journal.write(reread(mapper, record))


def _refuse_to_lose_the_table(record: Record) -> None:
    """A GPT whose primary is damaged lives on by its backup, which is only found in the last sector of the disk."""
    assert record.attachment is not None
    assert record.table is not None
    if record.table.scheme != "gpt" or record.resize_to:
        return
    from mapper_core.partitions import gpt, nodes

    with nodes.reader(record.attachment.device) as reader:
        if gpt.read_header(reader.read, reader.size, record.table.sector_size, 1) is None:
            raise Refused(
                "its primary GPT is damaged, and its backup would not be found on a larger disk",
                subject=record.disk.source,
                hint="repair the table first, for example with gdisk",
            )


def reread(mapper: Mapper, record: Record) -> Record:
    """Read the partition table of a mapped disk again, and tell the kernel; return the record with it.

    With the disk locked. A table that makes no sense (the guest may be just writing it), or in which a partition is elsewhere
    that is in use, leaves the partitions as they are.
    """
    assert record.attachment is not None
    assert record.table is not None
    try:
        table = mapper.read_table(record.attachment.device, record.disk.source)
    except BadPartitionTable as error:
        table = dataclasses.replace(record.table, warnings=(f"the partition table cannot be read: {error.message}",))
    except DeviceBusy as error:
        table = dataclasses.replace(record.table, warnings=(f"the partitions are as they were: {error.message}",))
    return dataclasses.replace(record, table=table)


# --- snapshots ----------------------------------------------------------------------------------------------


def snapshots(mapper: Mapper, disk: Disk) -> tuple[Snapshot, ...]:
    """List the snapshots of a disk, the oldest first.

    :raises NotSupported: the format, or this variant of it, has none.
    """
    identity = mapper.identify(disk)
    disk = dataclasses.replace(disk, source=identity.source)
    if mapper.find(identity.id) is None:
        mapper.inspect_for(disk, identity, MapOptions(Access.READ_ONLY))
    return mapper.registry.snapshots(disk)


def snapshot_create(mapper: Mapper, disk: Disk, name: str) -> None:
    """Keep the present state of a disk under a name.

    The filesystems of a mapped disk are flushed and stand still meanwhile. Of several disks at one moment:
    :func:`mapper_core.snapshots.create`.

    :raises AlreadyExists: it has a snapshot of that name.
    :raises NotSupported: its plugin or its transport cannot do that, in this state.
    """
    from mapper_core.snapshots import create as create_snapshots

    create_snapshots(mapper, (disk,), name)


def snapshot_revert(mapper: Mapper, disk: Disk, name: str) -> None:
    """Bring a disk back to a snapshot. What was written since is lost.

    :raises ImageInUse: it is mapped, or another program uses it.
    :raises SnapshotMissing: it has no such snapshot.
    """
    check_snapshot_name(name)
    identity = mapper.identify(disk)
    disk = dataclasses.replace(disk, source=identity.source)
    with mapper.lock(identity.id):
        _refuse_mapped(settled_or_checked(mapper, disk, identity))
        find_snapshot(mapper.registry.snapshots(disk), name, disk.source)
        mapper.registry.snapshot_revert(disk, name)
        mapper.inspect_for(disk, identity, _WRITE)


def snapshot_delete(mapper: Mapper, disk: Disk, name: str) -> None:
    """Forget a snapshot; the present state of the disk stays.

    :raises SnapshotMissing: it has no such snapshot.
    :raises Refused: something depends on it.
    """
    check_snapshot_name(name)
    identity = mapper.identify(disk)
    disk = dataclasses.replace(disk, source=identity.source)
    with mapper.lock(identity.id):
        record = settled_or_checked(mapper, disk, identity)
        mapper.transports_of(record).settle()  # a process that was killed may have told it to do the same
        if find_snapshot(mapper.registry.snapshots(disk), name, disk.source).protected:
            raise Refused(f"something depends on the snapshot {name!r} (a clone)", subject=disk.source)
        mapper.registry.snapshot_delete(disk, name, record.attachment, mapper.transports_of(record))
        if any(item.name == name for item in mapper.registry.snapshots(disk)):
            raise PluginFault(f"the plugin {disk.format} has not deleted the snapshot {name!r}", subject=disk.source)


def check_snapshot_name(name: str) -> None:
    """Check a name that becomes an argument of programs.

    :raises UsageError: it has other characters than letters, digits and ``._-``, begins with ``.`` or ``-``, or is longer
        than 128.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            "is no name for a snapshot",
            subject=ascii(name),
            hint="1 to 128 letters, digits and ._- with neither . nor - at the beginning",
        )


def find_snapshot(found: tuple[Snapshot, ...], name: str, subject: str) -> Snapshot:
    """Return the one snapshot of a name.

    :raises SnapshotMissing: there is none.
    :raises Refused: there are several (other programs do not mind that).
    """
    same = [item for item in found if item.name == name]
    if len(same) > 1:
        raise Refused(f"has {len(same)} snapshots with the name {name!r}", subject=subject)
    if not same:
        known = ", ".join(item.name for item in found[:20])
        raise SnapshotMissing(f"has no snapshot {name!r}", subject=subject, hint=f"it has: {known or 'none'}")
    return same[0]


# --- locks of a cluster -------------------------------------------------------------------------------------


def break_lock(mapper: Mapper, disk: Disk) -> None:
    """Take a disk away from a host that holds it and is known to be dead.

    :raises ImageInUse: it is mapped on this host.
    :raises NotSupported: the format has no such locks.
    """
    identity = mapper.identify(disk)
    disk = dataclasses.replace(disk, source=identity.source)
    with mapper.lock(identity.id):
        record = mapper.settled(identity.id)
        if record is not None:
            _refuse_mapped(record)
        mapper.registry.break_lock(disk)


# --- shared -------------------------------------------------------------------------------------------------


def settled_or_checked(mapper: Mapper, disk: Disk, identity: Identity) -> Record:
    """Return the record of a mapped disk, or check one that is not mapped and return a record that describes nothing."""
    record = mapper.settled(identity.id)
    if record is not None:
        _check_mapped(disk, record)
        return record
    mapper.inspect_for(disk, identity, _WRITE)
    _refuse_foreign_use(identity)
    return _no_record(mapper, disk, identity)


def _no_record(mapper: Mapper, disk: Disk, identity: Identity) -> Record:
    return Record(identity.id, disk, disk.format, _WRITE, mapper.boot)


def _check_mapped(disk: Disk, record: Record) -> None:
    if record.disk.format != disk.format:
        raise MappedDifferently(f"is mapped as {record.disk.format}, not as {disk.format}", subject=disk.source)
    if record.options.access is Access.READ_ONLY:
        raise ReadOnlyImage("is mapped read-only", subject=disk.source, hint="unmap it first")


def _refuse_mapped(record: Record) -> None:
    if record.attachment is not None:
        raise ImageInUse(
            f"is mapped to {record.attachment.device} (by {', '.join(record.users)})",
            subject=record.disk.source,
            hint="unmap it first",
        )


def _refuse_foreign_use(identity: Identity) -> None:
    """Refuse to write a file that a virtual machine, a tool of qemu or a loop device of somebody else uses."""
    if not identity.is_file:
        return
    from mapper_core.linux import image_locks
    from mapper_core.transports import loop

    unwritten = image_locks.surely_unwritten(identity.source)
    fd = loop.open_image(identity.source, Access.READ_WRITE)
    try:
        loop.refuse_if_in_use(fd, os.fstat(fd), identity.source, unwritten)
    finally:
        os.close(fd)


def refuse_to_shrink(disk: Disk, present: int, size: int) -> None:
    """Check that a disk does not become smaller.

    :param present: its size now, bytes.
    :raises Refused: it would.
    """
    if size < present:
        raise Refused(
            f"has {present} bytes, more than {size}; a disk is never made smaller",
            subject=disk.source,
            hint="copy its filesystems to a smaller disk",
        )


def _known(image: ImageInfo | None, disk: Disk) -> ImageInfo:
    if image is None:
        raise NotSupported(f"the plugin {disk.format} cannot tell the size of a disk", subject=disk.source)
    return image


def _check_image_size(disk: Disk, image: ImageInfo | None, size: int) -> None:
    if image is not None and image.virtual_size != size:
        raise PluginFault(
            f"the plugin {disk.format} has made a disk of {image.virtual_size} bytes instead of {size}",
            subject=disk.source,
        )


def _new_source(source: str) -> str:
    """Resolve the directory of a file that does not exist yet."""
    if not source.startswith("/"):
        return source
    directory, name = os.path.split(source)
    if name in ("", ".", "..") or "\0" in source:
        raise UsageError("is no name for an image", subject=ascii(source))
    try:
        return f"{os.path.realpath(directory, strict=True)}/{name}"
    except OSError as error:
        raise NotFound(f"the directory cannot be used: {error.strerror}", subject=directory) from error


def _key_of_new(disk: Disk) -> str:
    """Return the lock of a disk that has no identity yet: its name."""
    import hashlib

    return (
        f"new-{hashlib.sha256(f'{disk.format}{chr(0)}{disk.source}'.encode(errors='surrogateescape')).hexdigest()[:32]}"
    )
