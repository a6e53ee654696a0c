"""The life of a mapping: lock, journal, hook, verify; and the same backwards.

:class:`Mapper` is what programs use::

    mapper = Mapper.open()
    disk = mapper.map(Disk("/srv/disk.qcow2", "qcow2"), MapOptions(), user="backup")
    ...
    mapper.unmap("/srv/disk.qcow2", user="backup")

Mapping the same file again returns the same device and adds the user; the device goes away with its last user.
Unmapping what is not mapped is a success.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from mapper_core import lookup, policy, users, verify
from mapper_core.errors import (
    BadPartitionTable,
    DeadlineExceeded,
    ImageInUse,
    MappedDifferently,
    MapperError,
    NotMapped,
)
from mapper_core.frozen import dataclass, replace
from mapper_core.identity import Identity, identify, identify_volume
from mapper_core.journal import Journal, Ledger, Record, State
from mapper_core.linux import block, locks
from mapper_core.model import Access, Disk, ImageInfo, MapOptions, MappedDisk, PartitionTable
from mapper_core.partitions import nodes
from mapper_core.registry import Registry
from mapper_core.resources import PluginResource
from mapper_core.runtime import Runtime, boot_id
from mapper_core.transports import NAMES as SHARED_TRANSPORTS
from mapper_core.transports import Transports
from mapper_core.transports.base import Scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: How long the undoing of something that failed waits for others who work on the disk.
UNDO_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class OpenDisk:
    """A mapped disk whose device is open.

    :param reader: reads the device.
    """

    disk: MappedDisk
    reader: nodes.DeviceReader


class Mapper:
    """Maps and unmaps disks; the state is in the runtime directory, not in this object.

    :param runtime: where the journal is.
    :param registry: the plugins.
    """

    def __init__(self, runtime: Runtime, registry: Registry) -> None:
        self.runtime = runtime
        self.registry = registry
        self.journal = Journal(runtime.disks)
        self.boot = boot_id()

    @classmethod
    def open(cls) -> Mapper:
        """Use the runtime directory of the environment and all installed plugins."""
        runtime = Runtime.from_environment()
        runtime.prepare()
        return cls(runtime, Registry.load())

    # --- questions ---

    def identify(self, disk: Disk) -> Identity:
        """Say which disk this is.

        :raises ImageNotFound: there is none.
        :raises UnsafePath: it is neither a regular file nor a block device.
        """
        if disk.source.startswith("/"):
            return identify(disk)
        return identify_volume(disk, self.registry.identify(disk))

    def identify_to_map(self, disk: Disk) -> Identity:
        """As :meth:`identify`, for those who map it next: what is looked at then is fetched while they prepare that."""
        identity = self.identify(disk)
        if identity.is_file:
            policy.fetch_ahead(disk.format, identity.source)
        return identity

    def inspect(self, disk: Disk) -> ImageInfo | None:
        """Read and check the header of an image; ``None`` when the format's plugin cannot.

        :raises MapperError: see :func:`mapper_core.policy.check_image`.
        """
        return self.inspect_for(disk, self.identify(disk), MapOptions(Access.READ_ONLY))

    def mapped(self) -> tuple[MappedDisk, ...]:
        """All disks that are mapped now, in the order of their ids."""
        return tuple(record.mapped for record in self.journal.records() if self._is_live(record))

    def find(self, target: str) -> MappedDisk | None:
        """Return the mapping of an image, a device (or partition) node or an id; ``None`` when there is none."""
        record = lookup.find(self.journal, target)
        return record.mapped if record is not None and self._is_live(record) else None

    def is_held(self, record_id: str, *, user: str) -> bool:
        """Say whether a user holds a mapping, however far that has come."""
        record = self.journal.read(record_id)
        return record is not None and user in record.users

    # --- map ---

    def map(self, disk: Disk, options: MapOptions, *, user: str) -> MappedDisk:
        """Load a disk into a block device.

        :param user: who holds the mapping; the same user may ask twice.
        :raises Busy: another process works on this disk.
        :raises MappedDifferently: it is mapped already, with another access, format or transport.
        :raises Refused: it is larger than allowed.
        :raises NeedsRoot: this process may make no block devices.
        :raises MapperError: the image, the plugin or the host; afterwards everything is as it was.
        """
        with self.map_open(disk, self.identify_to_map(disk), options, user=user) as opened:
            return opened.disk

    @contextlib.contextmanager
    def map_open(self, disk: Disk, identity: Identity, options: MapOptions, *, user: str) -> Iterator[OpenDisk]:
        """As :meth:`map`, with the device open for the length of the block, for those who look at its content next.

        The kernel forgets what it has read of a device when nobody has that open any more. Partitions can be mounted
        after the block; inside of it the device may be held exclusively.

        :param identity: of the disk, see :meth:`identify_to_map`.
        """
        disk = _at(identity, disk)
        with contextlib.ExitStack() as closing:
            with self.lock(identity.id):
                record = self.settled(identity.id)
                if record is None:
                    opened = self._map_new(disk, identity, options, user, closing)
                else:
                    mapped = self._join(record, disk, options, user)
                    opened = OpenDisk(mapped, closing.enter_context(nodes.reader(mapped.device)))
            yield opened

    def _join(self, record: Record, disk: Disk, options: MapOptions, user: str) -> MappedDisk:
        assert record.attachment is not None
        differences = [
            f"{name} {have} instead of {want}"
            for name, have, want in (
                ("format", record.disk.format, disk.format),
                ("access", record.options.access.value, options.access.value),
                ("transport", record.attachment.transport, options.transport or record.attachment.transport),
            )
            if have != want
        ]
        if differences:
            raise MappedDifferently(
                f"is mapped to {record.attachment.device} already, with {', '.join(differences)}",
                subject=disk.source,
                hint="unmap it first",
            )
        policy.check_size(disk, record.size, options)
        living = users.living(record.users)
        together = living if user in living else (*living, user)
        if together != record.users:
            record = replace(record, users=together)
            self.journal.write(record)
        return record.mapped

    def _map_new(
        self, disk: Disk, identity: Identity, options: MapOptions, user: str, closing: contextlib.ExitStack
    ) -> OpenDisk:
        """Map a disk that is not mapped; ``closing`` closes its device."""
        policy.check_privilege(disk)
        image = self.inspect_for(disk, identity, options)
        # nothing is written yet: there is nothing to undo before the first resource is recorded, which writes all of it
        ledger = Ledger(self.journal, Record(identity.id, disk, disk.format, options, self.boot, users=(user,)))
        with contextlib.ExitStack() as undo:
            undo.callback(lambda: self._undo(ledger.value))
            attachment = self.registry.map(disk, image, options, self._transports(ledger))
            device = undo.enter_context(contextlib.ExitStack())  # closed before it is taken away
            # what is undone until it is verified is what was recorded, and not what the plugin says
            made = replace(ledger.value, attachment=attachment)
            reader = verify.open_device(self.journal, made, image, self._owns_device, device)
            ledger.value = made
            table = self._read_table(attachment.device, disk.source, reader)
            ledger.change(size=reader.size, table=table, state=State.MAPPED)
            closing.push(device.pop_all())
            undo.pop_all()
        return OpenDisk(ledger.value.mapped, reader)

    def inspect_for(self, disk: Disk, identity: Identity, options: MapOptions) -> ImageInfo | None:
        """Read the header of an image, and check it against what the caller allows.

        :returns: ``None`` when the format's plugin cannot inspect.
        :raises MapperError: see :func:`mapper_core.policy.check_image`.
        """
        disk = _at(identity, disk)
        self.registry.require(disk.format)
        if identity.is_file:
            policy.check_declared_format(disk)
        image = self.registry.inspect(disk)
        if image is not None:
            policy.check_image(disk, image, options)
        return image

    def read_table(self, device: str, source: str) -> PartitionTable:
        """Read the partition table of a device of ours, and tell the kernel.

        :param source: the disk, for the error.
        :raises BadPartitionTable: it makes no sense.
        """
        with nodes.reader(device) as reader:
            return self._read_table(device, source, reader)

    def _read_table(self, device: str, source: str, reader: nodes.DeviceReader) -> PartitionTable:
        try:
            table = self.registry.discover_partitions(device, reader.read, reader.size, reader.sector_size)
        except BadPartitionTable as error:
            error.subject = source
            raise
        return nodes.add(device, table)

    # --- unmap ---

    def unmap(self, target: str, *, user: str, patience: float = 0.0) -> None:
        """Revert a map, when ``user`` was the last who holds it.

        :param target: image, device node, partition node or id.
        :param patience: how long to wait for others who work on the disk, seconds; :data:`UNDO_SECONDS` for what has to be undone.
        :raises ImageInUse: others hold the mapping, and ``user`` does not.
        :raises DeviceBusy: something holds the device; nothing was changed.
        :raises NotMapped: the target is a device that was not mapped by us.
        """
        record_id = lookup.find_id(self.journal, target)
        if record_id is None:
            if target.startswith("/dev/") and not os.path.isfile(target) and nodes.has_medium(target):
                hint = "release it with the tool that made it"
                raise NotMapped("this device was not mapped by Mapper", subject=target, hint=hint)
            return  # a path that is no device is simply not mapped
        with self.releasing(record_id, user=user, patience=patience):
            pass

    @contextlib.contextmanager
    def releasing(self, record_id: str, *, user: str, patience: float = 0.0) -> Iterator[MappedDisk | None]:
        """As :meth:`unmap`, at the end of a block that takes away what uses the disk. Meanwhile the disk is locked.

        :returns: the disk; ``None`` when it is not mapped, or only half.
        :raises Busy: another process works on it.
        """
        with self.lock(record_id, patience):
            record = self.journal.read(record_id)
            live = record is not None and self._is_live(record)
            yield record.mapped if record is not None and live else None
            if record is None:
                return
            if not live:
                self._undo(record)
                return
            others = tuple(name for name in users.living(record.users) if name != user)
            if user not in record.users and others:
                raise ImageInUse(
                    f"the mapping is held by {', '.join(others)}",
                    subject=record.disk.source,
                    hint=users.how_to_release(others, self.runtime.mounts),
                )
            self._release(record, others)

    def let_go(self, record_id: str, user: str, is_gone: Callable[[], bool]) -> bool:
        """As :meth:`unmap`, on behalf of a user that is gone; ``False`` when there is nothing to do.

        :param is_gone: asked again when nobody else can change the mapping any more.
        :raises Busy: another process works on it, or something holds the device.
        """
        with self.lock(record_id):
            record = self.journal.read(record_id)
            if record is None or not self._is_live(record) or user not in record.users or not is_gone():
                return False
            self._release(record, tuple(name for name in record.users if name != user))
            return True

    def _release(self, record: Record, others: tuple[str, ...]) -> None:
        """Leave a mapping to its other users, or take it away when there are none. With the disk locked."""
        if others:
            self.journal.write(replace(record, users=others))
            return
        assert record.attachment is not None
        # refused by the kernel while the device or a partition of it is mounted anywhere, in any namespace
        os.close(block.open_exclusive(record.attachment.device))
        self._undo(record)

    def _undo(self, record: Record) -> None:
        """Take away whatever a record describes, however far its maker came, and the record last."""
        if record.boot != self.boot:
            for resource in reversed(record.resources):
                if isinstance(resource, PluginResource):  # in a cluster, for example
                    self.registry.release(record.disk, resource)
            self.journal.remove(record.id)  # the devices went with the boot
            return
        ledger = Ledger(self.journal, record)
        if not record.resources:
            ledger.change(
                state=State.UNMAPPING
            )  # with resources of ours the kernel shows how far it came: the first one to go is the device
        transports = self._transports(ledger)
        problem: MapperError | OSError | None = None
        try:
            if record.attachment is not None:
                self.registry.check_answers(record.disk, record.attachment)
            self.registry.unmap(record.disk, record.attachment, transports)
        except DeadlineExceeded:
            # the storage does not answer: to go on would be to wait for it once more, and perhaps for ever
            ledger.change(state=State.UNMAPPING)  # so that reconcile knows that nobody wants it any more
            raise
        except (MapperError, OSError) as error:
            problem = error
        transports.release()  # what the plugin forgot, or all of it when the plugin is gone by now
        if problem is not None and not record.resources:
            raise problem
        self.journal.remove(record.id)

    # --- reconcile ---

    def repair(self, record_id: str) -> bool:
        """Finish or undo a record that a crash left half done; ``True`` when there was something to do.

        :raises Busy: a process works on it, so it is not a left-over.
        """
        with self.lock(record_id):
            record = self.journal.read(record_id)
            if record is None or self._is_live(record):
                return False
            self._undo(record)
            return True

    # --- helpers ---

    def lock(self, record_id: str, patience: float = 0.0) -> contextlib.AbstractContextManager[None]:
        """Lock one disk against other processes. The lock file goes with the record.

        :param patience: how long to wait for it, seconds.
        :raises Busy: another process has the lock.
        """
        return locks.try_lock_of(f"{self.runtime.locks}/{record_id}", lambda: record_id in self.journal, patience)

    def settled(self, record_id: str) -> Record | None:
        """Return the record of a mapping that exists; what a crash left half done is undone. With the disk locked."""
        record = self.journal.read(record_id)
        if record is not None and not self._is_live(record):
            self._undo(record)
            return None
        return record

    def transports_of(self, record: Record) -> Transports:
        """Return what made the device of a mapping. With the disk locked."""
        return self._transports(Ledger(self.journal, record))

    def _transports(self, ledger: Ledger) -> Transports:
        scope = Scope(ledger, f"{self.runtime.exports}/{ledger.id}", self.runtime.locks)
        return Transports(scope, lambda resource: self.registry.release(ledger.value.disk, resource))

    def _is_live(self, record: Record) -> bool:
        """Say whether a record describes a finished mapping that the kernel still has."""
        return (
            record.state == State.MAPPED
            and record.boot == self.boot
            and record.attachment is not None
            and self._owns_device(record)
        )

    def _owns_device(self, record: Record) -> bool:
        assert record.attachment is not None
        if not nodes.is_attached(record.attachment.device, record.resources):
            return False
        if record.attachment.transport in SHARED_TRANSPORTS:
            return True
        own = tuple(resource for resource in record.resources if isinstance(resource, PluginResource))
        return self.registry.owns(record.disk, record.attachment.device, own)


def _at(identity: Identity, disk: Disk) -> Disk:
    """A disk under its real path."""
    return disk if disk.source == identity.source else replace(disk, source=identity.source)
