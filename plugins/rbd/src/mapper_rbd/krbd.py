"""Transport ``krbd``: the kernel's own client of RBD. ``/dev/rbdN``, without any process.

A device is known by what sysfs says of it (cluster, pool, namespace and image by their numbers), never by its name or number
alone: two pools may have images of one name (C-11), and a number is given out again (C-13). Nor is the list of ``rbd showmapped``
read, whose form changed between releases (C-12).

Sources: ``drivers/block/rbd.c``, Documentation/ABI/testing/sysfs-bus-rbd, rbd(8).
"""

from __future__ import annotations

import errno
import os

from mapper_core.errors import CommandFailed, DeviceBusy, ImageInUse
from mapper_core.frozen import dataclass
from mapper_core.linux import block
from mapper_core.model import Access, Attachment
from mapper_core.process import find_program, run
from mapper_core.resources import PluginResource
from mapper_core.runtime import boot_id
from mapper_core.transports.base import Availability, Scope
from mapper_core.transports.blockgraph import BlockNode
from mapper_rbd import features, tool, waiting
from mapper_rbd.names import VolumeName

NAME = "krbd"
BUS = "/sys/bus/rbd"


@dataclass(frozen=True, slots=True)
class Identity:
    """What sysfs says of a mapped image.

    :param snapshot: its name; ``-`` for the image itself, as the kernel writes it.
    """

    cluster_fsid: str
    pool_id: str
    pool_ns: str
    image_id: str
    current_snap: str


class KrbdTransport:
    """See the module.

    :param features: of the image.
    :param conf: configuration file for the tool.
    :param seconds: longest wait for the tool.
    :param bus: another tree than the kernel's, for tests.
    """

    name = NAME

    def __init__(
        self,
        volume: VolumeName,
        identity: Identity,
        features: int,
        user: str,
        conf: str,
        seconds: float,
        bus: str = BUS,
    ) -> None:
        self._volume = volume
        self._identity = identity
        self._features = features
        self._user = user
        self._conf = conf
        self._seconds = seconds
        self._bus = bus

    def availability(self) -> Availability:
        """Needs the module, a sysfs that can be written (C-15), the tool, and all features of the image (C-01)."""
        if reason := _unusable(self._bus):
            return reason
        if find_program(tool.PROGRAM) is None:
            return Availability(f"{tool.PROGRAM} is not installed", "install the package ceph-common")
        if lacks := features.missing(self._features, features.of_kernel(f"{self._bus}/supported_features")):
            return Availability(lacks, "another transport does it; or: rbd feature disable")
        return Availability()

    def accepts(self, node: BlockNode) -> bool:
        """Images of RBD only."""
        return node.protocol is not None and node.protocol.driver == "rbd"

    def attach(self, node: BlockNode, access: Access, scope: Scope) -> Attachment:
        """Map the image.

        :raises ImageInUse: it is mapped on this host already, by somebody else.
        :raises DeadlineExceeded: the cluster does not answer the kernel.
        """
        if there := find(self._identity, self._bus):
            raise ImageInUse(
                f"the kernel has mapped the image to {there[0]} already",
                subject=str(self._volume),
                hint=f"if nobody needs it: rbd device unmap {there[0]}",
            )
        scope.ledger.record(resource_of(self._identity, boot_id(), self._conf))
        argv = tool.map_argv(NAME, self._volume, self._user, self._conf, access)
        try:
            run(argv, timeout=self._seconds, subject=node.filename, capabilities=tool.CAPABILITIES)
        except CommandFailed as error:
            error.hint = "the kernel's log says why: dmesg | tail"
            raise
        [device] = find(self._identity, self._bus)
        return Attachment(block.ensure_node(device), NAME)


def resource_of(identity: Identity, boot: str, conf: str) -> PluginResource:
    """What is written down: enough to find the device by.

    :param boot: in which it is mapped; after another, whoever has mapped the image is not us.
    """
    numbers = ((name, getattr(identity, name)) for name in Identity.__slots__)
    return PluginResource(NAME, (*numbers, ("boot", boot), ("conf", conf)))


def identity_in(resource: PluginResource) -> Identity:
    """Return the identity that was written down."""
    values = dict(resource.values)
    return Identity(**{name: values[name] for name in Identity.__slots__})


def release(resource: PluginResource, seconds: float) -> None:
    """Unmap what a record describes; nothing is ever forced (C-08).

    :param seconds: longest wait for the tool.
    :raises DeviceBusy: something holds the device (C-07), or has it open.
    :raises DeadlineExceeded: the kernel waits for the cluster.
    """
    values, identity = dict(resource.values), identity_in(resource)
    if values["boot"] != boot_id():
        return
    for device in find(identity):
        with block.exclusive(device):
            pass
        try:
            waiting.run_or_leave(tool.unmap_argv(NAME, device, values["conf"]), seconds=seconds, subject=device)
        except CommandFailed as error:
            if error.status == errno.EBUSY:  # the kernel keeps what is open, also without a claim
                raise block.busy(device) from error
            raise
    if left := find(identity):
        raise DeviceBusy("is still mapped after it was unmapped", subject=left[0])


def owns(resource: PluginResource, device: str) -> bool:
    """Say whether a device is the one of a record."""
    return device in find(identity_in(resource))


def find(identity: Identity, bus: str = BUS) -> tuple[str, ...]:
    """Device nodes of an image that the kernel has mapped."""
    try:
        numbers = sorted(os.listdir(f"{bus}/devices"))
    except FileNotFoundError:
        return ()
    return tuple(f"/dev/rbd{number}" for number in numbers if _read(f"{bus}/devices/{number}") == identity)


def _read(directory: str) -> Identity | None:
    values = {}
    for name in Identity.__slots__:
        try:
            values[name] = block.read_attribute(f"{directory}/{name}")
        except FileNotFoundError:
            if name != "pool_ns":  # Linux 5.0
                return None  # gone meanwhile
            values[name] = ""
    return Identity(**values)


def _unusable(bus: str) -> Availability | None:
    if not os.path.isdir(bus):
        return Availability("the kernel module rbd is not loaded", "run: modprobe rbd")
    control = f"{bus}/add_single_major"
    if not os.path.exists(control):
        control = f"{bus}/add"
    if os.statvfs(bus).f_flag & os.ST_RDONLY or not os.access(control, os.W_OK):
        return Availability(f"{control} cannot be written", "is this a container? sysfs must be mounted read-write")
    return None
