"""Which mapping somebody means by the name of an image, the node of a device, or an id."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mapper_core.errors import MapperError, UsageError
from mapper_core.identity import identify
from mapper_core.model import Disk

if TYPE_CHECKING:
    from mapper_core.journal import Journal, Record


def find_id(journal: Journal, target: str) -> str | None:
    """As :func:`find`, also when the record is damaged and cannot be read, as long as its id is given."""
    if _is_id(journal, target):
        return target
    record = find(journal, target)
    return record.id if record is not None else None


def find(journal: Journal, target: str) -> Record | None:
    """The record of a disk, however far its mapping has come; ``None`` when there is none.

    :param target: path of the image, name of a volume, node of the device or of a partition of it, or id.
    :raises UsageError: more than one disk of this name is mapped.
    """
    if not target.startswith("/"):
        return journal.read(target) if _is_id(journal, target) else _find_source(journal, target)
    real = os.path.realpath(target)
    found = [record for record in journal.records() if real in _nodes(record)]
    if found:
        return found[0] if len(found) == 1 else _present(found)
    try:
        return journal.read(identify(Disk(target, "")).id)
    except MapperError:
        return _find_source(journal, target)  # the image is gone, the mapping is not (M-20)


def _nodes(record: Record) -> frozenset[str]:
    """The nodes of a mapping: its device, and those of the partitions."""
    if record.attachment is None:
        return frozenset()
    partitions = record.table.partitions if record.table else ()
    return frozenset((record.attachment.device, *(partition.device for partition in partitions)))


def _present(records: list[Record]) -> Record:
    """The one of several whose device it is; the others' was taken away by somebody else, and its number given out anew."""
    from mapper_core.partitions import nodes

    attached = (
        record
        for record in records
        if record.attachment is not None and nodes.is_attached(record.attachment.device, record.resources)
    )
    return next(attached, records[0])


def _is_id(journal: Journal, target: str) -> bool:
    return "/" not in target and target in journal


def _find_source(journal: Journal, target: str) -> Record | None:
    real = os.path.realpath(target) if target.startswith("/") else target
    found = [record for record in journal.records() if record.disk.source in (target, real)]
    if len(found) > 1:
        raise UsageError(
            f"more than one disk of this name is mapped: {', '.join(record.id for record in found)}",
            subject=target,
            hint="say which by its id or device, see: mapper-cli ls",
        )
    return found[0] if found else None
