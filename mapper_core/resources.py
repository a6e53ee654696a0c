"""What a transport may leave behind in the system, as it is written to the journal.

A resource is recorded *before* it is made. It therefore holds only what is known by then, and that is enough to
find it again: a loop device by its tag, a daemon by its directory, an nbd device by its name. Whoever finds a record
after a crash can take the resource away without knowing how far its maker came.
"""

from __future__ import annotations

from typing import ClassVar

from mapper_core.frozen import dataclass


@dataclass(frozen=True, slots=True)
class LoopResource:
    """A loop device.

    :param tag: text in the device's ``lo_file_name`` (at most 63 bytes), unique to the mapping.
    """

    kind: ClassVar[str] = "loop"
    tag: str


@dataclass(frozen=True, slots=True)
class DaemonResource:
    """A qemu-storage-daemon with one FUSE export.

    :param directory: its own directory, with the files ``disk`` (the export), ``qmp.sock`` and ``pid``.
    """

    kind: ClassVar[str] = "storage_daemon"
    directory: str


@dataclass(frozen=True, slots=True)
class NbdResource:
    """An nbd device served by qemu-nbd.

    :param device: device node, such as ``/dev/nbd0``.
    :param directory: directory with the file ``pid`` of the server.
    """

    kind: ClassVar[str] = "nbd"
    device: str
    directory: str


@dataclass(frozen=True, slots=True)
class PluginResource:
    """Something that only the plugin of the disk can take away (hook ``release``).

    :param kind: what it is, unique among the resources of the plugin; begins with the name of the format.
    :param values: (name, value) pairs that are enough to find it.
    """

    kind: str
    values: tuple[tuple[str, str], ...]


Resource = LoopResource | DaemonResource | NbdResource | PluginResource

#: Those of the core by ``kind``, which is the name of the transport that makes them; all others are plugins' own.
KINDS: dict[str, type[LoopResource] | type[DaemonResource] | type[NbdResource]] = {
    LoopResource.kind: LoopResource,
    DaemonResource.kind: DaemonResource,
    NbdResource.kind: NbdResource,
}
