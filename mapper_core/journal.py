"""The journal: what was done to the host, on disk before it is done.

One file for each mapped disk in ``<runtime>/disks``, written as :mod:`mapper_core.state_files` says and removed last.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from mapper_core.errors import StateCorrupt
from mapper_core.frozen import dataclass, plain, replace
from mapper_core.model import Access, Attachment, Disk, MapOptions, MappedDisk, Partition, PartitionTable
from mapper_core.resources import KINDS, PluginResource, Resource
from mapper_core.state_files import corrupt, read_json, remove_json, write_json

VERSION = 1


class State:
    """States of a record; text, so that a person can read the file."""

    MAPPING = "mapping"
    MAPPED = "mapped"
    UNMAPPING = "unmapping"


@dataclass(frozen=True, slots=True)
class Record:
    """One mapping.

    :param id: the key, from the identity of the image (see :func:`mapper_core.identity.identify`).
    :param plugin: name of the plugin that mapped it; it unmaps it, whatever is probed later (M-20).
    :param boot: boot in which it was made; a record of another boot describes devices that are gone.
    :param resources: in the order in which they were made.
    :param users: who holds the mapping.
    :param resize_to: size to which a resize is bringing the disk now, bytes; 0: none.
    :param snapshot: name of the snapshot for which its filesystems are frozen now; empty: none.
    """

    id: str
    disk: Disk
    plugin: str
    options: MapOptions
    boot: str
    state: str = State.MAPPING
    resources: tuple[Resource, ...] = ()
    attachment: Attachment | None = None
    size: int = 0
    table: PartitionTable | None = None
    users: tuple[str, ...] = ()
    resize_to: int = 0
    snapshot: str = ""

    @property
    def mapped(self) -> MappedDisk:
        """The disk, of a mapping that is finished."""
        assert self.attachment is not None
        assert self.table is not None
        return MappedDisk(
            id=self.id,
            disk=self.disk,
            device=self.attachment.device,
            transport=self.attachment.transport,
            access=self.options.access,
            size=self.size,
            table=self.table,
            users=self.users,
        )


class Journal:
    """The records of one runtime directory.

    :param directory: ``<runtime>/disks``, mode 0700.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def _path(self, record_id: str) -> str:
        return f"{self.directory}/{record_id}.json"

    def write(self, record: Record) -> None:
        """Make the record durable."""
        write_json(self._path(record.id), {"version": VERSION, **_record_to_json(record)})

    def remove(self, record_id: str) -> None:
        """Forget a record; one that is not there is forgotten already."""
        remove_json(self._path(record_id))

    def read(self, record_id: str) -> Record | None:
        """Return a record, or ``None``.

        :raises StateCorrupt: the file is damaged, or of a newer version.
        """
        data = read_json(self._path(record_id), VERSION)
        if data is None:
            return None
        try:
            return _record_from_json(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise corrupt(self._path(record_id), f"misses or garbles a field: {error!r}") from error

    def __contains__(self, record_id: str) -> bool:
        return os.path.exists(self._path(record_id))

    def ids(self) -> tuple[str, ...]:
        """Keys of all records, sorted."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return ()
        return tuple(sorted(name[:-5] for name in names if name.endswith(".json")))

    def records(self) -> tuple[Record, ...]:
        """All records that can be read, by id. A damaged one is for reconcile and doctor to report; it stops nobody."""
        found = []
        for key in self.ids():
            with contextlib.suppress(StateCorrupt):
                record = self.read(key)
                if record is not None:
                    found.append(record)
        return tuple(found)


class Ledger:
    """A record that is written each time it changes.

    :ivar value: as it is now.
    """

    def __init__(self, journal: Journal, record: Record) -> None:
        self._journal = journal
        self.value = record

    @property
    def id(self) -> str:
        """Key of the record."""
        return self.value.id

    @property
    def device(self) -> str:
        """Node of the device; empty as long as there is none."""
        return self.value.attachment.device if self.value.attachment else ""

    @property
    def resources(self) -> tuple[Resource, ...]:
        """What was made, in the order in which it was."""
        return self.value.resources

    def change(self, **values: object) -> None:
        """Change fields of the record."""
        self.value = replace(self.value, **values)
        self._journal.write(self.value)

    def record(self, resource: Resource) -> None:
        """Write down a resource; its maker makes it afterwards."""
        self.change(resources=(*self.value.resources, resource))


# --- records as JSON ----------------------------------------------------------------------------------


def _record_to_json(record: Record) -> dict[str, Any]:
    table = record.table
    return {
        "id": record.id,
        "disk": plain(record.disk),
        "plugin": record.plugin,
        "options": {
            "access": record.options.access.value,
            "transport": record.options.transport,
            "max_virtual_size": record.options.max_virtual_size,
        },
        "boot": record.boot,
        "state": record.state,
        "resources": [{"kind": item.kind, **plain(item)} for item in record.resources],
        "attachment": plain(record.attachment) if record.attachment else None,
        "size": record.size,
        "table": {**plain(table), "partitions": [plain(item) for item in table.partitions]} if table else None,
        "users": list(record.users),
        "resize_to": record.resize_to,
        "snapshot": record.snapshot,
    }


def _record_from_json(data: dict[str, Any]) -> Record:
    disk, options, table = data["disk"], data["options"], data["table"]
    return Record(
        id=data["id"],
        disk=Disk(
            disk["source"],
            disk["format"],
            tuple(disk["allowed_dirs"]),
            tuple((name, value) for name, value in disk["settings"]),
        ),
        plugin=data["plugin"],
        options=MapOptions(Access(options["access"]), options["transport"], options["max_virtual_size"]),
        boot=data["boot"],
        state=data["state"],
        resources=tuple(_resource_from_json(item) for item in data["resources"]),
        attachment=Attachment(**data["attachment"]) if data["attachment"] else None,
        size=data["size"],
        table=_table_from_json(table) if table else None,
        users=tuple(data["users"]),
        resize_to=data.get("resize_to", 0),
        snapshot=data.get("snapshot", ""),
    )


def _resource_from_json(data: dict[str, Any]) -> Resource:
    # also when the plugin is not installed any more: then nobody releases it, and it stays
    if data["kind"] not in KINDS:
        return PluginResource(data["kind"], tuple((name, value) for name, value in data["values"]))
    values = dict(data)
    return KINDS[values.pop("kind")](**values)


def _table_from_json(data: dict[str, Any]) -> PartitionTable:
    values = dict(data)
    partitions = tuple(_partition_from_json(item) for item in values.pop("partitions"))
    if "warnings" in values:
        values["warnings"] = tuple(values["warnings"])
    return PartitionTable(partitions=partitions, **values)


def _partition_from_json(data: dict[str, Any]) -> Partition:
    return Partition(**{**data, "names": tuple(data.get("names", ()))})
