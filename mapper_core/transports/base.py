"""What every transport offers, and what it is given."""

from __future__ import annotations

from typing import Protocol

from mapper_core.frozen import dataclass
from mapper_core.model import Access, Attachment
from mapper_core.resources import Resource
from mapper_core.transports.blockgraph import BlockNode


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether a transport works on this host.

    :param reason: why not; empty when it works.
    :param hint: what would make it work.
    """

    reason: str = ""
    hint: str = ""

    @property
    def works(self) -> bool:
        """True when there is no reason why not."""
        return not self.reason


class Ledger(Protocol):
    """The journal record of one mapping, as transports see it."""

    @property
    def id(self) -> str:
        """Key of the mapping."""

    @property
    def device(self) -> str:
        """The device that was made; empty when that is not known (yet, or after a crash)."""

    @property
    def resources(self) -> tuple[Resource, ...]:
        """What is recorded, the oldest first."""

    def record(self, resource: Resource) -> None:
        """Write down durably what is about to be made."""


@dataclass(frozen=True, slots=True)
class Scope:
    """One mapping: where its files may be, and its journal.

    :param ledger: to be written before each step.
    :param directory: for the mapping's own files (sockets, exports); the transport creates and removes it.
    :param locks: directory of lock files shared by all processes.
    """

    ledger: Ledger
    directory: str
    locks: str


class OwnTransport(Protocol):
    """A way in which bytes become a block device; as much of it as a plugin has to bring for one of its own.

    What it makes is a :class:`~mapper_core.resources.PluginResource`, which the plugin's hook ``release`` takes away.
    """

    name: str

    def availability(self) -> Availability:
        """Say whether it works on this host."""

    def accepts(self, node: BlockNode) -> bool:
        """Say whether it can carry this kind of image."""

    def attach(self, node: BlockNode, access: Access, scope: Scope) -> Attachment:
        """Make a block device; each step is recorded before it is done."""


class Transport(OwnTransport, Protocol):
    """A way in which bytes become a block device, which all plugins share."""

    def resize(self, size: int, scope: Scope) -> None:
        """Make the image of a mapping, and its device, larger, while they are in use.

        Doing it again is a success; a disk is never made smaller.

        :param size: bytes, a multiple of 512.
        :raises NotSupported: it cannot do that.
        """

    def release(self, resource: Resource, scope: Scope) -> None:
        """Take away a resource of this transport's kind.

        Succeeds when it is gone already. Returns only when the kernel says that it is gone.
        """
