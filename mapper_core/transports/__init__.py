"""Transports: how bytes become a block device. Plugins share them through :class:`Transports`."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from mapper_core.errors import NotMapped, NotSupported, TransportUnavailable, UsageError
from mapper_core.linux import block
from mapper_core.model import Access
from mapper_core.resources import PluginResource

if TYPE_CHECKING:
    from collections.abc import Callable

    from mapper_core.model import Attachment, MapOptions
    from mapper_core.resources import Resource
    from mapper_core.transports.base import OwnTransport, Scope, Transport
    from mapper_core.transports.blockgraph import BlockNode
    from mapper_core.transports.storage_daemon import StorageDaemonTransport

#: All there are, in the order in which they are preferred.
NAMES = ("loop", "nbd", "storage_daemon")


class Transports:
    """Makes and releases the block device of one mapping.

    :param scope: the mapping's directory and journal.
    :param release_own: takes away what only the plugin can.
    """

    def __init__(self, scope: Scope, release_own: Callable[[PluginResource], None]) -> None:
        self._scope = scope
        self._release_own = release_own
        self._released: set[Resource] = set()

    @property
    def id(self) -> str:
        """Key of the mapping in the journal of this host."""
        return self._scope.ledger.id

    def path(self, suffix: str) -> str:
        """Where the plugin may keep a file as long as the mapping exists; it is to be recorded, and removed by ``release``.

        :param suffix: the end of its name, without a slash.
        """
        return f"{self._scope.directory}.{suffix}"

    def record(self, resource: PluginResource) -> None:
        """Write down durably what is about to be made; the hook ``release`` gets it to take it away."""
        self._scope.ledger.record(resource)

    def attach(self, node: BlockNode, options: MapOptions, own: tuple[OwnTransport, ...] = ()) -> Attachment:
        """Make a block device from an image, by the transport that was asked for or the first that can.

        :param own: transports of the plugin, preferred to those that all share.
        :raises UsageError: the transport that was asked for does not exist.
        :raises TransportUnavailable: it, or every one, does not work for this image on this host.
        :raises DeviceBusy: the image is a block device that is mounted, or part of another device, and is to be written.
        """
        if options.access is Access.READ_WRITE and node.protocol is None:
            _refuse_held_device(node.filename)
        reasons: list[str] = []
        for name in _candidates(options, own):
            transport = next((item for item in own if item.name == name), None) or transport_named(name)
            if not transport.accepts(node):
                reasons.append(f"{name} cannot carry {node.driver}")
                continue
            availability = transport.availability()
            if availability.works:
                return transport.attach(node, options.access, self._scope)
            reasons.append(f"{name}: {availability.reason} ({availability.hint})")
        raise TransportUnavailable(
            "no transport works: " + "; ".join(reasons),
            subject=node.filename,
            hint="`mapper-cli doctor` shows what this host can do",
        )

    def resize(self, size: int) -> None:
        """Make the image and the device that ``attach`` made larger, while they are in use.

        :param size: bytes, a multiple of 512.
        :raises NotSupported: the transport cannot do that.
        :raises Refused: the disk is larger already.
        """
        transport_named(self._kind()).resize(size, self._scope)

    def snapshot_create(self, name: str) -> None:
        """Keep the present state inside of the image, while it is in use.

        :raises NotSupported: the transport cannot do that.
        """
        self._daemon().snapshot_create(name, self._scope)

    def snapshot_delete(self, identifier: str, name: str) -> None:
        """Forget a state that is kept inside of the image, while it is in use.

        :param identifier: of the snapshot in the image; names may look like the identifiers of others.
        :raises NotSupported: the transport cannot do that.
        """
        self._daemon().snapshot_delete(identifier, name, self._scope)

    def settle(self) -> None:
        """Wait until the daemon has done, or forgotten, what somebody told it who has not waited for the answer: a process that
        was killed. Only then does the image tell whether it was done. A transport without a daemon has nothing to wait for.

        :raises DeadlineExceeded: it does not answer.
        """
        with contextlib.suppress(NotMapped, NotSupported):
            self._daemon().settle(self._scope)

    def _kind(self) -> str:
        """The transport of this mapping: the one that recorded the first resource of the core."""
        for resource in self._scope.ledger.resources:
            if not isinstance(resource, PluginResource):
                return resource.kind
        raise NotMapped("it is not mapped", subject=self._scope.ledger.id)

    def _daemon(self) -> StorageDaemonTransport:
        transport = transport_named(kind := self._kind())
        from mapper_core.transports.storage_daemon import StorageDaemonTransport

        if isinstance(transport, StorageDaemonTransport):
            return transport
        raise NotSupported(
            f"a disk that is mapped by the transport {kind} has no snapshots while it is in use",
            subject=self._scope.ledger.device,
            hint="unmap it first, or map it with the transport storage_daemon",
        )

    def release(self) -> None:
        """Take away everything that was made for this mapping, the newest first. Nothing left to do is a success."""
        for resource in reversed(self._scope.ledger.resources):
            if resource in self._released:
                continue
            if isinstance(resource, PluginResource):
                self._release_own(resource)
            else:
                transport_named(resource.kind).release(resource, self._scope)
            self._released.add(resource)


def _candidates(options: MapOptions, own: tuple[OwnTransport, ...]) -> tuple[str, ...]:
    names = (*(transport.name for transport in own), *NAMES)
    if options.transport is None:
        return names
    if options.transport not in names:
        raise UsageError(
            f"there is no transport {options.transport!r} for this disk",
            subject="--transport",
            hint=f"one of: {', '.join(names)}",
        )
    return (options.transport,)


def _refuse_held_device(path: str) -> None:
    """Refuse a block device of the host that is mounted, or part of another device: two who write to it destroy it."""
    with contextlib.suppress(OSError):  # whoever opens it says why that cannot be done
        if stat.S_ISBLK(os.stat(path).st_mode):
            os.close(block.open_exclusive(path))


def transport_named(name: str) -> Transport:
    """Return a transport by its name; its module is loaded when it is first used."""
    from mapper_core.transports.loop import LoopTransport

    if name == "storage_daemon":
        from mapper_core.transports.storage_daemon import StorageDaemonTransport

        return StorageDaemonTransport(LoopTransport())
    if name == "nbd":
        from mapper_core.transports.nbd import NbdTransport

        return NbdTransport()
    return LoopTransport()
