"""Keeping the state that several disks have at one moment: of all of them, or of none.

Their filesystems are flushed and stand still together, so nothing that was written to one disk after something else was written
to another is kept without that. What a crash has interrupted is in the journal: the next call and ``reconcile`` let the
filesystems go on, and delete what was not finished.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext

from mapper_core.capabilities import check_snapshot_name, settled_or_checked
from mapper_core.errors import AlreadyExists, KernelError, MapperError, PluginFault
from mapper_core.journal import Record
from mapper_core.linux import filesystems, freeze
from mapper_core.linux.filesystems import OpenFilesystem
from mapper_core.linux.flush import flush_within
from mapper_core.mapping import Mapper
from mapper_core.model import Disk

#: How long filesystems may stand still.
FREEZE_SECONDS = 40

#: How long it may take to store what is written already, before they do. Storage that is gone would never answer.
FLUSH_SECONDS = 300


def create(mapper: Mapper, disks: Sequence[Disk], name: str) -> None:
    """Keep the present state of disks under a name.

    :raises AlreadyExists: one has a snapshot of that name.
    :raises NotSupported: the plugin or the transport of one cannot do that, in this state.
    :raises DeadlineExceeded: it took too long for the filesystems to stand still, or their storage does not answer.
    :raises MapperError: for all else. No disk has the snapshot then.
    """
    check_snapshot_name(name)
    with ExitStack() as stack:
        records = [_begin(mapper, disk, stack) for disk in disks]
        for record in records:
            if _has(mapper, record.disk, name):
                raise AlreadyExists(f"has a snapshot {name!r} already", subject=record.disk.source)
        found = [item for record in records for item in _filesystems(record, stack)]
        kept: set[str] = set()
        for record in records:
            if record.attachment is not None:
                stack.callback(_unmark, mapper, record, kept)
                mapper.journal.write(dataclasses.replace(record, snapshot=name))
                _flush(record)
        with ExitStack() as undo:
            with freeze.frozen(tuple(found), seconds=FREEZE_SECONDS) if found else nullcontext():
                for record in records:
                    undo.callback(_delete_if_there, mapper, record, name, kept)
                    mapper.registry.snapshot_create(record.disk, name, record.attachment, mapper.transports_of(record))
            for record in records:
                if not _has(mapper, record.disk, name):
                    raise PluginFault(
                        f"the plugin {record.disk.format} has made no snapshot {name!r}", subject=record.disk.source
                    )
            undo.pop_all()


def undo_interrupted(mapper: Mapper, record_id: str) -> bool:
    """Let the filesystems of a mapped disk go on whose snapshot a crash has interrupted, and delete what there is of that.

    :returns: whether there was something to do.
    :raises Busy: a process makes a snapshot now.
    """
    with mapper.lock(record_id):
        record = mapper.settled(record_id)
        if record is None or record.attachment is None or not record.snapshot:
            return False
        _undo(mapper, record)
        return True


def _begin(mapper: Mapper, disk: Disk, stack: ExitStack) -> Record:
    """Lock a disk and look whether it can be used; the record of one that is not mapped describes nothing."""
    identity = mapper.identify(disk)
    stack.enter_context(mapper.lock(identity.id))
    record = settled_or_checked(mapper, dataclasses.replace(disk, source=identity.source), identity)
    return _undo(mapper, record) if record.snapshot else record


def _undo(mapper: Mapper, record: Record) -> Record:
    """Undo what a process began that was killed; its guard thaws, unless somebody has killed that too."""
    assert record.attachment is not None
    with filesystems.of_device(record.attachment.device) as found:
        freeze.thaw(found)
    mapper.transports_of(record).settle()
    if _has(mapper, record.disk, record.snapshot):
        mapper.registry.snapshot_delete(record.disk, record.snapshot, record.attachment, mapper.transports_of(record))
    record = dataclasses.replace(record, snapshot="")
    mapper.journal.write(record)
    return record


def _filesystems(record: Record, stack: ExitStack) -> tuple[OpenFilesystem, ...]:
    if record.attachment is None:
        return ()
    return stack.enter_context(filesystems.of_device(record.attachment.device))


def _flush(record: Record) -> None:
    """Write back what was written to the device and its partitions themselves, and not to a filesystem."""
    assert record.attachment is not None
    partitions = record.table.partitions if record.table else ()
    for device in {record.attachment.device, *(partition.device for partition in partitions)}:
        if not flush_within(device, FLUSH_SECONDS):
            raise KernelError("what was written to it cannot be stored", subject=device, hint="see the kernel log")


def _delete_if_there(mapper: Mapper, record: Record, name: str, kept: set[str]) -> None:
    """Delete what was begun; ``kept`` gets the disks where that is not possible now."""
    try:
        mapper.transports_of(record).settle()  # what has failed may be that it did not answer in time
        if _has(mapper, record.disk, name):
            mapper.registry.snapshot_delete(record.disk, name, record.attachment, mapper.transports_of(record))
    except (MapperError, OSError):  # one failure is told already; the other disks' are deleted all the same
        kept.add(record.id)


def _unmark(mapper: Mapper, record: Record, kept: set[str]) -> None:
    """Write that no snapshot is being made of a disk; the next call and reconcile are to know of one that could not be deleted."""
    if record.id not in kept:
        mapper.journal.write(record)


def _has(mapper: Mapper, disk: Disk, name: str) -> bool:
    return any(item.name == name for item in mapper.registry.snapshots(disk))
