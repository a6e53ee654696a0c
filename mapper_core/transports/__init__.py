"""Transports: how bytes become a block device. Plugins share them through :class:`Transports`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mapper_core.errors import TransportUnavailable, UsageError

if TYPE_CHECKING:
    from mapper_core.model import Attachment, MapOptions
    from mapper_core.resources import Resource
    from mapper_core.transports.base import Scope, Transport
    from mapper_core.transports.blockgraph import BlockNode

#: All there are, in the order in which they are preferred.
NAMES = ("loop", "nbd", "storage_daemon")


class Transports:
    """Makes and releases the block device of one mapping.

    :param scope: the mapping's directory and journal.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._released: set[Resource] = set()

    def attach(self, node: BlockNode, options: MapOptions) -> Attachment:
        """Make a block device from an image, by the transport that was asked for or the first that can.

        :raises UsageError: the transport that was asked for does not exist.
        :raises TransportUnavailable: it, or every one, does not work for this image on this host.
        """
        reasons: list[str] = []
        for name in _candidates(options):
            transport = transport_named(name)
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

    def release(self) -> None:
        """Take away everything that was made for this mapping, the newest first. Nothing left to do is a success."""
        for resource in reversed(self._scope.ledger.resources):
            if resource not in self._released:
                transport_named(resource.kind).release(resource, self._scope)
                self._released.add(resource)


def _candidates(options: MapOptions) -> tuple[str, ...]:
    if options.transport is None:
        return NAMES
    if options.transport not in NAMES:
        raise UsageError(
            f"there is no transport {options.transport!r}", subject="--transport", hint=f"one of: {', '.join(NAMES)}"
        )
    return (options.transport,)


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
