"""The journal: what was done to the host, on disk before it is done.

One JSON file for each mapped disk in ``<runtime>/disks``. A file is replaced atomically (write, fsync, rename, fsync
of the directory; on a tmpfs there is nothing to sync) and removed last. The version is checked: a record of a newer
version is an error, never a guess.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from mapper_core.errors import StateCorrupt
from mapper_core.frozen import dataclass, plain
from mapper_core.linux.files import is_in_memory, read_bytes
from mapper_core.linux.syscalls import kernel_error
from mapper_core.model import Access, Attachment, Disk, MapOptions, Partition, PartitionTable
from mapper_core.resources import KINDS, PluginResource, Resource

VERSION = 1

_encode = json.JSONEncoder(separators=(",", ":")).encode


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


# --- files, shared by all records ---------------------------------------------------------------------


def write_json(path: str, data: dict[str, Any]) -> None:
    """Replace ``path`` atomically by ``data``, mode 0600, on disk when the call returns.

    :raises KernelError: it cannot be written; what was there before is there still.
    """
    try:
        _replace(path, data)
    except OSError as error:
        hint = "nothing is done that is not written down first: make room, and make the filesystem writable"
        raise kernel_error(error, "what is about to be done cannot be written down", subject=path, hint=hint) from error


def _replace(path: str, data: dict[str, Any]) -> None:
    directory, _, name = path.rpartition("/")
    temporary = f"{directory}/.{name}.{os.getpid()}"
    # a left-over of a process with the same pid that was killed here may be overwritten
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            content = _encode(data).encode()
            while content:  # of a full filesystem the first write may take a part, and only the second one fails
                content = content[os.write(fd, content) :]
            in_memory = is_in_memory(fd)
            if not in_memory:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # a signal handler may raise just after the rename
            os.unlink(temporary)
        raise
    if not in_memory:
        _sync_directory(directory)


def overwrite(path: str, offset: int, content: bytes) -> None:
    """Change some bytes of a file of :func:`write_json`, on disk when the call returns.

    :raises KernelError: it cannot be written.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.pwrite(fd, content, offset)
            if not is_in_memory(fd):
                os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise kernel_error(error, "what was done cannot be written down", subject=path) from error


def read_json(path: str, version: int) -> dict[str, Any] | None:
    """Return the object in a file of :func:`write_json`, or ``None`` when there is none.

    :raises StateCorrupt: it cannot be read, or has another version.
    """
    try:
        data = json.loads(read_bytes(path).decode())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise corrupt(path, f"is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise corrupt(path, "is not a JSON object")
    if data.get("version") != version:
        raise StateCorrupt(
            f"was written by another version of Mapper (journal version {data.get('version')}, this one reads {version})",
            subject=path,
            hint="finish with the version that wrote it, or upgrade this one",
        )
    return data


def json_files(directory: str) -> tuple[str, ...]:
    """Paths of the files of :func:`write_json` in a directory, which may be missing, by name; none that is half written."""
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else ()
    return tuple(f"{directory}/{name}" for name in names if name.endswith(".json") and not name.startswith("."))


def remove_json(path: str) -> None:
    """Remove a file of :func:`write_json`, with what killed writers have left of it; a missing one is fine.

    One that a power cut brings back is of an earlier boot, and is removed again for that.
    """
    directory, _, name = path.rpartition("/")
    with contextlib.suppress(FileNotFoundError):
        for entry in os.listdir(directory):
            if entry.startswith(f".{name}."):
                _remove_if_left(f"{directory}/{entry}")
        os.unlink(path)


def _remove_if_left(temporary: str) -> None:
    """Remove a half-written file, unless its writer lives."""
    from mapper_core.linux import process_info

    pid = temporary.rpartition(".")[2]
    if pid.isdigit() and not process_info.is_running(int(pid)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def corrupt(path: str, why: str) -> StateCorrupt:
    """The error for a record that makes no sense.

    :param why: it does not; the end of a sentence that begins with the path.
    """
    return StateCorrupt(
        why, subject=path, hint="move the file away; `mapper-cli doctor` then shows what is left on the host"
    )


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
